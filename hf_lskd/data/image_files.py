"""Pictures that stay on disk until they are asked for: files of a folder, or members of tar files read at their offsets."""

import copy
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image

from hf_lskd.data.images import SAMPLED, spread
from hf_lskd.data.pictures import Choose, PictureError, open_picture
from hf_lskd.errors import InputError

SUFFIXES = (".jpeg", ".jpg", ".png")
SIZED = 4096  # pictures a split whose size goes into the fingerprint


class StoredImages(ABC):
    """One split on disk: names [N] (bytes, such as b"n01440764/n01440764_10026.JPEG"), labels int64 [N].

    Names and places are arrays, not lists of objects, so that worker processes share one copy of them. `draft` lets the
    training transform ask for a JPEG at a reduced scale.
    """

    pixels = None
    rows: tuple[str, ...] = ("names", "labels")

    def __init__(self, names: np.ndarray, labels: np.ndarray, draft: bool = False) -> None:
        self.names, self.labels, self.draft = names, labels.astype(np.int64), draft

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int, choose: Choose | None = None) -> Image.Image:
        """Example `index`, mode L or RGB; `choose` as in `open_picture`. Raises PictureError that names the picture."""
        return open_picture(self.content(index), self.where(index), choose)

    def select(self, indices: np.ndarray) -> Self:
        """The examples at `indices`, in that order."""
        chosen = copy.copy(self)
        for key in self.rows:
            setattr(chosen, key, getattr(self, key)[indices])
        return chosen

    @abstractmethod
    def where(self, index: int) -> str:
        """The picture as a message names it."""

    @abstractmethod
    def size(self, index: int) -> int:
        """Bytes of the encoded picture."""

    @abstractmethod
    def content(self, index: int) -> bytes:
        """The encoded picture."""


class FolderImages(StoredImages):
    """Files below one folder, by their relative names."""

    def __init__(self, root: Path, names: np.ndarray, labels: np.ndarray, draft: bool = False) -> None:
        super().__init__(names, labels, draft)
        self.root = root

    def path(self, index: int) -> Path:
        return self.root / os.fsdecode(bytes(self.names[index]))

    def where(self, index: int) -> str:
        return str(self.path(index))

    def size(self, index: int) -> int:
        try:
            return self.path(index).stat().st_size
        except OSError as error:
            raise PictureError(f"{self.path(index)}: {error.strerror or error}", "a readable picture") from error

    def content(self, index: int) -> bytes:
        try:
            return self.path(index).read_bytes()
        except OSError as error:
            raise PictureError(f"{self.path(index)}: {error.strerror or error}", "a readable picture") from error


class TarImages(StoredImages):
    """Members of one tar file, or of tar files inside it, read in place: offsets and sizes [N] in bytes of that file."""

    rows = ("names", "labels", "offsets", "sizes")

    def __init__(
        self,
        file: "SharedFile",
        names: np.ndarray,
        labels: np.ndarray,
        offsets: np.ndarray,
        sizes: np.ndarray,
        draft: bool = False,
    ) -> None:
        super().__init__(names, labels, draft)
        self.file, self.offsets, self.sizes = file, offsets, sizes

    def where(self, index: int) -> str:
        return f"{self.file.path}: {os.fsdecode(bytes(self.names[index]))}"

    def size(self, index: int) -> int:
        return int(self.sizes[index])

    def content(self, index: int) -> bytes:
        return self.file.read(int(self.offsets[index]), int(self.sizes[index]))


class SharedFile:
    """A large file that many processes read at offsets, each through a handle of its own, opened when it is first used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity = identity_of(path)
        self._handle: tuple[int, int] | None = None  # (process, descriptor)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_handle": None}

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on. Raises PictureError when the file has changed since it was indexed, or ends."""
        parts, descriptor = [], self._descriptor()
        while count:
            part = os.pread(descriptor, count, offset)
            if not part:
                raise PictureError(f"{self.path} ends at byte {offset}", "a whole file", "Fetch it again.")
            parts.append(part)
            offset, count = offset + len(part), count - len(part)
        return b"".join(parts)

    def _descriptor(self) -> int:
        if self._handle is None or self._handle[0] != os.getpid():
            if identity_of(self.path) != self.identity:
                raise PictureError(f"{self.path} has changed since it was opened", "the same file", "Start again.")
            descriptor = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, descriptor)
            self._handle = (os.getpid(), descriptor)
        return self._handle[1]


def identity_of(path: Path) -> tuple[str, int, int]:
    """(path, bytes, time of the last change in ns): what tells one state of a file from another without reading it."""
    try:
        state = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", "a readable file") from error
    return str(path.resolve()), state.st_size, state.st_mtime_ns


def identity_parts(images: StoredImages) -> list[bytes | str]:
    """What stands for a split in the fingerprint: labels, names, sizes of up to 4,096 pictures, contents of up to 64.

    Reading or only sizing all 1.28 million files of ImageNet would take longer than opening it may; a picture that is
    changed in place between these goes unnoticed. The same pictures in a folder and in a tar file give the same parts.
    """
    sizes = [images.size(index) for index in spread(len(images), SIZED)]
    contents = [images.content(index) for index in spread(len(images), SAMPLED)]
    return [images.labels.tobytes(), b"\n".join(images.names.tolist()), repr(sizes), *contents]


# ---- Class folders


def class_folders(folder: Path) -> list[os.DirEntry[str]]:
    """The folders in `folder`, by name; hidden ones are left out. Raises InputError for a folder that cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")),
                key=lambda entry: entry.name,
            )
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror or error}", "a folder of class folders") from error


def pictures_in(folder: str | Path) -> list[str]:
    """Names of the pictures in `folder`, sorted: one pass, without asking the disk about each file. Hidden ones are left out.

    Raises InputError for a folder that cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".") and entry.is_file()
            )
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror or error}", "a readable folder") from error


def as_names(names: Sequence[str]) -> np.ndarray:
    """bytes [N] of one width, as file systems have names."""
    return np.array([os.fsencode(name) for name in names], dtype=np.bytes_) if names else np.empty(0, "S1")

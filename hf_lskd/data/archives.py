"""Members of folders and archives, read so that no archive can write elsewhere, link, or fill the disk."""

import gzip
import logging
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from hf_lskd.errors import InputError

logger = logging.getLogger(__name__)

LARGEST = 256 << 20  # bytes of a member that is read: the text of a pair is tens of megabytes, a picture less
HARMLESS, PACKING = 64 << 20, 100  # unpacked bytes that need no excuse; more may be this many times the packed ones
BLOCK = 1 << 20
LONGEST_HEADER = 1 << 20  # bytes of a member's name and attributes

Member = tuple[str, bytes | None]  # a name, and the content of those that are wanted


def folder_members(folder: Path, wanted: Callable[[str], bool]) -> Iterator[Member]:
    """The files below a folder, sorted. Raises OSError for one that cannot be read."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(root, name)
            yield str(path.relative_to(folder)), path.read_bytes() if wanted(name) else None


def archive_members(
    packed: BinaryIO, size: int, name: str, wanted: Callable[[str], bool], *, packing: int = PACKING
) -> Iterator[Member]:
    """The files of a .tgz of `size` bytes, in its order, read from front to end without writing anything.

    Raises InputError for an archive that is cut off or damaged, for members that would leave a folder on unpacking, links,
    devices, and for what unpacks to over `packing` times its size (text is packed well, pictures hardly).
    """
    try:
        stream = Unpacked(packed, size, name, packing)
        with tarfile.open(fileobj=stream, mode="r|", bufsize=BLOCK, tarinfo=ShortHeader) as archive:  # type: ignore[call-overload]
            for member in archive:
                refuse_hostile(member, name)
                if member.isfile():
                    yield member.name, member_content(archive, member, name) if wanted(member.name) else None
        while stream.read(BLOCK):  # to the end, where gzip has its checksum
            pass
    except (EOFError, zlib.error, tarfile.TarError, gzip.BadGzipFile) as error:
        raise InputError(
            f"{name} is damaged, cut off or no .tgz ({error})", "a whole .tgz", "Fetch it again."
        ) from error


class ShortHeader(tarfile.TarInfo):
    """A member whose long names and attributes, which tarfile reads whole into memory, are of a sane size."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if not (self.isreg() or self.isdir()) and self.size > LONGEST_HEADER:
            raise InputError(
                f"a header of {self.size} bytes in an archive",
                f"at most {LONGEST_HEADER}",
                "Do not unpack this archive.",
            )
        return super()._proc_member(archive)  # type: ignore[misc]


class Unpacked:
    """A gzip stream that stops when it unpacks to over `packing` times its size."""

    def __init__(self, packed: BinaryIO, size: int, name: str, packing: int) -> None:
        self.stream, self.name, self.taken, self.packing = gzip.GzipFile(fileobj=packed), name, 0, packing
        self.most = max(HARMLESS, packing * size)

    def read(self, count: int) -> bytes:
        data = self.stream.read(min(count, BLOCK))
        self.taken += len(data)
        if self.taken > self.most:
            raise InputError(
                f"{self.name} unpacks to over {self.most >> 20} MiB", f"at most {self.packing} times its size"
            )
        return data


def member_content(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> bytes:
    if member.size > LARGEST:
        raise InputError(f"{name}: {member.name} of {member.size} bytes", f"at most {LARGEST >> 20} MiB")
    stream = archive.extractfile(member)
    return stream.read() if stream is not None else b""


def refuse_hostile(member: tarfile.TarInfo, name: str) -> None:
    """Raise InputError for a member that no archive of texts or pictures has."""
    path = PurePosixPath(member.name.replace("\\", "/"))
    problems = (
        (path.is_absolute() or re.match("[A-Za-z]:", member.name), "has an absolute name"),
        (".." in path.parts, "has a name that leads out of the folder"),
        (member.issym() or member.islnk(), f"is a link to {member.linkname!r}"),
        (member.issparse() or not (member.isfile() or member.isdir()), "is neither a file nor a folder"),
        (member.size < 0, f"has a size of {member.size}"),
    )
    for wrong, what in problems:
        if wrong:
            raise InputError(
                f"{name}: member {member.name!r} {what}", "files and folders", "Do not unpack this archive."
            )


def keep_files(files: Mapping[str, bytes], folder: Path) -> None:
    """`files` in a new `folder`, as `unpack` writes them.

    Warns when the place cannot be written: what was read is still of use.
    """
    try:
        unpack(files.items(), folder)
    except OSError as error:
        logger.warning("Not kept in %s (%s); set HF_LSKD_CACHE to a folder that can be written.", folder, error)


def unpack(files: Iterable[tuple[str, bytes]], folder: Path) -> None:
    """Write (relative name, content) into a temporary folder beside `folder` and rename that, so that none is half-written.

    Where another process was first, its folder stays. Raises OSError when the place cannot be written, and FileExistsError
    for a name that comes twice.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as temporary:
        whole = Path(temporary) / "files"
        whole.mkdir()
        for name, content in files:
            place = whole / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("xb") as file:
                file.write(content)
        try:
            os.replace(whole, folder)
        except OSError:
            if not folder.is_dir():
                raise

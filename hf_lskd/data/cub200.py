"""CUB-200-2011 (Wah et al. 2011) as its archive lays it out: a folder, or the .tgz, which is unpacked once into the cache."""

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from hf_lskd.data.archives import archive_members, unpack
from hf_lskd.data.birds import groups_of_birds
from hf_lskd.data.cache import cache_folder
from hf_lskd.data.image_files import FolderImages, as_names, class_folders, identity_of, identity_parts, pictures_in
from hf_lskd.data.images import ImageSource, fingerprint_of, groups_of, source_options, switch
from hf_lskd.data.pictures import Choose, PictureError
from hf_lskd.errors import InputError

logger = logging.getLogger(__name__)

DEFAULTS: dict[str, Any] = {"path": None, "crop_to_box": False, "groups": None, "draft": False}
NAME = "CUB_200_2011"
LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt", "bounding_boxes.txt")
ALLOWED = f"the folder {NAME} (or the one around it) with images/ and {', '.join(LISTS)}, or {NAME}.tgz"
MEMBER = re.compile(
    rf"(?:\./)?{NAME}/((?:images/(?!\.)[^/]+/(?!\.)[^/]+\.jpg)|{'|'.join(map(re.escape, LISTS))})", re.I
)
WHOLE = (200, 5994, 5788)  # classes, pictures for training, pictures for the test
PACKING = 8  # pictures are hardly packed; the whole archive unpacks to less than twice its size
Value = TypeVar("Value")


def load_cub200(data: Mapping[str, Any], *, cache_dir: Path | None = None) -> ImageSource:
    """The birds of `path`, train and test as train_test_split.txt has them; class names as in classes.txt.

    Groups are the kinds of bird that the names end with (`birds.py`), unless `groups` says otherwise. `crop_to_box` cuts
    each picture to the box of its bird; such pictures are decoded whole, so `draft` (see `draft.py`) does nothing for them.
    Raises InputError for a missing or damaged list, lists that do not fit each other, pictures that are listed and not
    there, and an archive that is cut off, hostile, or cannot be unpacked into the cache.
    """
    options = source_options(data, DEFAULTS)
    if not options["path"]:
        raise InputError(f"data.path: {options['path']!r}", ALLOWED)
    folder = open_folder(Path(str(options["path"])).expanduser(), cache_dir)
    names, labels, training, classes = read_lists(folder)
    check_pictures(folder, names)
    images = BirdImages(folder / "images", as_names(names), labels, switch(options, "draft"))
    if switch(options, "crop_to_box"):
        images.boxes = read_boxes(folder, len(names))
    train, test = (images.select(np.flatnonzero(training == side)) for side in (True, False))
    found = (len(classes), len(train), len(test))
    if found[0] == WHOLE[0] and found != WHOLE:
        logger.warning("CUB-200-2011 with %d and %d pictures; the published one has %d and %d", *found[1:], *WHOLE[1:])
    boxes = b"" if images.boxes is None else images.boxes.tobytes()
    parts = [*classes, repr(options["draft"]), boxes, *identity_parts(train), *identity_parts(test)]
    return ImageSource(
        train=train,
        validation=test,
        class_names=classes,
        groups=groups_of_birds(classes) if options["groups"] is None else groups_of(options["groups"], classes),
        fingerprint=fingerprint_of(["cub200", *parts]),
        description=f"CUB-200-2011: {len(train):,} for training, {len(test):,} held out, {len(classes)} classes"
        + (", cut to the birds' boxes" if boxes else ""),
    )


class BirdImages(FolderImages):
    """Pictures, each cut to its box [x, y, width, height] (pixels of the whole picture) where `boxes` is [N, 4]."""

    boxes: np.ndarray | None = None

    def select(self, indices: np.ndarray) -> "BirdImages":
        chosen = super().select(indices)
        chosen.boxes = None if self.boxes is None else self.boxes[indices]
        return chosen

    def image(self, index: int, choose: Choose | None = None) -> Image.Image:
        if self.boxes is None:
            return super().image(index, choose)
        picture = super().image(index)
        x, y, width, height = self.boxes[index]
        left, top = max(round(x), 0), max(round(y), 0)
        right, bottom = min(round(x + width), picture.width), min(round(y + height), picture.height)
        if left >= right or top >= bottom:
            raise PictureError(
                f"{self.where(index)}: box {[float(side) for side in self.boxes[index]]} outside its {picture.size} pixels",
                "a box of x, y, width, height inside the picture",
            )
        return picture.crop((left, top, right, bottom))


# ---- Where the files are


def open_folder(path: Path, cache_dir: Path | None) -> Path:
    """The folder that holds images/ and the lists; an archive is unpacked into the cache when it is not there yet."""
    if path.is_dir():
        for folder in (path, path / NAME):
            if (folder / "images.txt").is_file() or (folder / "images").is_dir():
                return folder
        if not (path / f"{NAME}.tgz").is_file():
            present = ", ".join(sorted(place.name for place in path.iterdir())[:8]) or "nothing"
            raise InputError(f"data.path: {path} is not {NAME} and has none (it holds: {present})", ALLOWED)
        path = path / f"{NAME}.tgz"
    if not path.is_file():
        raise InputError(f"data.path: {path} does not exist", ALLOWED)
    identity = identity_of(path)
    kept = cache_folder(cache_dir, "cub200") / hashlib.sha256(repr(identity).encode()).hexdigest()[:20]
    if not kept.is_dir():
        logger.info("CUB-200-2011: unpacking %s into %s; it is done once", path, kept)
        unpack_birds(path, kept)
    return kept


def unpack_birds(path: Path, folder: Path) -> None:
    """Pictures and lists of the archive into a new `folder`, whole or not at all; everything else in it is left out."""
    try:
        with path.open("rb") as stream:
            members = archive_members(stream, path.stat().st_size, str(path), is_ours, packing=PACKING)
            unpack(((inner(name), content) for name, content in members if content is not None), folder)
    except FileExistsError as error:
        raise InputError(f"{path}: a member comes twice ({error.filename})", f"{NAME}.tgz as published") from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be unpacked into {folder} ({error.strerror or error})",
            "a cache with 1.2 GB to spare",
            "Set HF_LSKD_CACHE to another folder, or unpack it and name the folder.",
        ) from error


def is_ours(name: str) -> bool:
    return MEMBER.fullmatch(name) is not None


def inner(name: str) -> str:
    """The member's name below CUB_200_2011."""
    match = MEMBER.fullmatch(name)
    assert match is not None
    return match[1]


# ---- The lists


def read_lists(folder: Path) -> tuple[list[str], np.ndarray, np.ndarray, tuple[str, ...]]:
    """(names [N] below images/, labels int64 [N], whether for training bool [N], class names), by image id."""
    names = read_list(folder, "images.txt", str)
    labels = read_list(folder, "image_class_labels.txt", int, names)
    training = read_list(folder, "train_test_split.txt", zero_or_one, names)
    classes = read_list(folder, "classes.txt", str)
    number = {key: label for label, key in enumerate(sorted(classes))}
    unknown = [key for key, label in labels.items() if label not in number]
    if unknown:
        raise InputError(
            f"{folder / 'image_class_labels.txt'}: {len(unknown)} images of a class that classes.txt lacks, the first is "
            f"image {unknown[0]} of class {labels[unknown[0]]}",
            f"the {len(classes)} classes of classes.txt",
        )
    order = sorted(names)
    return (
        [names[key] for key in order],
        np.array([number[labels[key]] for key in order], np.int64),
        np.array([training[key] for key in order], bool),
        tuple(classes[key] for key in sorted(classes)),
    )


def read_boxes(folder: Path, count: int) -> np.ndarray:
    """float64 [N, 4]: x, y, width, height in pixels, by image id."""
    boxes = read_list(folder, "bounding_boxes.txt", four_numbers, read_list(folder, "images.txt", str))
    return np.array([boxes[key] for key in sorted(boxes)]).reshape(count, 4)


def read_list(
    folder: Path, file: str, convert: Callable[[str], Value], ids: Mapping[int, Any] | None = None
) -> dict[int, Value]:
    """{id: value} of the lines `id value` of a list. Raises InputError with the line; with `ids`, for others than these."""
    found: dict[int, Value] = {}
    for number, line in lines(folder / file):
        key, _, value = line.partition(" ")
        try:
            parsed = int(key), convert(value.strip())
            if not value.strip():
                raise ValueError("nothing behind the number")
        except ValueError as error:
            raise InputError(
                f"{folder / file}:{number}: {line!r} ({error})", "a number and its value a line"
            ) from error
        if parsed[0] in found:
            raise InputError(f"{folder / file}:{number}: number {parsed[0]} twice", "each number once")
        found[parsed[0]] = parsed[1]
    if ids is not None and found.keys() != ids.keys():
        raise InputError(
            f"{folder / file} has {len(found)} images and images.txt {len(ids)}: {difference(ids, found)}",
            "the same images in both",
            "One of the two is cut off: fetch the archive again.",
        )
    return found


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines that are not empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise InputError(f"{path} cannot be read ({reason})", ALLOWED) from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def difference(ids: Mapping[int, Any], found: Mapping[int, Any]) -> str:
    lost, more = sorted(ids.keys() - found.keys()), sorted(found.keys() - ids.keys())
    parts = [f"{len(lost)} missing, the first is {lost[0]} ({ids[lost[0]]})"] if lost else []
    return "; ".join([*parts, *([f"{len(more)} more, the first is {more[0]}"] if more else [])])


def zero_or_one(value: str) -> bool:
    if value not in ("0", "1"):
        raise ValueError(f"{value!r} is neither 0 nor 1")
    return value == "1"


def four_numbers(value: str) -> Sequence[float]:
    parts = [float(part) for part in value.split()]
    if len(parts) != 4 or not np.isfinite(parts).all():
        raise ValueError("not the four numbers of a box")
    return parts


def check_pictures(folder: Path, names: Sequence[str]) -> None:
    """Raise InputError when pictures are listed and not there, with their number and the first of them."""
    present = {f"{entry.name}/{name}" for entry in class_folders(folder / "images") for name in pictures_in(entry.path)}
    lost = [name for name in names if name not in present]
    if lost:
        raise InputError(
            f"{folder}: {len(lost)} of the {len(names)} pictures in images.txt are missing, the first is images/{lost[0]}",
            f"all of them; {len(present)} pictures were found",
            "Fetch or unpack the archive again.",
        )

"""IDX files (the MNIST family), plain or gzipped. Format: http://yann.lecun.com/exdb/mnist/ (magic 0, 0, type, dimensions)."""

import gzip
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hf_lskd.data.images import (
    ArrayImages,
    ImageSource,
    check_labels,
    fingerprint_of,
    groups_of,
    source_options,
    whole_number,
)
from hf_lskd.errors import InputError

DEFAULTS: dict[str, Any] = {
    "path": None,
    "class_names": None,
    "groups": None,
    "max_train": None,
    "max_validation": None,
}
UNSIGNED_BYTE = 0x08
TYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "validation": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def load_idx(data: Mapping[str, Any]) -> ImageSource:
    """The four files of a folder: train-… for training, t10k-… as validation.

    The files have no semantic groups; `groups` gives each class one. Natural ones for Fashion-MNIST, in its order: top,
    trouser, top, top, top, shoe, top, shoe, bag, shoe (with η's min_similar 4, the five tops are targets; with 2, the
    shoes too). `max_train`, `max_validation` keep the first examples of each class, as many of each.
    Raises InputError for a missing, damaged or truncated file and for labels that do not fit the images or the names.
    """
    options = source_options(data, DEFAULTS)
    if not options["path"]:
        raise InputError(f"data.path: {options['path']!r}", f"a folder with {', '.join(sum(FILES.values(), ()))} [.gz]")
    folder = Path(str(options["path"])).expanduser()
    if not folder.is_dir():
        raise InputError(f"data.path: {folder} is not a folder", "the folder that holds the IDX files")
    splits = {split: _read_split(folder, *names) for split, names in FILES.items()}
    names = _class_names(options["class_names"], splits["train"][1])
    for split, limit in (("train", "max_train"), ("validation", "max_validation")):
        check_labels(split, splits[split][1], names)
        if options[limit] is not None:
            count = whole_number(options, limit, len(names))
            kept = balanced_subset(splits[split][1], count, len(names))
            splits[split] = splits[split][0][kept], splits[split][1][kept]
    train, validation = (ArrayImages(*splits[split]) for split in ("train", "validation"))
    height, width = train.pixels.shape[1:]
    return ImageSource(
        train=train,
        validation=validation,
        class_names=names,
        groups=groups_of(options["groups"], names),
        fingerprint=fingerprint_of(["idx", *names, train.digest(), validation.digest()]),
        description=f"idx {folder.name}: {len(train)} for training, {len(validation)} held out, {height}×{width} grey",
    )


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file of unsigned bytes, plain or gzipped (told by its first bytes, not by its name).

    Raises InputError with the expected and the found bytes when the file is no IDX file or has been cut.
    """
    content = _bytes_of(path)
    header = content[:4]
    if len(header) < 4 or header[:2] != b"\0\0" or header[2] not in TYPES or header[3] == 0:
        raise InputError(
            f"{path} begins with the bytes {header.hex(' ') or '(none)'}", "an IDX file: 00 00 08 and the dimensions"
        )
    if header[2] != UNSIGNED_BYTE:
        raise InputError(f"{path} holds {TYPES[header[2]]} values", "an IDX file of unsigned bytes (type 08)")
    start = 4 + 4 * header[3]
    if len(content) < start:
        raise InputError(f"{path} has {len(content)} bytes", f"{start} bytes of header for {header[3]} dimensions")
    shape = tuple(int(side) for side in np.frombuffer(content, ">u4", header[3], 4))
    expected = start + math.prod(shape)
    if len(content) != expected:
        sides = "×".join(map(str, shape))
        raise InputError(
            f"{path} has {len(content)} bytes (unpacked)",
            f"{expected} bytes for {sides}",
            "The file is cut or damaged: fetch it again." if len(content) < expected else "The file has extra bytes.",
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def balanced_subset(labels: np.ndarray, count: int, num_classes: int) -> np.ndarray:
    """Indices, in order, of the first examples of each class: `count` in all, as even as their numbers allow."""
    by_class = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=num_classes)
    rank = np.empty(len(labels), np.int64)  # how many of the same class come before
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(np.lexsort((labels, rank))[:count])


def _bytes_of(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"{path} cannot be unpacked after {len(content)} bytes: {error}", "a whole gzip file", "Fetch it again."
        ) from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", "a readable IDX file") from error


def _read_split(folder: Path, images: str, labels: str) -> tuple[np.ndarray, np.ndarray]:
    pixels, classes = (read_idx(_find(folder, name)) for name in (images, labels))
    if pixels.ndim != 3 or classes.ndim != 1:
        raise InputError(
            f"{folder}: {images} has {pixels.ndim} dimensions, {labels} {classes.ndim}", "3 for images, 1 for labels"
        )
    if len(pixels) != len(classes):
        raise InputError(
            f"{folder}: {len(pixels)} images in {images}, {len(classes)} labels in {labels}", "one label an image"
        )
    return pixels, classes.astype(np.int64)


def _find(folder: Path, name: str) -> Path:
    """The file, plain or .gz; also with the dot before idx that some archives have (train-images.idx3-ubyte)."""
    for stem in (name, name.replace("-idx", ".idx")):
        for path in (folder / stem, folder / f"{stem}.gz"):
            if path.is_file():
                return path
    present = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise InputError(
        f"{folder} has no {name}[.gz] (it holds: {present})", f"{', '.join(sum(FILES.values(), ()))}, plain or .gz"
    )


def _class_names(given: Any, labels: np.ndarray) -> tuple[str, ...]:
    if given is None:
        return tuple(str(label) for label in range(int(labels.max(initial=-1)) + 1))
    if not isinstance(given, list | tuple):
        raise InputError(f"data.class_names: {given!r}", "a list of names in the order of the labels")
    return tuple(str(name) for name in given)

"""What an image source is, and the one door to all of them: `load_images`."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from hf_lskd.errors import InputError, nearest

SOURCES = ("glyphs", "digits", "idx", "dataset", "imagenet", "cub200")
SAMPLED = 64  # pictures a split whose whole content goes into the fingerprint of a source that is too large to hash
COMMON_KEYS = (
    "source", "image_size", "mean", "std", "augmentation", "augmentation_versions", "mixup", "cutmix", "crop_pct"
)  # fmt: skip


class ImageSet(Protocol):
    """One split: `labels` int64 [N], and `pixels` uint8 [N, H, W] or [N, H, W, 3] where the whole split is one array."""

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def pixels(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """Example `index` as a picture of mode L or RGB."""
        ...


class ArrayImages:
    """Images held in memory: pixels uint8 [N, H, W] (grey) or [N, H, W, 3] (RGB), labels int64 [N]."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        if pixels.dtype != np.uint8 or not (pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 3)):
            raise InputError(f"pixels {pixels.dtype}{list(pixels.shape)}", "uint8 [N, H, W] or uint8 [N, H, W, 3]")
        if labels.shape != pixels.shape[:1]:
            raise InputError(f"{len(pixels)} images with {len(labels)} labels", "one label an image")
        self.pixels = np.require(pixels, requirements=["C", "W"])  # writable, as torch wants what it shares
        self.labels = labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def digest(self) -> bytes:
        """SHA-256 of shape, pixels and labels."""
        content = hashlib.sha256(repr(self.pixels.shape).encode())
        content.update(self.pixels.data)
        content.update(self.labels.tobytes())
        return content.digest()


@dataclass(frozen=True)
class ImageSource:
    """Two splits of one image data set.

    `groups` names each class's semantic group (None: the data have none); `fingerprint` is the SHA-256 (hex) of what
    determines the samples, so two sources with the same fingerprint give the same numbers. `synsets` are the classes' WordNet
    3.0 ids, such as n02099601, where the data say them.
    """

    train: ImageSet
    validation: ImageSet
    class_names: tuple[str, ...]
    groups: tuple[str, ...] | None
    fingerprint: str
    description: str
    synsets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_classes(self.class_names, self.groups)
        if self.synsets is not None and len(self.synsets) != len(self.class_names):
            raise InputError(f"{len(self.synsets)} synsets", f"one a class: {len(self.class_names)}")
        check_labels("train", self.train.labels, self.class_names)
        check_labels("validation", self.validation.labels, self.class_names)


def load_images(data: Mapping[str, Any], *, cache_dir: Path | None = None) -> ImageSource:
    """The image source that a recipe's `data:` block describes.

    `cache_dir` is where rendered glyphs, indexes and unpacked archives are kept (default: $HF_LSKD_CACHE, else ~/.cache/hf_lskd).
    Raises InputError for an unknown source or key, and for missing, empty, damaged or mislabelled data.
    """
    # Imported here, since each source imports this module, and one by one, since only the used one should cost anything.
    name = data.get("source")
    if name == "glyphs":
        from hf_lskd.data.glyphs import load_glyphs

        return load_glyphs(data, cache_dir=cache_dir)
    if name == "digits":
        from hf_lskd.data.digits import load_digits

        return load_digits(data)
    if name == "idx":
        from hf_lskd.data.idx import load_idx

        return load_idx(data)
    if name == "dataset":
        from hf_lskd.data.hf import load_dataset_images

        return load_dataset_images(data, cache_dir=cache_dir)
    if name == "imagenet":
        from hf_lskd.data.imagenet import load_imagenet

        return load_imagenet(data, cache_dir=cache_dir)
    if name == "cub200":
        from hf_lskd.data.cub200 import load_cub200

        return load_cub200(data, cache_dir=cache_dir)
    raise InputError(f"data.source: {name!r}", ", ".join(SOURCES), nearest(str(name), SOURCES))


def source_options(data: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`defaults` overridden by `data`; a key that neither the source nor every source knows is an InputError."""
    known = [*COMMON_KEYS, *defaults]
    for key in data:
        if key not in known:
            allowed = ", ".join(known)
            raise InputError(f"data.{key} with source {data.get('source')!r}", allowed, nearest(str(key), known))
    return {key: data.get(key, default) for key, default in defaults.items()}


def whole_number(data: Mapping[str, Any], key: str, minimum: int) -> int:
    """`data[key]` as an int of at least `minimum`; anything else is an InputError."""
    value = data[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise InputError(f"data.{key}: {value!r}", f"a whole number of at least {minimum}")
    return value


def switch(data: Mapping[str, Any], key: str) -> bool:
    """`data[key]` as a bool; anything else is an InputError."""
    if not isinstance(data[key], bool):
        raise InputError(f"data.{key}: {data[key]!r}", "true or false")
    return bool(data[key])


def check_classes(class_names: Sequence[str], groups: Sequence[str] | None) -> None:
    """Class names are at least two and all different; groups, when given, are one a class."""
    if len(class_names) < 2:
        raise InputError(f"{len(class_names)} classes ({', '.join(class_names) or 'none'})", "at least 2 classes")
    twice = sorted({name for name in class_names if class_names.count(name) > 1})
    if twice:
        raise InputError(f"class names given twice: {', '.join(twice)}", "a different name for each class")
    if groups is not None and len(groups) != len(class_names):
        raise InputError(f"data.groups with {len(groups)} entries", f"one a class: {len(class_names)}")


def check_labels(split: str, labels: np.ndarray, class_names: Sequence[str]) -> None:
    """Every label is a class, and every class has at least one example in the split."""
    if not len(labels):
        raise InputError(f"the {split} split is empty", "at least one example a class")
    outside = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if len(outside):
        first = int(outside[0])
        raise InputError(
            f"{split} split: {len(outside)} labels out of range, the first is {labels[first]} of example {first}",
            f"0 to {len(class_names) - 1} for {len(class_names)} classes",
            "Unlabelled examples (-1) have to be removed.",
        )
    missing = np.flatnonzero(np.bincount(labels, minlength=len(class_names)) == 0)
    if len(missing):
        names = ", ".join(repr(class_names[c]) for c in missing[:10]) + (", …" if len(missing) > 10 else "")
        raise InputError(
            f"{split} split: {len(missing)} of {len(class_names)} classes have no example: {names}",
            "at least one example of each class in train and in validation",
            "Add examples, remove these classes, or make the subset larger.",
        )


def groups_of(groups: Any, class_names: Sequence[str]) -> tuple[str, ...] | None:
    """One group a class from a list in class order, a mapping {class: group}, or the path of a JSON file with either."""
    if groups is None:
        return None
    if isinstance(groups, str | Path):
        groups = _read_json(Path(groups))
    if isinstance(groups, Mapping):
        lost = [name for name in class_names if name not in groups]
        unknown = [str(name) for name in groups if name not in class_names]
        if lost or unknown:
            parts = [f"no group for {', '.join(lost[:10])}"] if lost else []
            parts += [f"unknown classes {', '.join(unknown[:10])}"] if unknown else []
            raise InputError(f"data.groups: {'; '.join(parts)}", "each class once, by its name in class_names")
        return tuple(str(groups[name]) for name in class_names)
    if not isinstance(groups, Sequence):
        raise InputError(f"data.groups: {groups!r}", "a list, a mapping {class: group}, or a JSON file with one")
    if len(groups) != len(class_names):
        raise InputError(f"data.groups with {len(groups)} entries", f"one a class: {len(class_names)}")
    return tuple(str(group) for group in groups)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"data.groups: {path}: {error}", "a readable JSON file") from error


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the indices 0 to count − 1, spread evenly, the first and the last among them."""
    return [int(index) for index in np.unique(np.linspace(0, count - 1, most).astype(int))] if count else []


def fingerprint_of(parts: Iterable[bytes | str]) -> str:
    """SHA-256 (hex) over `parts`, each with its length in front, so no two lists of parts collide by joining."""
    content = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        content.update(len(data).to_bytes(8, "little"))
        content.update(data)
    return content.hexdigest()

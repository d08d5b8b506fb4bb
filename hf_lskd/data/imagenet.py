"""ImageNet-1k as people have it: a tree of class folders, or the official tar files (`imagenet_tars.py`)."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_lskd.data.cache import cache_folder, read_arrays, write_arrays
from hf_lskd.data.idx import balanced_subset
from hf_lskd.data.image_files import FolderImages, StoredImages, as_names, class_folders, identity_parts, pictures_in
from hf_lskd.data.imagenet_tars import DEVKIT, TRAIN, VALIDATION, open_tars
from hf_lskd.data.images import ImageSource, fingerprint_of, groups_of, source_options, switch, whole_number
from hf_lskd.data.synsets import human_names, imagenet_names
from hf_lskd.errors import InputError

DEFAULTS: dict[str, Any] = {
    "path": None,
    "subset": False,
    "max_train": None,
    "max_validation": None,
    "groups": None,
    "draft": False,
}
WHOLE = {"train": 1_281_167, "validation": 50_000}  # Russakovsky et al. 2015, table 1
FEWEST = {"train": 732, "validation": 50}  # of a class, in the whole
SETTLED = 3 * 10**9  # ns: the coarsest clock of a file system in use counts in steps of 2 s
ALLOWED = f"a folder with train/<synset>/*.JPEG and val/<synset>/*.JPEG, or one with {TRAIN}, {VALIDATION} and {DEVKIT}"
Splits = Mapping[str, tuple[Sequence[str], StoredImages]]  # {split: (synsets of its classes, pictures)}


def load_imagenet(data: Mapping[str, Any], *, cache_dir: Path | None = None) -> ImageSource:
    """ImageNet-1k, or with `subset: true` a part of it, from `path`.

    `path` is a tree `train/<synset>/*.JPEG`, `val/<synset>/*.JPEG` (or `validation/`), or a folder with the three official
    files, which are read in place. Where both are there, the tree is taken. Classes are the synsets of train in sorted
    order, which is the order of pretrained classifiers. `max_train`, `max_validation` keep the first pictures of each class
    by name, as many of each. `draft` is explained in `draft.py`. What was found is kept in `cache_dir`.
    Raises InputError for a place that is neither, for a class of one split only, for a folder that is no synset of
    ImageNet-1k, and, without `subset`, for anything but the 1,000 classes with all their pictures.
    """
    options = source_options(data, DEFAULTS)
    if not options["path"]:
        raise InputError(f"data.path: {options['path']!r}", ALLOWED)
    folder = Path(str(options["path"])).expanduser()
    splits = open_splits(folder, cache_dir, switch(options, "draft"))
    check_synsets(folder, splits)
    if not switch(options, "subset"):
        check_whole(folder, splits)
    synsets = tuple(splits["train"][0])
    names = human_names(synsets)
    images = {}
    for split, (_, found) in splits.items():
        images[split] = found
        if options[f"max_{split}"] is not None:
            count = whole_number(options, f"max_{split}", len(names))
            images[split] = found.select(balanced_subset(found.labels, count, len(names)))
    train, validation = images["train"], images["validation"]
    parts = [*synsets, repr(options["draft"]), *identity_parts(train), *identity_parts(validation)]
    return ImageSource(
        train=train,
        validation=validation,
        class_names=names,
        groups=groups_of(options["groups"], names),
        fingerprint=fingerprint_of(["imagenet", *parts]),
        description=f"ImageNet {folder.name}: {len(train):,} for training, {len(validation):,} held out, {len(names)} classes",
        synsets=synsets,
    )


def open_splits(folder: Path, cache_dir: Path | None, draft: bool) -> Splits:
    """Both splits of whatever form `folder` has."""
    if not folder.is_dir():
        raise InputError(f"data.path: {folder} is not a folder", ALLOWED)
    held_out = [folder / name for name in ("val", "validation") if (folder / name).is_dir()]
    if (folder / "train").is_dir() and held_out:
        if len(held_out) > 1:
            raise InputError(f"data.path: {folder} has val and validation", "one of them")
        pair = {"train": folder / "train", "validation": held_out[0]}
        return {split: open_tree(place, cache_dir, draft) for split, place in pair.items()}
    if any((folder / name).exists() for name in (TRAIN, VALIDATION)):
        return open_tars(folder, cache_dir, draft)
    missing = [name for name, there in (("train", (folder / "train").is_dir()), ("val", bool(held_out))) if not there]
    present = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise InputError(f"data.path: {folder} has no folder {' and no '.join(missing)} (it holds: {present})", ALLOWED)


def open_tree(folder: Path, cache_dir: Path | None, draft: bool) -> tuple[list[str], FolderImages]:
    """One split of a tree: its synsets, sorted, and its pictures by class and name.

    Each class folder is read in one pass. The names are kept in the cache, keyed by the time of each class folder's last
    change (adding, removing and renaming set it), so that the next opening asks the disk for 1,000 times and no more. They
    are not kept while a folder is changing: some file systems count that time in whole seconds.
    """
    folders = class_folders(folder)
    if not folders:
        count = len(pictures_in(folder))
        hint = "The class of each stands in the devkit: sort them into folders, or name the tar files." if count else ""
        raise InputError(f"data.path: {folder} has no class folders and {count} pictures", ALLOWED, hint)
    times = [entry.stat().st_mtime_ns for entry in folders]
    settled = max(times) + SETTLED < time.time_ns()
    state = repr([str(folder.resolve()), [(entry.name, changed) for entry, changed in zip(folders, times)]])
    path = cache_folder(cache_dir, "imagenet") / f"tree-{hashlib.sha256(state.encode()).hexdigest()[:20]}.npz"
    index = read_arrays(path)
    if index is None:
        found = [pictures_in(entry.path) for entry in folders]
        index = {
            "names": as_names([f"{entry.name}/{name}" for entry, names in zip(folders, found) for name in names]),
            "labels": np.repeat(np.arange(len(folders)), [len(names) for names in found]),
        }
        if settled:
            write_arrays(path, index)
    return [entry.name for entry in folders], FolderImages(folder, index["names"], index["labels"], draft)


def check_synsets(folder: Path, splits: Splits) -> None:
    """Raise InputError unless both splits have the same classes, all of ImageNet-1k, with pictures in each."""
    train, validation = (set(splits[split][0]) for split in ("train", "validation"))
    problems = [
        (sorted((train | validation) - imagenet_names().keys()), "that are no synset of ImageNet-1k"),
        (sorted(train - validation), "in train and not in val"),
        (sorted(validation - train), "in val and not in train"),
        *((without_pictures(*splits[split]), f"without a picture in {split}") for split in splits),
    ]
    for synsets, what in problems:
        if synsets:
            raise InputError(
                f"data.path: {folder}: {len(synsets)} classes {what}: {listed(synsets)}; {counted(splits)}",
                "the same synsets in train and val, each with pictures",
            )


def check_whole(folder: Path, splits: Splits) -> None:
    """Raise InputError unless all 1,000 classes and all pictures are there."""
    synsets = splits["train"][0]
    lost = [synset for synset in imagenet_names() if synset not in set(synsets)]
    wrong = []
    for split, (_, images) in splits.items():
        if len(images) != WHOLE[split]:
            wrong.append(f"{len(images):,} of {WHOLE[split]:,} pictures in {split}")
            counts = np.bincount(images.labels, minlength=len(synsets))
            few = [f"{synsets[label]} ({counts[label]})" for label in np.flatnonzero(counts < FEWEST[split]).tolist()]
            wrong += [f"fewer than {FEWEST[split]} in {len(few)} classes: {listed(few)}"] if few else []
    if lost or wrong:
        missing = [f"missing: {listed(lost)}"] if lost else []
        raise InputError(
            f"data.path: {folder} has {len(synsets):,} of 1,000 classes; {'; '.join([*missing, *wrong])}",
            "all of ImageNet-1k",
            "`subset: true` in data allows a part of it.",
        )


def without_pictures(synsets: Sequence[str], images: StoredImages) -> list[str]:
    counts = np.bincount(images.labels, minlength=len(synsets))
    return [synset for synset, count in zip(synsets, counts) if not count]


def counted(splits: Splits) -> str:
    parts = [
        f"{len(images):,} pictures of {len(synsets):,} classes in {name}" for name, (synsets, images) in splits.items()
    ]
    return f"found {' and '.join(parts)}"


def listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")

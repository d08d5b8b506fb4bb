"""ImageNet-1k as its official tar files, read in place: where each picture stands, found once and kept in the cache."""

import hashlib
import io
import logging
import re
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from hf_lskd.data.archives import archive_members, refuse_hostile
from hf_lskd.data.cache import cache_folder, read_arrays, write_arrays
from hf_lskd.data.image_files import SharedFile, TarImages, as_names, identity_of
from hf_lskd.data.synsets import SYNSET
from hf_lskd.errors import InputError

logger = logging.getLogger(__name__)

TRAIN, VALIDATION, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
FORMAT = "1"  # of the index: another number makes kept ones unused
Place = tuple[str, int, int]  # a member's name, the offset of its content and its size, in bytes of the whole file


def open_tars(folder: Path, cache_dir: Path | None, draft: bool) -> dict[str, tuple[list[str], TarImages]]:
    """{"train", "validation"}: the split's synsets, sorted, and its pictures by class and name; labels count these synsets.

    The first call reads every header of the archives (minutes; a disk has to move for each picture) and keeps an index in
    the cache, keyed by the path, size and time of the three files. Raises InputError for a missing, damaged or cut file,
    and for validation pictures that the devkit's ground truth does not fit.
    """
    missing = [name for name in (TRAIN, VALIDATION, DEVKIT) if not (folder / name).is_file()]
    if missing:
        raise InputError(f"data.path: {folder} lacks {' and '.join(missing)}", f"{TRAIN}, {VALIDATION} and {DEVKIT}")
    state = repr([FORMAT, *(identity_of(folder / name) for name in (TRAIN, VALIDATION, DEVKIT))])
    path = cache_folder(cache_dir, "imagenet") / f"tars-{hashlib.sha256(state.encode()).hexdigest()[:20]}.npz"
    index = read_arrays(path)
    if index is None:
        logger.info("ImageNet: reading where each picture stands in %s; it is done once", folder)
        truth = ground_truth(folder / DEVKIT)
        index = {**train_index(folder / TRAIN), **validation_index(folder / VALIDATION, truth)}
        write_arrays(path, index)
    found = {}
    for split, name in (("train", TRAIN), ("validation", VALIDATION)):
        rows = {key: index[f"{split}_{key}"] for key in TarImages.rows}
        classes = [synset.decode() for synset in index[f"{split}_classes"].tolist()]
        found[split] = classes, TarImages(SharedFile(folder / name), draft=draft, **rows)
    return found


def train_index(path: Path) -> dict[str, np.ndarray]:
    """The index of a tar file of one tar file a class."""
    places: dict[str, list[Place]] = {}
    with path.open("rb") as file:
        for name, (start, size) in members_of(file, 0, path.stat().st_size, str(path)):
            synset = PurePosixPath(name).name.removesuffix(".tar")
            if not SYNSET.fullmatch(synset) or not name.endswith(".tar"):
                raise InputError(f"{path}: member {name!r}", "one tar file a synset, such as n01440764.tar")
            if synset in places:
                raise InputError(f"{path}: member {name!r} comes twice", "one tar file a synset")
            inner = members_of(file, start, start + size, f"{path}: {name}")
            places[synset] = [(f"{synset}/{PurePosixPath(own).name}", *place) for own, place in inner]
    return arrays("train", places)


def validation_index(path: Path, truth: Sequence[str]) -> dict[str, np.ndarray]:
    """The index of a flat tar file, classes by `truth`: picture number i is of synset truth[i − 1]."""
    places: dict[str, list[Place]] = {synset: [] for synset in truth}
    numbers: Counter[int] = Counter()
    with path.open("rb") as file:
        for member, place in members_of(file, 0, path.stat().st_size, str(path)):
            name = PurePosixPath(member).name
            match = VALIDATION_NAME.fullmatch(name)
            number = int(match[1]) if match else 0
            if not 1 <= number <= len(truth):
                allowed = f"ILSVRC2012_val_00000001.JPEG to {len(truth):08d}, which the devkit has classes for"
                raise InputError(f"{path}: member {member!r}", allowed)
            numbers[number] += 1
            synset = truth[number - 1]
            places[synset].append((f"{synset}/{name}", *place))
    lost = [number for number in range(1, len(truth) + 1) if not numbers[number]]
    if lost or numbers.total() != len(truth):
        twice = next((number for number, count in numbers.items() if count > 1), 0)
        what = (
            f"lacks {len(lost)}, the first is ILSVRC2012_val_{lost[0]:08d}.JPEG" if lost else f"has {twice:08d} twice"
        )
        raise InputError(
            f"{path} has {numbers.total()} pictures and {what}", f"the {len(truth)} of the devkit, each once"
        )
    return arrays("validation", places)


def arrays(split: str, places: Mapping[str, Sequence[Place]]) -> dict[str, np.ndarray]:
    """Columns by class and name."""
    classes = sorted(places)
    rows = [(label, *row) for label, synset in enumerate(classes) for row in sorted(places[synset])]
    columns = {
        "classes": as_names(classes),
        "names": as_names([row[1] for row in rows]),
        "labels": np.array([row[0] for row in rows], np.int64),
        "offsets": np.array([row[2] for row in rows], np.int64),
        "sizes": np.array([row[3] for row in rows], np.int64),
    }
    return {f"{split}_{key}": column for key, column in columns.items()}


def members_of(file: BinaryIO, start: int, end: int, name: str) -> list[tuple[str, tuple[int, int]]]:
    """(name, (offset, size)) of each file of the tar that begins at byte `start` of `file` and ends before byte `end`.

    Contents are not read. Raises InputError for one that is damaged, cut off or hostile; tarfile itself takes a damaged
    header for the end.
    """
    file.seek(start)
    places = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                refuse_hostile(member, name)
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError(f"{member.name} goes beyond the end")
                if member.isfile():
                    places.append((member.name, (member.offset_data, member.size)))
            file.seek(archive.offset)
    except tarfile.TarError as error:
        raise damaged(name, str(error)) from error
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE) or file.tell() > end:
        raise damaged(name, f"no end mark behind its {len(places)} files")
    return places


def damaged(name: str, what: str) -> InputError:
    return InputError(f"{name} is damaged or cut off ({what})", "a whole tar file", "Fetch it again.")


# ---- The devkit


def ground_truth(path: Path) -> list[str]:
    """The synset of each validation picture, in the order of their numbers, from the devkit's archive.

    Raises InputError for an archive that is damaged or lacks one of the two files, and for numbers without a synset.
    """
    files: dict[str, bytes] = {}
    try:
        with path.open("rb") as stream:
            size = path.stat().st_size
            for name, content in archive_members(stream, size, str(path), lambda name: name.endswith((TRUTH, META))):
                if content is not None:
                    files[PurePosixPath(name).name] = content
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", "the development kit of ILSVRC2012") from error
    lost = [f"data/{name}" for name in (TRUTH, META) if name not in files]
    if lost:
        raise InputError(f"{path} has no {' and no '.join(lost)}", "the development kit of ILSVRC2012 (t12)")
    synsets = synset_numbers(files[META], f"{path}: {META}")
    try:
        numbers = [int(line) for line in files[TRUTH].split()]
        return [synsets[number] for number in numbers]
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: {TRUTH}: {error}", f"an ILSVRC2012_ID of {META} a line") from error


def synset_numbers(content: bytes, name: str) -> dict[int, str]:
    """{ILSVRC2012_ID: WNID} of the devkit's meta.mat."""
    from scipy.io import loadmat

    try:
        table = loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in np.atleast_1d(table)}
    except Exception as error:  # scipy raises whatever its parser stumbles over
        raise InputError(
            f"{name} cannot be read ({type(error).__name__}: {error})", "synsets with ILSVRC2012_ID and WNID"
        ) from error

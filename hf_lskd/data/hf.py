"""Images of the `datasets` library: a name on the Hub, or a local folder or file."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hf_lskd.data.images import SAMPLED, ImageSource, fingerprint_of, groups_of, source_options, spread
from hf_lskd.data.pictures import open_picture
from hf_lskd.data.synsets import human_names, synsets_of
from hf_lskd.errors import InputError, nearest

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

DEFAULTS: dict[str, Any] = {
    "name": None,
    "train_split": "train",
    "validation_split": "validation",
    "image_column": None,
    "label_column": None,
    "groups": None,
}
LABEL_NAMES = ("label", "labels", "class", "target")
FILE_KINDS = {".parquet": "parquet", ".arrow": "arrow"}


class DatasetImages:
    """One split of a dataset; pictures are decoded when they are asked for."""

    pixels = None

    def __init__(self, rows: "Dataset", column: str, labels: np.ndarray, split: str) -> None:
        self.rows, self.column, self.labels, self.split = rows, column, labels, split

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        value = self.rows[int(index)][self.column]
        return open_picture(value, f"example {index} of split {self.split}")


def load_dataset_images(data: Mapping[str, Any], *, cache_dir: Path | None = None) -> ImageSource:
    """Two splits of a dataset with one image and one label column.

    `name` is a dataset of the Hub, a folder (class folders of images, parquet or arrow files, `save_to_disk`), or one
    parquet or arrow file. Splits may be sliced as `datasets` does it (`train[:90%]`). Columns that are null are found by
    type: the only image, and the only ClassLabel, else a column called label, else the only text or integer column.
    Text labels become classes in sorted order. Classes named by ImageNet's synsets are put in sorted order too, which is that
    of pretrained classifiers, and called by their human names, as `source: imagenet` does. `cache_dir` replaces the
    library's own cache folder.
    Raises InputError for a dataset that cannot be opened, a missing split or column, and labels that do not fit.
    """
    options = source_options(data, DEFAULTS)
    name = options["name"]
    if not name:
        raise InputError(f"data.name: {name!r}", "a dataset of the Hub, a folder, or a .parquet or .arrow file")
    splits = open_dataset(str(name), cache_dir)
    specs = {"train": str(options["train_split"]), "validation": str(options["validation_split"])}
    rows = {split: take_split(splits, spec, split, str(name)) for split, spec in specs.items()}
    image_column = _image_column(rows["train"], options["image_column"])
    label_column = _label_column(rows["train"], options["label_column"], image_column)
    for split in rows:
        _require(rows[split], (image_column, label_column), specs[split])
    names = _class_names(rows["train"], label_column)
    labels = {split: _labels(rows[split], label_column, names, split) for split in rows}
    synsets = synsets_of(names)
    if synsets is not None:
        labels = {split: _in_order(found, synsets) for split, found in labels.items()}
        synsets = tuple(sorted(synsets))
        names = human_names(synsets)
    found = {
        split: DatasetImages(_encoded(rows[split], image_column), image_column, labels[split], split) for split in rows
    }
    return ImageSource(
        train=found["train"],
        validation=found["validation"],
        class_names=names,
        groups=groups_of(options["groups"], names),
        fingerprint=fingerprint_of(["dataset", *names, *_identity(found["train"]), *_identity(found["validation"])]),
        description=f"dataset {name}: {len(found['train'])} in {specs['train']}, "
        f"{len(found['validation'])} in {specs['validation']}, {len(names)} classes",
        synsets=synsets,
    )


def open_dataset(name: str, cache_dir: Path | None) -> "DatasetDict":
    import datasets

    path = Path(name).expanduser()
    looks_local = name.startswith((".", "/", "~")) or path.suffix in FILE_KINDS
    if looks_local and not path.exists():
        raise InputError(
            f"data.name: {name!r} does not exist", "a folder, a .parquet or .arrow file, or a name on the Hub"
        )
    cache = None if cache_dir is None else str(cache_dir / "datasets")
    try:
        with _quiet_unless_watched():
            if path.is_file():
                if path.suffix not in FILE_KINDS:
                    raise InputError(f"data.name: {name!r}", f"a file ending in {' or '.join(FILE_KINDS)}, or a folder")
                return datasets.load_dataset(FILE_KINDS[path.suffix], data_files=str(path), cache_dir=cache)
            if path.is_dir() and any((path / file).exists() for file in ("dataset_dict.json", "state.json")):
                kept = datasets.load_from_disk(str(path))
                return kept if isinstance(kept, datasets.DatasetDict) else datasets.DatasetDict(train=kept)
            return datasets.load_dataset(str(path) if path.is_dir() else name, cache_dir=cache)
    except InputError:
        raise
    # Whatever the builders, pyarrow and the Hub's client raise is about this dataset, and one message serves it.
    except Exception as error:
        lines = str(error.__cause__ or error).strip().splitlines() or [""]
        raise InputError(
            f"data.name: {name!r} cannot be opened ({type(error).__name__}: {lines[0]})",
            "a folder with train/<class>/<image> and validation/<class>/<image>, parquet or arrow files, or a Hub name",
            "" if looks_local or path.exists() else "No folder of that name is here, and the Hub could not serve it.",
        ) from error


@contextmanager
def _quiet_unless_watched() -> Iterator[None]:
    """No progress bars of `datasets` into log files."""
    import datasets

    switch = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    if switch:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if switch:
            datasets.enable_progress_bars()


def take_split(splits: "DatasetDict", spec: str, split: str, name: str) -> "Dataset":
    """The rows of `spec`: a split's name, or a slice such as `train[:90%]`."""
    import datasets

    sizes = {key: len(rows) for key, rows in splits.items()}
    try:
        parts = datasets.ReadInstruction.from_spec(spec).to_absolute(sizes)
    except (ValueError, AssertionError) as error:
        known = ", ".join(f"{key} ({size} examples)" for key, size in sizes.items())
        hint = nearest(spec, list(sizes)) or f"A slice works too, such as {next(iter(sizes))}[:90%]."
        raise InputError(f"data.{split}_split: {spec!r} is not in {name}", known, hint) from error
    taken = [
        splits[part.splitname].select(range(part.from_ or 0, _end(part.to, sizes[part.splitname]))) for part in parts
    ]
    return (taken[0] if len(taken) == 1 else datasets.concatenate_datasets(taken)).with_format(None)


def _end(to: int | None, size: int) -> int:
    return size if to is None else to


def _image_column(rows: "Dataset", wanted: str | None) -> str:
    if wanted is not None:
        _require(rows, (wanted,), "train")
        return wanted
    found = [name for name, feature in rows.features.items() if _holds_images(feature)]
    if len(found) != 1:
        columns = ", ".join(f"{name} ({_type_of(feature)})" for name, feature in rows.features.items())
        which = f"{len(found)} image columns ({', '.join(found)})" if found else "no image column"
        raise InputError(f"{which} among: {columns}", "one column of type Image", "Name it by data.image_column.")
    return found[0]


def _holds_images(feature: Any) -> bool:
    """An Image, or what parquet files of other programs hold: a struct of bytes and path, or plain bytes."""
    import datasets

    if isinstance(feature, Mapping):
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", "") in ("binary", "large_binary")


def _label_column(rows: "Dataset", wanted: str | None, image_column: str) -> str:
    import datasets

    if wanted is not None:
        _require(rows, (wanted,), "train")
        if not _holds_labels(rows.features[wanted]):
            kind = _type_of(rows.features[wanted])
            raise InputError(
                f"data.label_column: {wanted!r} has type {kind}", "ClassLabel, text or integers, one an example"
            )
        return wanted
    able = [name for name, feature in rows.features.items() if name != image_column and _holds_labels(feature)]
    classes = [name for name in able if isinstance(rows.features[name], datasets.ClassLabel)]
    for found in (classes, [name for name in able if name.lower() in LABEL_NAMES], able):
        if len(found) == 1:
            return found[0]
        if found:
            break
    columns = ", ".join(f"{name} ({_type_of(feature)})" for name, feature in rows.features.items())
    which = f"{len(found)} possible label columns ({', '.join(found)})" if found else "no label column"
    raise InputError(
        f"{which} among: {columns}", "one column of ClassLabel, text or integers", "Name it by data.label_column."
    )


def _holds_labels(feature: Any) -> bool:
    kind = str(getattr(feature, "dtype", ""))
    return kind in ("string", "large_string", "bool") or kind.startswith(("int", "uint"))


def _type_of(feature: Any) -> str:
    kind = getattr(feature, "dtype", None)
    return type(feature).__name__ if type(feature).__name__ != "Value" else str(kind)


def _require(rows: "Dataset", columns: Sequence[str], split: str) -> None:
    for column in columns:
        if column not in rows.features:
            known = list(rows.features)
            raise InputError(f"column {column!r} in split {split}", ", ".join(known), nearest(column, known))


def _class_names(rows: "Dataset", column: str) -> tuple[str, ...]:
    """ClassLabel's names; sorted texts; for integers 0 up to the largest of the training split."""
    names = getattr(rows.features[column], "names", None)
    if names:
        return tuple(str(name) for name in names)
    values = [value for value in _values(rows, column) if value is not None]
    if values and isinstance(values[0], str):
        return tuple(sorted(set(values)))
    return tuple(str(label) for label in range(int(max(values, default=-1)) + 1))


def _labels(rows: "Dataset", column: str, names: Sequence[str], split: str) -> np.ndarray:
    """int64 [N]; a missing label is −1, which the check of the source reports with its example."""
    values = _values(rows, column)
    if any(isinstance(value, str) for value in values):
        index = {name: label for label, name in enumerate(names)}
        unknown = sorted({str(value) for value in values if value is not None and value not in index})
        if unknown:
            raise InputError(
                f"{split} split: labels that training does not have: {', '.join(unknown[:10])}", ", ".join(names[:40])
            )
        values = [index.get(value, -1) for value in values]
    return np.array([-1 if value is None else int(value) for value in values], np.int64)


def _in_order(labels: np.ndarray, synsets: Sequence[str]) -> np.ndarray:
    """The labels when classes are counted in sorted order of their synsets; labels that are no class stay as they are."""
    rank = np.argsort(np.argsort(synsets))
    known = (labels >= 0) & (labels < len(synsets))
    return np.where(known, rank[np.where(known, labels, 0)], labels)


def _values(rows: "Dataset", column: str) -> list[Any]:
    return rows.select_columns([column]).with_format("arrow")[:][column].to_pylist()


def _encoded(rows: "Dataset", column: str) -> "Dataset":
    """Only the image column, undecoded: decoding is ours, so that a damaged picture is named."""
    import datasets

    rows = rows.select_columns([column])
    return rows.cast_column(column, datasets.Image(decode=False)) if _is_image(rows, column) else rows


def _is_image(rows: "Dataset", column: str) -> bool:
    import datasets

    return isinstance(rows.features[column], datasets.Image)


def _identity(images: DatasetImages) -> list[bytes | str]:
    """What stands for a split in the fingerprint: its labels, and the whole content of up to 64 pictures spread evenly.

    Reading every picture of a large set only to hash it would take longer than many runs; a picture that is changed in
    place between these goes unnoticed.
    """
    parts: list[bytes | str] = [images.labels.tobytes()]
    for index in spread(len(images), SAMPLED):
        value = images.rows[index][images.column]
        content = value.get("bytes") if isinstance(value, dict) else value
        path = value.get("path") if isinstance(value, dict) else None
        if isinstance(content, str):
            content, path = None, content
        parts.append(content if content is not None else _file_content(path))
    return parts


def _file_content(path: str | None) -> bytes:
    try:
        return Path(path).read_bytes() if path else b""
    except OSError:
        return b""  # reported, with its name, by whoever wants to see the picture

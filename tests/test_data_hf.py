"""Datasets of the `datasets` library: real folders of pictures and real parquet files made from scikit-learn's digits."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from hf_lskd.data import ImageDataset, ImageSource, load_images
from hf_lskd.data.pictures import PictureError
from hf_lskd.errors import InputError

datasets = pytest.importorskip("datasets")

DIGITS = load_digits()
PIXELS = (DIGITS.images * 15).astype(np.uint8)
NAMES = [f"digit_{k}" for k in range(10)]
CONFIG: dict[str, Any] = {
    "input_size": (3, 16, 16),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
}


def png(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[index]).save(buffer, "png")
    return buffer.getvalue()


def image_folder(folder: Path, splits: tuple[str, ...] = ("train", "validation")) -> Path:
    for k, split in enumerate(splits):
        for index in range(30 * k, 30 * k + 30):
            place = folder / split / NAMES[DIGITS.target[index]]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{index:04}.png").write_bytes(png(index))
    return folder


def table(start: int, stop: int, *, labels: str = "names", **columns: Any) -> Any:
    kinds = {"names": [NAMES[t] for t in DIGITS.target[start:stop]], "integers": DIGITS.target[start:stop].tolist()}
    pictures = [{"bytes": png(index), "path": None} for index in range(start, stop)]
    return datasets.Dataset.from_dict({"image": pictures, "label": kinds[labels], **columns})


def parquet_folder(folder: Path, *, as_image: bool = True, **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for split, start in (("train", 0), ("validation", 60)):
        made = table(start, start + 60, **options)
        if as_image:
            made = made.cast_column("image", datasets.Image())
        made.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    return folder


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def loaded(name: Path | str, **options: Any) -> ImageSource:
        return load_images({"source": "dataset", "name": str(name), **options}, cache_dir=tmp_path / "cache")

    return loaded


def test_a_folder_of_class_folders(tmp_path: Path, load: Any) -> None:
    source = load(image_folder(tmp_path / "pictures"))
    assert source.class_names == tuple(NAMES)
    assert (len(source.train), len(source.validation)) == (30, 30)
    assert source.train.pixels is None
    shown = [(int(label), np.asarray(source.train.image(i)).tobytes()) for i, label in enumerate(source.train.labels)]
    assert sorted(shown) == sorted((int(DIGITS.target[i]), PIXELS[i].tobytes()) for i in range(30))


@pytest.mark.parametrize("as_image", [True, False])
@pytest.mark.parametrize("labels", ["names", "integers"])
def test_parquet_files_with_names_or_numbers(tmp_path: Path, load: Any, as_image: bool, labels: str) -> None:
    source = load(parquet_folder(tmp_path / "parquet", as_image=as_image, labels=labels))
    assert source.class_names == (tuple(NAMES) if labels == "names" else tuple("0123456789"))
    np.testing.assert_array_equal(source.train.labels, DIGITS.target[:60])
    np.testing.assert_array_equal(np.asarray(source.validation.image(7)), PIXELS[67])


def test_what_save_to_disk_wrote(tmp_path: Path, load: Any) -> None:
    both = datasets.DatasetDict(train=table(0, 60), validation=table(60, 120)).class_encode_column("label")
    both.save_to_disk(str(tmp_path / "kept"))
    source = load(tmp_path / "kept")
    assert source.class_names == tuple(NAMES)
    np.testing.assert_array_equal(source.validation.labels, DIGITS.target[60:120])
    np.testing.assert_array_equal(np.asarray(source.train.image(5)), PIXELS[5])


def test_one_parquet_file_is_split_by_slices(tmp_path: Path, load: Any) -> None:
    path = tmp_path / "all.parquet"
    table(0, 200).to_parquet(str(path))
    source = load(path, train_split="train[:100]", validation_split="train[75%:]")
    np.testing.assert_array_equal(source.train.labels, DIGITS.target[:100])
    np.testing.assert_array_equal(source.validation.labels, DIGITS.target[150:200])
    np.testing.assert_array_equal(np.asarray(source.validation.image(3)), PIXELS[153])


def test_one_arrow_file(tmp_path: Path, load: Any) -> None:
    table(0, 120).save_to_disk(str(tmp_path / "kept"))
    (path,) = (tmp_path / "kept").glob("*.arrow")
    source = load(path, train_split="train[:60]", validation_split="train[60:]")
    np.testing.assert_array_equal(source.validation.labels, DIGITS.target[60:120])


def test_the_fingerprint_follows_the_content_not_the_place(tmp_path: Path, load: Any) -> None:
    first, second = load(image_folder(tmp_path / "a")), load(image_folder(tmp_path / "b"))
    assert first.fingerprint == second.fingerprint
    changed = next((tmp_path / "b" / "train").rglob("*.png"))
    changed.write_bytes(png(1500))
    assert load(tmp_path / "b").fingerprint != first.fingerprint


@pytest.mark.parametrize("workers", [0, 2])
def test_it_feeds_a_data_loader(tmp_path: Path, load: Any, workers: int) -> None:
    source = load(image_folder(tmp_path / "pictures"))
    made = ImageDataset(source.train, CONFIG, augmentation="standard", train=True, num_classes=10)
    loader = DataLoader(made, 8, sampler=made.train_sampler(), num_workers=workers)
    batches = list(loader)
    ids = torch.cat([batch["example_id"] for batch in batches])
    assert sorted(ids.tolist()) == list(range(30))
    assert torch.cat([batch["pixel_values"] for batch in batches]).shape == (30, 3, 16, 16)
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == source.train.labels[ids].tolist()
    whole = made.__getitems__([(0, int(index)) for index in ids])
    for item, loaded in zip(whole, torch.cat([batch["pixel_values"] for batch in batches])):
        assert torch.equal(item["pixel_values"], loaded)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named_by_its_path(tmp_path: Path, load: Any, workers: int) -> None:
    source = load(image_folder(tmp_path / "pictures"))
    broken = sorted((tmp_path / "pictures" / "train").rglob("*.png"))[4]
    broken.write_bytes(broken.read_bytes()[:60])
    # One batch: with others on their way, torch takes ten seconds to end its workers after any error.
    loader = DataLoader(ImageDataset(source.train, CONFIG, num_classes=10), 30, num_workers=workers)
    with pytest.raises(PictureError) as error:
        list(loader)
    assert str(broken) in str(error.value)
    assert "Remove or replace this file" in str(error.value)
    assert "Traceback" not in str(error.value)


def test_a_corrupt_image_inside_a_file_is_named_by_split_and_number(tmp_path: Path, load: Any) -> None:
    pictures = [{"bytes": png(index), "path": None} for index in range(60)]
    pictures[13]["bytes"] = b"nothing"
    made = datasets.Dataset.from_dict({"image": pictures, "label": DIGITS.target[:60].tolist()})
    made.to_parquet(str(tmp_path / "all.parquet"))
    source = load(tmp_path / "all.parquet", train_split="train", validation_split="train[:50%]")
    with pytest.raises(PictureError, match=r"example 13 of split train cannot be read"):
        source.train.image(13)


def test_groups_come_from_a_file(tmp_path: Path, load: Any) -> None:
    groups = {name: "round" if name[-1] in "0689" else "straight" for name in NAMES}
    (tmp_path / "groups.json").write_text(json.dumps(groups))
    source = load(image_folder(tmp_path / "pictures"), groups=str(tmp_path / "groups.json"))
    assert source.groups == tuple(groups[name] for name in NAMES)
    with pytest.raises(InputError, match=r"unknown classes digit_x"):
        load(tmp_path / "pictures", groups={**groups, "digit_x": "round"})


def test_a_missing_split_says_which_there_are(tmp_path: Path, load: Any) -> None:
    image_folder(tmp_path / "pictures", ("train", "test"))
    with pytest.raises(
        InputError, match=r"validation_split: 'validation'.*train \(30 examples\), test \(30 examples\)"
    ):
        load(tmp_path / "pictures")
    assert len(load(tmp_path / "pictures", validation_split="test").validation) == 30
    with pytest.raises(InputError, match=r"train_split: 'trian'.*Did you mean 'train'"):
        load(tmp_path / "pictures", train_split="trian")
    with pytest.raises(InputError, match=r"validation_split: 'train\[:oops\]'"):
        load(tmp_path / "pictures", validation_split="train[:oops]")


def test_a_class_without_examples_is_named(tmp_path: Path, load: Any) -> None:
    image_folder(tmp_path / "pictures")
    for path in (tmp_path / "pictures" / "validation" / "digit_3").glob("*.png"):
        path.unlink()
    with pytest.raises(InputError, match=r"validation split: 1 of 10 classes have no example: 'digit_3'"):
        load(tmp_path / "pictures")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("./nowhere", "'./nowhere' does not exist"),
        ("nowhere.parquet", "'nowhere.parquet' does not exist"),
        ("", "data.name: ''"),
    ],
)
def test_a_name_that_leads_nowhere(load: Any, name: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        load(name)


def test_a_name_that_the_hub_cannot_serve(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"'nobody/nothing' cannot be opened.*the Hub could not serve it"):
        load("nobody/nothing")


def test_an_empty_folder_and_a_foreign_file_are_refused(tmp_path: Path, load: Any) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"cannot be opened.*train/<class>/<image>"):
        load(tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("a\n")
    with pytest.raises(InputError, match=r"notes\.txt.*\.parquet or \.arrow"):
        load(tmp_path / "notes.txt")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"cut\.parquet' cannot be opened"):
        load(tmp_path / "cut.parquet")


def test_empty_data_are_refused(tmp_path: Path, load: Any) -> None:
    table(0, 60).to_parquet(str(tmp_path / "all.parquet"))
    with pytest.raises(InputError, match=r"validation split is empty"):
        load(tmp_path / "all.parquet", validation_split="train[:0]")


def test_labels_that_are_missing_or_new_are_refused(tmp_path: Path, load: Any) -> None:
    labels: list[int | None] = DIGITS.target[:60].tolist()
    labels[4] = None
    pictures = [{"bytes": png(index), "path": None} for index in range(60)]
    made = datasets.Dataset.from_dict({"image": pictures, "label": labels})
    made.to_parquet(str(tmp_path / "all.parquet"))
    with pytest.raises(InputError, match=r"1 labels out of range, the first is -1 of example 4"):
        load(tmp_path / "all.parquet", validation_split="train[20:]")
    folder = parquet_folder(tmp_path / "parquet")
    new = table(60, 120).remove_columns("label").add_column("label", ["unheard of"] * 60)
    new.to_parquet(str(folder / "validation-00000-of-00001.parquet"))
    with pytest.raises(InputError, match=r"labels that training does not have: unheard of"):
        load(folder)


def test_columns_are_found_by_type_or_named(tmp_path: Path, load: Any) -> None:
    fine = (DIGITS.target[:60] * 10).tolist()
    folder = parquet_folder(tmp_path / "parquet", labels="names", writer=fine)
    assert load(folder).class_names == tuple(NAMES)
    with pytest.raises(InputError, match=r"column 'lable' in split train.*Did you mean 'label'"):
        load(folder, label_column="lable")
    with pytest.raises(InputError, match=r"label_column: 'image' has type Image.*ClassLabel, text or integers"):
        load(folder, label_column="image")
    with pytest.raises(InputError, match=r"column 'picture' in split train.*image, label, writer"):
        load(folder, image_column="picture")


def test_two_possible_columns_have_to_be_told_apart(tmp_path: Path, load: Any) -> None:
    made = table(0, 60, second=[{"bytes": png(index), "path": None} for index in range(60)])
    made.to_parquet(str(tmp_path / "two.parquet"))
    spec = {"validation_split": "train[:30]"}
    with pytest.raises(InputError, match=r"2 image columns \(image, second\).*data.image_column"):
        load(tmp_path / "two.parquet", **spec)
    assert len(load(tmp_path / "two.parquet", image_column="second", **spec).train) == 60
    renamed = table(0, 60, b=["x", "y"] * 30).rename_column("label", "a")
    renamed.to_parquet(str(tmp_path / "labels.parquet"))
    with pytest.raises(InputError, match=r"2 possible label columns \(a, b\).*data.label_column"):
        load(tmp_path / "labels.parquet", **spec)
    assert load(tmp_path / "labels.parquet", label_column="b", **spec).class_names == ("x", "y")


def test_data_without_pictures_or_labels_list_their_columns(tmp_path: Path, load: Any) -> None:
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}).to_parquet(str(tmp_path / "text.parquet"))
    with pytest.raises(InputError, match=r"no image column among: text \(string\), label \(int64\)"):
        load(tmp_path / "text.parquet", validation_split="train")
    table(0, 60).remove_columns("label").to_parquet(str(tmp_path / "bare.parquet"))
    with pytest.raises(InputError, match=r"no label column among: image"):
        load(tmp_path / "bare.parquet", validation_split="train")

"""CUB-200-2011 in its own format: a folder, the folder around it, the archive; and everything that can be wrong with them."""

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hf_lskd.data import ImageDataset, ImageSource, load_images
from hf_lskd.data.birds import groups_of_birds
from hf_lskd.data.pictures import PictureError
from hf_lskd.errors import InputError
from tests.imagenet_files import jpeg, write

CLASSES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross", "009.Brewer_Blackbird")
EACH = 5  # pictures a class: three for training, two for the test
LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt")
CONFIG: dict[str, Any] = {
    "input_size": (3, 24, 24), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "crop_pct": 1.0,
}  # fmt: skip


def release() -> dict[str, bytes]:
    """{name below CUB_200_2011: content}, as published: ids from 1, paths below images/, boxes with one decimal."""
    files, lists = {}, dict.fromkeys(LISTS, "")
    number = 0
    for label, bird in enumerate(CLASSES, start=1):
        for k in range(EACH):
            number += 1
            name = f"{bird}/{bird.split('.')[1]}_{k:04}_{79600 + number}.jpg"
            files[f"images/{name}"] = jpeg(number, "L" if k == 1 else "RGB", width=40, height=30)
            lists["images.txt"] += f"{number} {name}\n"
            lists["image_class_labels.txt"] += f"{number} {label}\n"
            lists["train_test_split.txt"] += f"{number} {int(k not in (1, 4))}\n"
            lists["bounding_boxes.txt"] += f"{number} {2.0 + k} 3.0 20.0 25.0\n"
    lists["classes.txt"] = "".join(f"{label} {bird}\n" for label, bird in enumerate(CLASSES, start=1))
    return {**files, **{name: text.encode() for name, text in lists.items()}}


RELEASE = release()
OTHERS = {"attributes.txt": b"1 has_bill_shape", "CUB_200_2011/README": b"birds", "CUB_200_2011/parts/parts.txt": b"1 back",
          "./._attributes.txt": b"x", "CUB_200_2011/images/._001": b"x"}  # fmt: skip


def write_folder(folder: Path, files: dict[str, bytes] = RELEASE) -> Path:
    for name, content in files.items():
        write((folder / name).parent, {Path(name).name: content})
    return folder


def archive(files: dict[str, bytes] = RELEASE, prefix: str = "CUB_200_2011/", *more: tarfile.TarInfo) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as packed:
        for name, content in {**OTHERS, **{prefix + name: content for name, content in files.items()}}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
        for member in more:
            packed.addfile(member)
    return stream.getvalue()


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., ImageSource]:
    def loaded(path: Path, **options: Any) -> ImageSource:
        return load_images({"source": "cub200", "path": str(path), **options}, cache_dir=tmp_path / "cache")

    return loaded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "birds" / "CUB_200_2011")


@pytest.fixture
def tgz(tmp_path: Path) -> Path:
    write(tmp_path / "packed", {"CUB_200_2011.tgz": archive()})
    return tmp_path / "packed" / "CUB_200_2011.tgz"


def shown(source: ImageSource) -> list[tuple[int, bytes]]:
    splits = (source.train, source.validation)
    return [(int(split.labels[i]), split.image(i).tobytes()) for split in splits for i in range(len(split))]


# ---- What is read


def test_folder_parent_and_archive_give_the_same_birds(folder: Path, tgz: Path, load: Any) -> None:
    sources = [load(path) for path in (folder, folder.parent, tgz, tgz.parent)]
    for source in sources:
        assert source.class_names == CLASSES
        assert source.train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
        assert source.validation.labels.tolist() == [0] * 2 + [1] * 2 + [2] * 2 + [3] * 2
        assert source.fingerprint == sources[0].fingerprint
        assert shown(source) == shown(sources[0])
    assert [name.decode().split("_")[-2] for name in sources[0].validation.names[:2]] == ["0001", "0004"]
    assert sources[0].validation.image(0).mode == "L"
    assert sources[0].synsets is None


def test_labels_follow_the_ids_whatever_the_order_of_the_lines(folder: Path, load: Any) -> None:
    first = load(folder)
    for name in (*LISTS, "classes.txt"):
        lines = (folder / name).read_text().splitlines()
        (folder / name).write_text("\n".join(lines[1::2] + lines[::2]) + "\n\n")
    again = load(folder)
    assert again.fingerprint == first.fingerprint
    assert shown(again) == shown(first)


def test_groups_are_the_kinds_of_bird_unless_the_recipe_says_otherwise(folder: Path, load: Any) -> None:
    source = load(folder)
    assert source.groups == groups_of_birds(CLASSES)
    assert len(set(source.groups[:3])) == 1
    assert source.groups[3] != source.groups[0]
    assert load(folder, groups=["a", "a", "b", "b"]).groups == ("a", "a", "b", "b")
    with pytest.raises(InputError, match=r"groups with 1 entries.*one a class: 4"):
        load(folder, groups=["a"])


def test_pictures_are_cut_to_the_box_of_their_bird(folder: Path, load: Any) -> None:
    whole, cut = load(folder), load(folder, crop_to_box=True)
    assert cut.train.image(1).size == (20, 25)
    expected = np.asarray(whole.train.image(1))[3:28, 4:24]  # the third picture: x = 4
    np.testing.assert_array_equal(np.asarray(cut.train.image(1)), expected)
    assert whole.fingerprint != cut.fingerprint
    assert load(folder, crop_to_box=True, draft=True).train.image(1).size == (20, 25)


def test_a_box_beyond_the_picture_is_cut_at_its_edge_and_one_outside_is_named(folder: Path, load: Any) -> None:
    lines = (folder / "bounding_boxes.txt").read_text().splitlines()
    lines[0], lines[2] = "1 -3.0 5.0 20.0 900.0", "3 41.0 3.0 20.0 25.0"
    (folder / "bounding_boxes.txt").write_text("\n".join(lines))
    source = load(folder, crop_to_box=True)
    assert source.train.image(0).size == (17, 25)
    with pytest.raises(
        PictureError, match=r"Black_footed_Albatross_0002_79603\.jpg: box \[41\.0, 3\.0, 20\.0, 25\.0\] outside"
    ):
        source.train.image(1)


def test_it_feeds_a_data_loader_with_workers(folder: Path, load: Any) -> None:
    source = load(folder, crop_to_box=True)
    made = ImageDataset(source.train, CONFIG, augmentation="standard", train=True, num_classes=4)
    batch = next(iter(DataLoader(made, 12, sampler=made.train_sampler(), num_workers=1)))
    assert sorted(batch["example_id"].tolist()) == list(range(12))
    alone = made.__getitems__([(0, index) for index in batch["example_id"].tolist()])
    assert torch.equal(batch["pixel_values"], torch.stack([item["pixel_values"] for item in alone]))


def test_an_unreadable_picture_is_named(folder: Path, load: Any) -> None:
    source = load(folder)
    path = sorted((folder / "images" / CLASSES[0]).iterdir())[0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(PictureError, match=r"Black_footed_Albatross_0000_79601\.jpg cannot be read as an image"):
        source.train.image(0)


def test_other_counts_than_the_published_are_warned_of_where_all_200_classes_are(
    tmp_path: Path, load: Any, caplog: pytest.LogCaptureFixture
) -> None:
    birds = [f"{k:03}.Bird_{k}" for k in range(1, 201)]
    names = [f"{bird}/Bird_{k}.jpg" for bird in birds for k in range(2)]
    numbers = range(1, len(names) + 1)
    files = {f"images/{name}": b"" for name in names} | {
        "images.txt": "".join(f"{k} {name}\n" for k, name in zip(numbers, names)).encode(),
        "image_class_labels.txt": "".join(f"{k} {(k + 1) // 2}\n" for k in numbers).encode(),
        "train_test_split.txt": "".join(f"{k} {k % 2}\n" for k in numbers).encode(),
        "classes.txt": "".join(f"{k} {bird}\n" for k, bird in enumerate(birds, start=1)).encode(),
    }
    assert len(load(write_folder(tmp_path / "many", files)).train) == 200
    assert "with 200 and 200 pictures; the published one has 5994 and 5788" in caplog.text


# ---- What is missing or does not fit


def test_missing_pictures_are_counted_and_the_first_is_named(folder: Path, load: Any) -> None:
    for path in sorted((folder / "images" / CLASSES[1]).iterdir())[2:]:
        path.unlink()
    with pytest.raises(InputError, match=r"3 of the 20 pictures in images\.txt are missing, the first is images/002\.Laysan_Albatross/"
                                         r"Laysan_Albatross_0002_79608\.jpg.*17 pictures were found"):  # fmt: skip
        load(folder)
    shutil.rmtree(folder / "images")
    with pytest.raises(InputError, match=r"images: No such file"):
        load(folder)


@pytest.mark.parametrize("name", [*LISTS, "classes.txt"])
def test_a_missing_list_is_named(folder: Path, load: Any, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"{name} cannot be read \(No such file"):
        load(folder, crop_to_box=True)


@pytest.mark.parametrize("name", ["image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt"])
def test_lists_of_different_pictures_are_compared(folder: Path, load: Any, name: str) -> None:
    lines = (folder / name).read_text().splitlines()
    (folder / name).write_text("\n".join(lines[:17]) + "\n")
    with pytest.raises(
        InputError, match=rf"{name} has 17 images and images\.txt 20: 3 missing, the first is 18 \(009\.Brewer"
    ):
        load(folder, crop_to_box=True)
    (folder / name).write_text("\n".join([*lines, lines[0].replace("1 ", "99 ", 1)]) + "\n")
    with pytest.raises(InputError, match=rf"{name} has 21 images and images\.txt 20: 1 more, the first is 99"):
        load(folder, crop_to_box=True)


@pytest.mark.parametrize(
    ("name", "line", "match"),
    [
        ("images.txt", "x y.jpg", r"images\.txt:2: 'x y\.jpg'"),
        ("images.txt", "2", r"images\.txt:2: '2' \(nothing behind the number\)"),
        ("images.txt", "1 again.jpg", r"images\.txt:2: number 1 twice"),
        ("image_class_labels.txt", "2 Albatross", r"image_class_labels\.txt:2"),
        (
            "image_class_labels.txt",
            "2 7",
            r"1 images of a class that classes\.txt lacks, the first is image 2 of class 7",
        ),
        ("train_test_split.txt", "2 2", r"train_test_split\.txt:2: '2 2' \('2' is neither 0 nor 1\)"),
        ("bounding_boxes.txt", "2 1.0 2.0 3.0", r"bounding_boxes\.txt:2: .*not the four numbers of a box"),
        ("bounding_boxes.txt", "2 1.0 2.0 nan 4.0", r"bounding_boxes\.txt:2"),
    ],
)
def test_a_damaged_line_is_named(folder: Path, load: Any, name: str, line: str, match: str) -> None:
    lines = (folder / name).read_text().splitlines()
    lines[1] = line
    (folder / name).write_text("\n".join(lines))
    with pytest.raises(InputError, match=match):
        load(folder, crop_to_box=True)


def test_a_class_of_one_split_only_is_named(folder: Path, load: Any) -> None:
    text = (folder / "train_test_split.txt").read_text().replace("17 0", "17 1").replace("20 0", "20 1")
    (folder / "train_test_split.txt").write_text(text)
    with pytest.raises(InputError, match=r"validation split: 1 of 4 classes have no example: '009\.Brewer_Blackbird'"):
        load(folder)


def test_places_without_birds_say_what_they_hold(tmp_path: Path, load: Any) -> None:
    with pytest.raises(InputError, match=r"nowhere does not exist.*CUB_200_2011\.tgz"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"data.path: None"):
        load_images({"source": "cub200"})
    write(tmp_path / "cats", {"cat.jpg": b""})
    with pytest.raises(InputError, match=r"cats is not CUB_200_2011 and has none \(it holds: cat\.jpg\)"):
        load(tmp_path / "cats")
    with pytest.raises(InputError, match=r"crop_to_box: 'yes'.*true or false"):
        load(write_folder(tmp_path / "CUB_200_2011"), crop_to_box="yes")


# ---- The archive


def test_the_archive_is_unpacked_once_and_only_what_is_needed(tmp_path: Path, tgz: Path, load: Any) -> None:
    first = load(tgz)
    (kept,) = (tmp_path / "cache" / "cub200").iterdir()
    assert sorted(str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()) == sorted(RELEASE)
    state = tgz.stat()
    tgz.write_bytes(bytes(state.st_size))
    os.utime(tgz, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert load(tgz).fingerprint == first.fingerprint  # not read again
    os.utime(tgz, ns=(0, 0))
    with pytest.raises(InputError, match=r"is damaged, cut off or no \.tgz"):
        load(tgz)


def test_names_that_begin_with_a_dot_and_a_slash_are_the_same(tgz: Path, load: Any) -> None:
    tgz.write_bytes(archive(prefix="./CUB_200_2011/"))
    assert len(load(tgz).train) == 12


@pytest.mark.parametrize(
    ("name", "kind", "match"),
    [
        ("CUB_200_2011/images/../../../evil.jpg", tarfile.REGTYPE, "leads out of the folder"),
        ("/CUB_200_2011/images/a/b.jpg", tarfile.REGTYPE, "absolute name"),
        ("CUB_200_2011/images/a/..\\..\\b.jpg", tarfile.REGTYPE, "leads out of the folder"),
        ("CUB_200_2011/images/link", tarfile.SYMTYPE, "is a link to '/etc'"),
        ("CUB_200_2011/images/a/b.jpg", tarfile.LNKTYPE, "is a link to '/etc'"),
        ("CUB_200_2011/images/a/b.jpg", tarfile.CHRTYPE, "neither a file nor a folder"),
        ("CUB_200_2011/images/a/b.jpg", tarfile.FIFOTYPE, "neither a file nor a folder"),
        ("CUB_200_2011/images.txt", tarfile.REGTYPE, r"a member comes twice \(.*images\.txt\)"),
        ("CUB_200_2011/images.txt/a.jpg", tarfile.SYMTYPE, "is a link"),
    ],
)
def test_a_hostile_archive_is_refused_and_nothing_of_it_stays(
    tmp_path: Path, tgz: Path, load: Any, name: str, kind: bytes, match: str
) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc"
    tgz.write_bytes(archive(RELEASE, "CUB_200_2011/", member))
    with pytest.raises(InputError, match=match):
        load(tgz)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["CUB_200_2011.tgz"]


def test_a_bomb_is_refused_by_what_it_unpacks_to(tmp_path: Path, tgz: Path, load: Any) -> None:
    tgz.write_bytes(archive({**RELEASE, "images/a/b.jpg": bytes(70 << 20)}))
    with pytest.raises(InputError, match=r"unpacks to over 64 MiB.*at most 8 times its size"):
        load(tgz)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["CUB_200_2011.tgz"]


@pytest.mark.parametrize("kept", [0, 10, 0.5, -8, -1])
def test_an_archive_that_is_cut_off_is_refused_and_nothing_is_kept(
    tmp_path: Path, tgz: Path, load: Any, kept: float
) -> None:
    content = tgz.read_bytes()
    tgz.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match=r"CUB_200_2011\.tgz is damaged, cut off or no \.tgz"):
        load(tgz)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["CUB_200_2011.tgz"]


def test_an_archive_of_something_else_lacks_the_lists(tgz: Path, load: Any) -> None:
    tgz.write_bytes(archive({}))
    with pytest.raises(InputError, match=r"images\.txt cannot be read"):
        load(tgz)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, tgz: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match=r"cannot be unpacked into .*HF_LSKD_CACHE"):
        load_images({"source": "cub200", "path": str(tgz)}, cache_dir=tmp_path / "file" / "cache")

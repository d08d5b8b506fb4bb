"""IDX files: read as the format says, refused with what was expected and what was found."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from hf_lskd.data import load_images
from hf_lskd.data.idx import balanced_subset, read_idx
from hf_lskd.errors import InputError

DIGITS = load_digits()
PIXELS = (DIGITS.images * 15).astype(np.uint8)
LABELS = DIGITS.target.astype(np.uint8)


def idx_bytes(array: np.ndarray, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_folder(folder: Path, *, gz: bool = False, n: int = 200) -> Path:
    arrays = {
        "train-images-idx3-ubyte": PIXELS[:n],
        "train-labels-idx1-ubyte": LABELS[:n],
        "t10k-images-idx3-ubyte": PIXELS[n : n + 100],
        "t10k-labels-idx1-ubyte": LABELS[n : n + 100],
    }
    for name, array in arrays.items():
        content = idx_bytes(array)
        (folder / (name + (".gz" if gz else ""))).write_bytes(gzip.compress(content) if gz else content)
    return folder


def load(folder: Path, **options: Any) -> Any:
    return load_images({"source": "idx", "path": str(folder), **options})


@pytest.mark.parametrize("gz", [False, True])
def test_the_four_files_become_two_splits(tmp_path: Path, gz: bool) -> None:
    source = load(write_folder(tmp_path, gz=gz))
    assert (len(source.train), len(source.validation)) == (200, 100)
    np.testing.assert_array_equal(source.train.pixels, PIXELS[:200])
    np.testing.assert_array_equal(source.validation.labels, LABELS[200:300])
    assert source.class_names == tuple("0123456789")
    assert source.groups is None
    assert source.train.image(3).mode == "L"


def test_packed_and_plain_files_have_one_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    plain, packed = load(write_folder(tmp_path / "a")), load(write_folder(tmp_path / "b", gz=True))
    assert plain.fingerprint == packed.fingerprint
    assert load(write_folder(tmp_path / "a", n=190)).fingerprint != plain.fingerprint


@pytest.mark.parametrize("as_file", [False, True])
def test_names_and_groups_come_from_the_recipe(tmp_path: Path, as_file: bool) -> None:
    names = [f"digit {k}" for k in range(10)]
    groups: Any = {name: "even" if k % 2 == 0 else "odd" for k, name in enumerate(names)}
    if as_file:
        (tmp_path / "groups.json").write_text(
            '["even", "odd", "even", "odd", "even", "odd", "even", "odd", "even", "odd"]'
        )
        groups = str(tmp_path / "groups.json")
    source = load(write_folder(tmp_path), class_names=names, groups=groups)
    assert source.class_names == tuple(names)
    assert source.groups == ("even", "odd") * 5


def test_a_subset_takes_the_first_examples_of_each_class(tmp_path: Path) -> None:
    source = load(write_folder(tmp_path), max_train=50, max_validation=20)
    assert np.bincount(source.train.labels).tolist() == [5] * 10
    assert np.bincount(source.validation.labels).tolist() == [2] * 10
    for label in range(10):
        wanted = PIXELS[:200][LABELS[:200] == label][:5]
        np.testing.assert_array_equal(source.train.pixels[source.train.labels == label], wanted)


def test_a_small_class_leaves_room_for_the_others() -> None:
    labels = np.array([0, 0, 0, 0, 1, 0, 0])
    assert balanced_subset(labels, 4, 2).tolist() == [0, 1, 2, 4]
    assert balanced_subset(labels, 100, 2).tolist() == list(range(7))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", r"\(none\).*00 00 08"),
        (b"\x89PNG\r\n\x1a\n", "89 50 4e 47.*IDX"),
        (idx_bytes(np.zeros((2, 2), ">i4"), 0x0C), "int32 values.*unsigned bytes"),
        (bytes([0, 0, 8, 3, 0, 0]), "6 bytes.*16 bytes of header for 3 dimensions"),
        (idx_bytes(PIXELS[:4])[:-1], "271 bytes.*272 bytes for 4×8×8.*cut or damaged"),
        (idx_bytes(PIXELS[:4]) + b"x", "273 bytes.*272 bytes.*extra"),
        (gzip.compress(idx_bytes(PIXELS[:4]), mtime=0)[:-20], "cannot be unpacked after .* bytes.*whole gzip file"),
        (gzip.compress(idx_bytes(PIXELS[:4])[:100], mtime=0), r"100 bytes \(unpacked\).*272"),
    ],
)
def test_a_damaged_file_is_named_with_expected_and_found_bytes(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(InputError, match=match) as error:
        read_idx(path)
    assert str(path) in str(error.value)


def test_every_cut_of_a_file_is_noticed(tmp_path: Path) -> None:
    for content in (idx_bytes(PIXELS[:1]), gzip.compress(idx_bytes(PIXELS[:1]))):
        for length in range(len(content)):
            path = tmp_path / "cut"
            path.write_bytes(content[:length])
            with pytest.raises(InputError):
                read_idx(path)


def test_missing_folder_and_missing_file_say_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a folder.*IDX files"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"data.path: None.*train-images-idx3-ubyte"):
        load_images({"source": "idx"})
    (write_folder(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match=r"no t10k-labels-idx1-ubyte\[\.gz\] \(it holds: t10k-images.*plain or .gz"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "array", "match"),
    [
        ("train-labels-idx1-ubyte", LABELS[:199], "200 images .* 199 labels"),
        ("train-labels-idx1-ubyte", PIXELS[:200], "images-idx3-ubyte has 3 dimensions, train-labels-idx1-ubyte 3"),
        ("train-labels-idx1-ubyte", LABELS[:200] % 5, "validation split: .* labels out of range.*0 to 4 for 5 classes"),
        ("t10k-labels-idx1-ubyte", LABELS[200:300] % 9, "validation split: 1 of 10 classes have no example: '9'"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, name: str, array: np.ndarray, match: str) -> None:
    (write_folder(tmp_path) / name).write_bytes(idx_bytes(array))
    with pytest.raises(InputError, match=match):
        load(tmp_path)


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(PIXELS[:0]))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS[:0]))
    with pytest.raises(InputError, match=r"validation split is empty"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_train": 9}, "max_train: 9.*at least 10"),
        ({"max_validation": "all"}, "max_validation: 'all'.*whole number"),
        ({"class_names": ["a", "b"]}, "labels out of range.*2 classes"),
        ({"class_names": "abc"}, "class_names: 'abc'.*list of names"),
        ({"class_names": ["a"] * 10}, "given twice: a"),
        ({"groups": ["a", "b"]}, "2 entries.*one a class: 10"),
        ({"groups": {"0": "x"}}, "no group for 1, 2"),
        ({"groups": "nowhere.json"}, r"nowhere\.json.*readable JSON"),
        ({"groups": 3}, "groups: 3.*a list, a mapping"),
        ({"max_trian": 50}, "max_trian.*Did you mean 'max_train'"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        load(write_folder(tmp_path), **options)

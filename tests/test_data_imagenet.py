"""ImageNet as a tree, as the official tar files and as a dataset: the same pictures, and what is said of a wrong place."""

import os
import pickle
import re
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from hf_lskd.data import ImageDataset, ImageSource, load_images
from hf_lskd.data.pictures import PictureError
from hf_lskd.data.synsets import human_names, imagenet_names, synsets_of
from hf_lskd.errors import InputError
from tests import imagenet_files as files
from tests.imagenet_files import NAMES, SYNSETS

CONFIG: dict[str, Any] = {
    "input_size": (3, 24, 24), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "crop_pct": 1.0,
}  # fmt: skip
TRAIN, VALIDATION, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each form; not to be written to."""
    folder = tmp_path_factory.mktemp("imagenet")
    return {"tree": files.write_tree(folder / "tree"), "tars": files.write_tars(folder / "tars")}


@pytest.fixture
def tree(tmp_path: Path, places: dict[str, Path]) -> Path:
    return shutil.copytree(places["tree"], tmp_path / "tree")


@pytest.fixture
def tars(tmp_path: Path, places: dict[str, Path]) -> Path:
    return shutil.copytree(places["tars"], tmp_path / "tars")


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., ImageSource]:
    def loaded(path: Path, **options: Any) -> ImageSource:
        data = {"source": "imagenet", "path": str(path), "subset": True, **options}
        return load_images(data, cache_dir=tmp_path / "cache")

    return loaded


def shown(source: ImageSource, split: str) -> list[tuple[str, str, bytes]]:
    """(synset, class name, pixels) of every example."""
    images = getattr(source, split)
    assert source.synsets is not None
    return [
        (source.synsets[label], source.class_names[label], np.asarray(images.image(i).convert("RGB")).tobytes())
        for i, label in enumerate(images.labels.tolist())
    ]


# ---- The same data in every form


def test_tree_tars_and_dataset_have_the_same_classes_labels_and_pictures(
    places: dict[str, Path], tmp_path: Path, load: Any
) -> None:
    tree, tars = load(places["tree"]), load(places["tars"])
    dataset = load_images({"source": "dataset", "name": str(places["tree"])}, cache_dir=tmp_path / "cache")
    for source in (tree, tars, dataset):
        assert source.synsets == SYNSETS
        assert source.class_names == NAMES
    for split, each in (("train", files.TRAIN_EACH), ("validation", files.VALIDATION_EACH)):
        assert len(getattr(tree, split)) == each * len(SYNSETS)
        assert shown(tree, split) == shown(tars, split)
        assert sorted(shown(tree, split)) == sorted(shown(dataset, split))
    assert tree.fingerprint == tars.fingerprint
    assert tree.train.pixels is None


def test_labels_and_pictures_are_those_of_torchvisions_image_folder(places: dict[str, Path], load: Any) -> None:
    source, theirs = load(places["tree"]), ImageFolder(str(places["tree"] / "train"))
    assert theirs.classes == list(source.synsets)
    assert [label for _, label in theirs.samples] == source.train.labels.tolist()
    for index in (0, 1, 2, 17, 39):
        np.testing.assert_array_equal(
            np.asarray(theirs[index][0]), np.asarray(source.train.image(index).convert("RGB"))
        )


def test_validation_labels_of_the_tars_are_the_devkits(places: dict[str, Path], load: Any) -> None:
    source = load(places["tars"])
    order = files.validation_order()
    for index, name in enumerate(source.validation.names.tolist()):
        number = int(re.findall(r"\d{8}", name.decode())[-1])
        assert source.synsets[source.validation.labels[index]] == order[number - 1]


def test_grey_cmyk_and_png_under_the_name_of_a_jpeg_are_read(tree: Path, load: Any) -> None:
    Image.fromarray(files.picture(1)).save(tree / "train" / SYNSETS[0] / f"{SYNSETS[0]}_1.JPEG", "png")
    source = load(tree)
    modes = [source.train.image(i).mode for i in range(5)]  # by name: _1 (PNG), _10026, _1200 (CMYK), _27 (grey), _9
    assert modes == ["RGB", "RGB", "RGB", "L", "RGB"]
    np.testing.assert_array_equal(np.asarray(source.train.image(0)), files.picture(1))
    cmyk = np.asarray(source.train.image(2)).astype(float)
    assert np.abs(cmyk - files.picture(2)).mean() < 12  # what the way through CMYK and JPEG changes


def test_a_class_order_other_than_the_synsets_is_put_right_in_a_dataset(tmp_path: Path) -> None:
    import datasets

    given = [SYNSETS[k] for k in (7, 2, 5)]
    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": files.jpeg(k), "path": None} for k in range(6)], "label": [0, 1, 2, 0, 1, 2]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=given)}),
    )
    rows.to_parquet(str(tmp_path / "all.parquet"))
    data = {"source": "dataset", "name": str(tmp_path / "all.parquet"), "validation_split": "train"}
    source = load_images(data, cache_dir=tmp_path / "cache")
    assert source.synsets == tuple(sorted(given))
    assert [source.synsets[label] for label in source.train.labels] == given * 2


# ---- Names


def test_names_are_timms_first_lemmas_in_the_order_of_the_synsets_and_all_different() -> None:
    from timm.data import ImageNetInfo

    info, names = ImageNetInfo(), imagenet_names()
    assert list(names) == sorted(names) == [info.index_to_label_name(k) for k in range(1000)]
    assert len(set(names.values())) == 1000
    for k in range(1000):
        name = list(names.values())[k]
        assert info.index_to_description(k).split(",")[0] == name.removesuffix(f" ({list(names)[k]})")
    assert human_names(["n02012849", "n03126707"]) == ("crane (n02012849)", "crane (n03126707)")
    assert human_names(["n03710637", "n03710721"]) == ("maillot (n03710637)", "maillot (n03710721)")


def test_synsets_are_known_by_id_or_by_all_lemmas_in_order_and_not_guessed() -> None:
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    lemmas = [info.index_to_description(k) for k in range(1000)]
    lemmas[517] = "crane2"  # a list of classes has no name twice
    assert synsets_of(lemmas) == tuple(imagenet_names())
    assert synsets_of(SYNSETS[::-1]) == SYNSETS[::-1]
    assert synsets_of(lemmas[:999]) is None
    assert synsets_of([lemmas[1], lemmas[0], *lemmas[2:]]) is None
    assert synsets_of(["n00000001", *SYNSETS]) is None
    assert synsets_of(["cat", "dog"]) is None
    assert synsets_of([]) is None


# ---- Subsets


def test_the_first_pictures_of_each_class_are_kept(places: dict[str, Path], load: Any) -> None:
    for form in ("tree", "tars"):
        source = load(places[form], max_train=25, max_validation=10)
        assert sorted(np.bincount(source.train.labels).tolist()) == [2] * 5 + [3] * 5
        assert np.bincount(source.validation.labels).tolist() == [1] * 10
        whole = load(places[form])
        assert source.train.names[0] == whole.train.names[0]
        assert source.train.image(0).tobytes() == whole.train.image(0).tobytes()
        with pytest.raises(InputError, match=r"max_train: 9.*at least 10"):
            load(places[form], max_train=9)


@pytest.mark.parametrize("form", ["tree", "tars"])
def test_a_part_has_to_be_asked_for(places: dict[str, Path], load: Any, form: str) -> None:
    with pytest.raises(InputError) as error:
        load(places[form], subset=False)
    for part in ("10 of 1,000 classes", "missing: n01440764, n01443537", "40 of 1,281,167 pictures in train",
                 "20 of 50,000 pictures in validation", "`subset: true`"):  # fmt: skip
        assert part in str(error.value)


def test_all_classes_with_too_few_pictures_are_no_whole(tmp_path: Path, load: Any) -> None:
    for synset in imagenet_names():
        for split in ("train", "val"):
            files.write(tmp_path / "tree" / split / synset, {f"{split}_{synset}.JPEG": b""})
    with pytest.raises(InputError, match=r"1,000 of 1,000 classes; 1,000 of 1,281,167 pictures in train; fewer than 732 in "
                                         r"1000 classes: n01440764 \(1\)"):  # fmt: skip
        load(tmp_path / "tree", subset=False)


# ---- Wrong places


def test_a_class_of_one_split_only_is_named_with_the_counts(tree: Path, load: Any) -> None:
    shutil.rmtree(tree / "val" / SYNSETS[3])
    with pytest.raises(InputError, match=rf"1 classes in train and not in val: {SYNSETS[3]}; found 40 pictures of 10 classes "
                                         r"in train and 18 pictures of 9 classes in validation"):  # fmt: skip
        load(tree)
    shutil.rmtree(tree / "train" / SYNSETS[3])
    shutil.rmtree(tree / "train" / SYNSETS[5])
    with pytest.raises(InputError, match=rf"1 classes in val and not in train: {SYNSETS[5]}"):
        load(tree)


def test_a_class_without_pictures_and_a_folder_that_is_no_synset_are_named(tree: Path, load: Any) -> None:
    for path in (tree / "val" / SYNSETS[2]).iterdir():
        path.rename(path.with_suffix(".part"))
    with pytest.raises(InputError, match=rf"1 classes without a picture in validation: {SYNSETS[2]}"):
        load(tree)
    (tree / "train" / "n00000001").mkdir()
    with pytest.raises(InputError, match=r"no synset of ImageNet-1k: n00000001"):
        load(tree)


def test_hidden_files_and_folders_are_left_out(tree: Path, load: Any) -> None:
    (tree / "train" / ".cache").mkdir()
    (tree / "train" / SYNSETS[0] / "._n01728572_27.JPEG").write_bytes(b"")
    assert len(load(tree).train) == 40


def test_the_held_out_folder_may_be_called_validation_but_not_both(tree: Path, load: Any) -> None:
    (tree / "val").rename(tree / "validation")
    assert len(load(tree).validation) == 20
    (tree / "val").mkdir()
    with pytest.raises(InputError, match="has val and validation"):
        load(tree)


def test_pictures_that_are_not_sorted_into_classes_are_counted(tree: Path, load: Any) -> None:
    shutil.rmtree(tree / "val")
    files.write(tree / "val", files.validation_files(files.validation_order()))
    with pytest.raises(InputError, match=r"val has no class folders and 20 pictures.*sort them into folders"):
        load(tree)


def test_places_that_are_neither_say_what_they_hold(tmp_path: Path, tree: Path, tars: Path, load: Any) -> None:
    with pytest.raises(InputError, match=r"nowhere is not a folder.*train/<synset>"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"data.path: None"):
        load_images({"source": "imagenet"})
    shutil.rmtree(tree / "val")
    with pytest.raises(InputError, match=r"has no folder val \(it holds: train\)"):
        load(tree)
    (tars / DEVKIT).unlink()
    with pytest.raises(InputError, match=rf"lacks {DEVKIT}"):
        load(tars)
    (tars / VALIDATION).unlink()
    with pytest.raises(InputError, match=rf"lacks {VALIDATION} and {DEVKIT}"):
        load(tars)


def test_options_of_another_kind_are_refused(places: dict[str, Path], load: Any) -> None:
    with pytest.raises(InputError, match=r"subset: 'yes'.*true or false"):
        load(places["tree"], subset="yes")
    with pytest.raises(InputError, match=r"draft: 2.*true or false"):
        load(places["tree"], draft=2)
    with pytest.raises(InputError, match=r"data\.sbset.*Did you mean 'subset'"):
        load(places["tree"], sbset=True)


# ---- Damaged and hostile tar files


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("name", [TRAIN, VALIDATION, DEVKIT])
def test_a_cut_file_is_refused_and_no_index_is_kept(
    tmp_path: Path, tars: Path, load: Any, name: str, share: float
) -> None:
    content = (tars / name).read_bytes().rstrip(b"\0")  # behind the end mark are zeros that nobody misses
    (tars / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=rf"{name}.* damaged"):
        load(tars)
    assert not list((tmp_path / "cache").rglob("*.npz"))


def headers(content: bytes) -> list[int]:
    """Offsets of the headers in a train tar: of the outer and the inner archives."""
    return [at for at in range(0, len(content), 512) if content[at + 257 : at + 262] == b"ustar"]


def test_every_damaged_header_is_noticed(tars: Path, load: Any) -> None:
    """tarfile alone takes one for the end of the archive, and the rest of the class would be lost in silence."""
    content = (tars / TRAIN).read_bytes()
    places = headers(content)
    assert len(places) == 10 + 40
    for at in places[:7]:
        changed = bytearray(content)
        changed[at + 148] ^= 1  # in the checksum
        (tars / TRAIN).write_bytes(changed)
        with pytest.raises(InputError, match=rf"{TRAIN}.*damaged"):
            load(tars)


def test_an_inner_archive_without_its_end_does_not_read_on_into_the_next(tars: Path, load: Any) -> None:
    inner = {f"{synset}.tar": files.tar(pictures) for synset, pictures in files.train_files().items()}
    end = headers(inner[f"{SYNSETS[0]}.tar"])[-1]
    inner[f"{SYNSETS[0]}.tar"] = inner[f"{SYNSETS[0]}.tar"][:end]
    (tars / TRAIN).write_bytes(files.tar(inner))
    with pytest.raises(InputError, match=rf"{SYNSETS[0]}\.tar is damaged or cut off"):
        load(tars)


def test_members_that_do_not_belong_are_named(tars: Path, load: Any) -> None:
    (tars / TRAIN).write_bytes(files.tar({"n01440764.tar": files.tar({}), "notes.txt": b"x"}))
    with pytest.raises(InputError, match=r"member 'notes\.txt'.*n01440764\.tar"):
        load(tars)
    twice = files.tar({f"{folder}/{SYNSETS[0]}.tar": files.tar({}) for folder in "ab"})
    (tars / TRAIN).write_bytes(twice)
    with pytest.raises(InputError, match=rf"'b/{SYNSETS[0]}\.tar' comes twice"):
        load(tars)


def test_a_link_in_an_archive_is_refused(tars: Path, load: Any) -> None:
    with tarfile.open(tars / VALIDATION, "w") as archive:
        member = tarfile.TarInfo("ILSVRC2012_val_00000001.JPEG")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(InputError, match=r"is a link to '/etc/passwd'"):
        load(tars)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"truth": None}, r"no data/ILSVRC2012_validation_ground_truth\.txt"),
        ({"meta": None}, r"no data/meta\.mat"),
        ({"meta": b"MATLAB 5.0" + bytes(300)}, r"meta\.mat cannot be read"),
        ({"truth": b"1\n2\nthree\n"}, r"ground_truth\.txt: .*three"),
        ({"truth": b"1\n2\n777\n"}, r"ground_truth\.txt: 777"),
        ({"truth": files.truth(files.validation_order()) + b"1\n"},
         r"has 20 pictures and lacks 1, the first is ILSVRC2012_val_00000021\.JPEG.*the 21 of the devkit"),
        ({"truth": files.truth(files.validation_order()[:-1])}, r"member 'ILSVRC2012_val_00000020\.JPEG'.*to 00000019"),
    ],
)  # fmt: skip
def test_a_devkit_that_does_not_fit_is_named(
    tars: Path, load: Any, change: dict[str, bytes | None], match: str
) -> None:
    (tars / DEVKIT).write_bytes(files.devkit(**change))
    with pytest.raises(InputError, match=match):
        load(tars)


def test_missing_double_and_foreign_validation_pictures_are_named(tars: Path, load: Any) -> None:
    pictures = files.validation_files(files.validation_order())
    fewer = {name: content for name, content in pictures.items() if not name.endswith(("3.JPEG", "7.JPEG"))}
    (tars / VALIDATION).write_bytes(files.tar(fewer))
    with pytest.raises(InputError, match=r"has 16 pictures and lacks 4, the first is ILSVRC2012_val_00000003\.JPEG"):
        load(tars)
    (tars / VALIDATION).write_bytes(files.tar({**pictures, "again/ILSVRC2012_val_00000005.JPEG": b"x"}))
    with pytest.raises(InputError, match=r"has 00000005 twice"):
        load(tars)
    (tars / VALIDATION).write_bytes(files.tar({**pictures, "cat.JPEG": b"x"}))
    with pytest.raises(InputError, match=r"member 'cat\.JPEG'"):
        load(tars)


# ---- The index


def test_the_index_of_the_tars_is_kept_until_a_file_changes(tars: Path, load: Any) -> None:
    first, path = load(tars), tars / TRAIN
    state, content = path.stat(), bytearray(path.read_bytes())
    content[headers(bytes(content))[3] + 148] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert load(tars).fingerprint == first.fingerprint  # no header was read again
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    with pytest.raises(InputError, match="damaged"):
        load(tars)


def test_the_index_of_a_tree_is_kept_until_a_class_folder_changes(tree: Path, load: Any) -> None:
    folder = tree / "train" / SYNSETS[0]
    for place in tree.rglob("n*"):
        if place.is_dir():
            os.utime(place, (1e9, 1e9))
    assert len(load(tree).train) == 40
    files.write(folder, {f"{SYNSETS[0]}_2.JPEG": files.jpeg(3)})
    os.utime(folder, (1e9, 1e9))
    assert len(load(tree).train) == 40  # no folder was read again
    os.utime(folder, (1e9, 1e9 + 1))
    assert len(load(tree).train) == 41


def test_a_tree_that_is_still_being_unpacked_leaves_no_index(tmp_path: Path, tree: Path, load: Any) -> None:
    folder = tree / "train" / SYNSETS[0]
    now = time.time()
    for place in tree.rglob("n*"):
        if place.is_dir():
            os.utime(place, (now, now))
    assert len(load(tree).train) == 40
    assert not list((tmp_path / "cache").rglob("*.npz"))
    files.write(folder, {f"{SYNSETS[0]}_2.JPEG": files.jpeg(3)})
    os.utime(folder, (now, now))  # as a clock of whole seconds would leave it
    assert len(load(tree).train) == 41


def test_a_damaged_index_is_made_again(tmp_path: Path, tars: Path, load: Any, caplog: pytest.LogCaptureFixture) -> None:
    first = load(tars)
    (kept,) = (tmp_path / "cache" / "imagenet").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert load(tars).fingerprint == first.fingerprint
    assert "made again" in caplog.text


def test_the_fingerprint_follows_names_and_contents(tree: Path, places: dict[str, Path], load: Any) -> None:
    first = load(places["tree"]).fingerprint
    assert load(tree).fingerprint == first  # not the place
    assert load(tree, draft=True).fingerprint != first
    assert load(tree, max_train=20).fingerprint != first
    path = tree / "train" / SYNSETS[4] / f"{SYNSETS[4]}_27.JPEG"
    content = path.read_bytes()
    path.write_bytes(files.jpeg(77))
    assert load(tree).fingerprint != first
    path.write_bytes(content)
    assert load(tree).fingerprint == first
    path.rename(path.with_name(f"{SYNSETS[4]}_28.JPEG"))
    assert load(tree).fingerprint != first


# ---- Reading in workers


@pytest.mark.parametrize("form", ["tree", "tars"])
def test_workers_read_the_same_pictures_as_one_process(places: dict[str, Path], load: Any, form: str) -> None:
    made = ImageDataset(load(places[form]).train, CONFIG, augmentation="standard", train=True, num_classes=10)
    made.images.image(0)  # a handle is open before the workers start
    batches = list(DataLoader(made, 5, sampler=made.train_sampler(), num_workers=2))
    ids = torch.cat([batch["example_id"] for batch in batches]).tolist()
    assert sorted(ids) == list(range(40))
    alone = made.__getitems__([(0, index) for index in ids])
    for item, loaded in zip(alone, torch.cat([batch["pixel_values"] for batch in batches])):
        assert torch.equal(item["pixel_values"], loaded)


def test_a_split_of_tars_can_be_sent_to_a_worker_that_was_spawned(places: dict[str, Path], load: Any) -> None:
    images = load(places["tars"]).train
    before = images.image(5).tobytes()
    sent = pickle.loads(pickle.dumps(images))
    assert sent.image(5).tobytes() == before


def test_an_archive_that_changes_while_it_is_used_is_noticed(tars: Path, load: Any) -> None:
    images = load(tars).validation
    sent = pickle.loads(pickle.dumps(images))  # as a worker that opens the file later
    os.utime(tars / VALIDATION, ns=(0, 0))
    with pytest.raises(PictureError, match=rf"{VALIDATION} has changed since it was opened"):
        sent.image(0)


def test_an_unreadable_picture_of_a_tree_is_named(tree: Path, load: Any) -> None:
    path = tree / "train" / SYNSETS[1] / f"{SYNSETS[1]}_9.JPEG"
    source = load(tree)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(
        PictureError, match=rf"{SYNSETS[1]}_9\.JPEG cannot be read as an image.*Remove or replace"
    ) as error:
        list(DataLoader(ImageDataset(source.train, CONFIG, num_classes=10), 40))
    assert "Traceback" not in str(error.value)
    path.unlink()
    with pytest.raises(PictureError, match=rf"{SYNSETS[1]}_9\.JPEG: No such file"):
        list(DataLoader(ImageDataset(source.train, CONFIG, num_classes=10), 40))


def test_an_unreadable_picture_in_a_tar_is_named_with_its_archive(tars: Path, load: Any) -> None:
    broken = files.train_files()
    broken[SYNSETS[1]][f"{SYNSETS[1]}_9.JPEG"] = files.jpeg(103)[:200]
    (tars / TRAIN).write_bytes(files.train_tar(broken))
    source = load(tars)
    with pytest.raises(PictureError, match=rf"{TRAIN}: {SYNSETS[1]}/{SYNSETS[1]}_9\.JPEG cannot be read as an image"):
        list(DataLoader(ImageDataset(source.train, CONFIG, num_classes=10), 40))

"""k versions of each augmented image: training on a teacher's stored logits of them is training on the teacher."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from hf_lskd.errors import InputError, RecipeErrors
from hf_lskd.recipe import recipe_from_dict
from hf_lskd.study.runner import run_study
from hf_lskd.teacher_cache import META, file_checksum
from tests.conftest import RESNET, assert_same_weights, weights
from tests.resume_run import EXAMPLES, STEPS_PER_EPOCH, make_trainer
from tests.test_lockstep import alone, assert_same_studies, record, student, students
from tests.test_resume import assert_same_run, resumed_run, whole_run
from tests.tiny_study import values, write_images

K, FIVE = 2, 5  # versions; epochs, of 6 steps each
STORED = {"augmentation_versions": K, "architecture": RESNET, "ema": None}


class Weights(TrainerCallback):
    """The student's weights at the end of each epoch."""

    def __init__(self) -> None:
        self.of: list[dict[str, Tensor]] = []

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.of.append(weights(model))


def by_epoch(folder: Path, **settings: Any) -> tuple[list[dict[str, Tensor]], Any]:
    """The weights after each of five epochs, and the trainer."""
    seen = Weights()
    usual = {"save_strategy": "no", "eval_strategy": "no", "num_train_epochs": FIVE, "callbacks": [seen]}
    trainer = make_trainer(folder, **{**STORED, **usual, **settings})
    trainer.train()
    return seen.of, trainer


def stored(trainer: Any) -> Tensor:
    """All versions of all training images of a trainer, shuffled: versions and images are mixed within a batch."""
    data = trainer.train_dataset
    keys = [(epoch, index) for epoch in range(K) for index in range(len(data))]
    images = torch.stack([item["pixel_values"] for item in data.__getitems__(keys)])
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]


def shuffle(folder: Path) -> None:
    """Bring the rows of a cache into another order, as one whose images came in another order would be."""
    arrays = {name: np.load(folder / f"{name}.npy") for name in ("keys", "values")}
    order = np.random.default_rng(0).permutation(len(arrays["keys"]))
    meta = json.loads((folder / META).read_text())
    for name, rows in arrays.items():
        np.save(folder / f"{name}.npy", rows[order])
        meta["checksums"][f"{name}.npy"] = file_checksum(folder / f"{name}.npy")
    (folder / META).write_text(json.dumps(meta))


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """The weights after each epoch of a student whose teacher is asked at each step."""
    torch.set_num_threads(1)
    return by_epoch(tmp_path_factory.mktemp("asked"))[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_epoch_on_stored_versions_is_to_the_last_bit_that_of_a_teacher_that_is_asked(
    workers: int, asked: list, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "hf_lskd"):
        filled, _ = by_epoch(tmp_path / "filled", workers=workers, teacher_cache=str(tmp_path / "cache"))
    assert f"{K * EXAMPLES} items of 5 of 5 classes" in caplog.text
    assert len({weights["timm_model.fc.weight"].numpy().tobytes() for weights in filled}) == FIVE
    for one, other in zip(filled, asked, strict=True):
        assert_same_weights(one, other)


def test_versions_that_are_read_back_are_each_its_own_also_from_a_shuffled_cache(asked: list, tmp_path: Path) -> None:
    _, filling = by_epoch(tmp_path / "filling", num_train_epochs=K, teacher_cache=str(tmp_path / "cache"))
    images = stored(filling)
    assert len(images.flatten(1).unique(dim=0)) == K * EXAMPLES
    for batch in images.split(7):
        given = {"pixel_values": batch}
        assert torch.equal(filling.teacher.logits(given), filling.teacher.compute(given)[0])
    shuffle(filling.teacher.store.folder)
    seen = Weights()
    settings = {**STORED, "save_strategy": "no", "eval_strategy": "no", "num_train_epochs": FIVE}
    reading = make_trainer(tmp_path / "read", **settings, callbacks=[seen], teacher_cache=str(tmp_path / "cache"))
    reading.teacher.reported = True  # any answer of the teacher's own would be wrong from here on
    reading.teacher.members[0].forward = lambda *a, **k: pytest.fail("the teacher was run")
    reading.train()
    for one, other in zip(seen.of, asked, strict=True):
        assert_same_weights(one, other)
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("version", range(K))
def test_one_damaged_logit_of_any_version_is_found_out(version: int, tmp_path: Path) -> None:
    settings = {"num_train_epochs": K, "teacher_cache": str(tmp_path / "cache")}
    _, trainer = by_epoch(tmp_path / "filled", **settings)
    file = trainer.teacher.store.folder / "values.npy"
    content = bytearray(file.read_bytes())
    logits = np.load(file)
    assert len(logits) == K * EXAMPLES
    content[len(content) - logits.nbytes + logits.strides[0] * (version * EXAMPLES + 9)] ^= 1  # one bit of one logit
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"values\.npy is damaged"):
        by_epoch(tmp_path / "read", **settings)


def test_a_run_that_is_stopped_in_epoch_k_plus_1_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """From the middle of the third epoch of two versions, with a cache, beside a run that nothing stops and that has none."""
    middle = K * STEPS_PER_EPOCH + 3
    expected = whole_run(tmp_path / "whole", **STORED)
    found = resumed_run(tmp_path / "resumed", middle, **STORED, workers=2, teacher_cache=str(tmp_path / "cache"))
    assert_same_run(found, expected)


def test_other_versions_chance_and_augmentation_have_caches_of_their_own(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"num_train_epochs": 3, "teacher_cache": str(tmp_path / "cache")}
    folders = []
    for nth, more in enumerate(
        ({}, {"augmentation_versions": 3}, {"data_seed": 8}, {"augmentation": {"horizontal_flip": 0.5}}, {})
    ):
        folders.append(by_epoch(tmp_path / str(nth), **{**settings, **more})[1].teacher.store.folder)
    assert len(set(folders)) == 4
    assert folders[0] == folders[-1]


def test_versions_that_no_epoch_reads_are_not_filled_and_a_shorter_training_takes_what_a_longer_one_has(
    tmp_path: Path,
) -> None:
    common = {"augmentation_versions": 9, "teacher_cache": str(tmp_path / "cache")}
    seen = {}
    for name, length in (("one", {"num_train_epochs": 1}), ("three", {"max_steps": 2 * STEPS_PER_EPOCH + 1}),
                         ("two", {"num_train_epochs": 1.5})):  # fmt: skip
        seen[name], trainer = by_epoch(tmp_path / name, **common, **length)
        folder = trainer.teacher.store.folder
        assert len(np.load(folder / "values.npy")) == EXAMPLES * {"one": 1, "three": 3, "two": 3}[name]
    assert len(list((tmp_path / "cache").iterdir())) == 2
    fresh = by_epoch(tmp_path / "fresh", augmentation_versions=None, max_steps=2 * STEPS_PER_EPOCH + 1)[0]
    for found, expected in zip(
        seen["three"], fresh, strict=True
    ):  # with as many versions as epochs augmentation is ever new
        assert_same_weights(found, expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_students_in_lockstep_share_a_cache_of_versions(workers: int, tmp_path: Path) -> None:
    together = students(tmp_path, (1.0, 8.0), workers=workers, teacher_cache=str(tmp_path / "cache"), **STORED)
    for temperature in (1.0, 8.0):
        expected = alone(tmp_path, temperature, **STORED)
        assert_same_weights(together[student(temperature).name]["checkpoint"], expected["checkpoint"])
    assert len(list((tmp_path / "cache").iterdir())) == 1


# ---- Studies and recipes


def test_a_study_of_stored_versions_is_the_same_with_a_cache_and_its_teachers_know_nothing_of_them(
    tmp_path: Path,
) -> None:
    page = values(write_images(tmp_path / "images"))
    page = {**page, "eta": None, "projection": None, "grid": {**page["grid"], "label_smoothing": [0.1]}}
    page["data"] |= {"augmentation": "standard"}
    page["training"] |= {"max_steps": 20}  # more than three epochs
    for role in (page["teacher"], page["students"][0]):
        role |= {"model": RESNET[0], "model_args": {**RESNET[1], "channels": [8, 8, 8, 8]}}
    stored = {**page, "data": {**page["data"], "augmentation_versions": K}}
    cached = {**stored, "switches": {"teacher_cache": "logits"}}
    for name, recipe in (("fresh", page), ("stored", stored), ("cached", cached)):
        run_study(recipe_from_dict(recipe), tmp_path / name, lockstep=name == "cached")
    assert_same_studies(tmp_path / "cached", tmp_path / "stored", students=2)
    fresh, versions = (record(tmp_path / name, "teacher-a0.1-s0") for name in ("fresh", "stored"))
    assert fresh["signature"] == versions["signature"]
    assert fresh["curve"] == versions["curve"]
    (folder,) = (tmp_path / "cached" / "cells" / "teacher-a0.1-s0" / "teacher_cache").iterdir()
    assert len(np.load(folder / "values.npy")) == K * 96
    ours, others = (record(tmp_path / name, "student-a0.1-T2-s0") for name in ("fresh", "stored"))
    assert ours["signature"] != others["signature"]
    assert others["recipe"]["data"]["augmentation_versions"] == K
    assert "augmentation_versions" not in ours["recipe"]["data"]
    assert [point for point in ours["curve"] if point["epoch"] <= K] == [
        point for point in others["curve"] if point["epoch"] <= K
    ]
    assert ours["curve"] != others["curve"]


def test_a_recipe_without_stored_versions_is_what_it_was(tmp_path: Path) -> None:
    page = values(tmp_path)
    page["data"] |= {"augmentation": "standard"}
    null = {**page, "data": {**page["data"], "augmentation_versions": None}}
    assert recipe_from_dict(null).to_dict() == recipe_from_dict(page).to_dict()
    assert "augmentation_versions" not in recipe_from_dict(null).to_dict()["data"]
    given = recipe_from_dict({**page, "data": {**page["data"], "augmentation_versions": 3}})
    assert recipe_from_dict(given.to_dict()) == given


def test_versions_that_a_recipe_cannot_have_are_refused(tmp_path: Path) -> None:
    page = values(tmp_path)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"augmentation_versions": 2}, r"augmentation_versions: received versions without augmentation"),
        ({"augmentation_versions": 0, "augmentation": "standard"}, r"augmentation_versions: received 0"),
        ({"augmentation_versions": 2, "augmentation": "standard", "mixup": 0.2}, "versions with data.mixup"),
        ({"augmentation_versions": 2, "augmentation": "standard", "cutmix": 1.0}, "versions with data.cutmix"),
    ]
    for data, message in cases:
        with pytest.raises(RecipeErrors, match=message):
            recipe_from_dict({**page, "data": {**page["data"], **data}})
    page["switches"] = {"teacher_cache": 8}
    page["data"] |= {"augmentation": "standard"}
    with pytest.raises(RecipeErrors, match=r"or data\.augmentation_versions beside it"):
        recipe_from_dict(page)
    page["data"] |= {"augmentation_versions": 2}
    assert recipe_from_dict(page).switches.teacher_cache == 8

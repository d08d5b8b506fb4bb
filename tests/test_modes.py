"""Whom the files that are made may be read by: all that the umask lets, the weights too."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from hf_lskd import DistillationArguments, DistillationTrainer
from hf_lskd.hub.from_timm import convert_timm
from tests.tiny_study import changed, finished_study, values, write_images

GROUP = 0o027  # a umask: the group may read


@pytest.fixture(autouse=True)
def group_may_read() -> Iterator[None]:
    before = os.umask(GROUP)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """Modes of all that lies below a folder, by path; hidden files, which are no results, left out."""
    found = [path for path in folder.rglob("*") if not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in found}


def readable(folder: Path) -> dict[str, int]:
    """The modes that they should have."""
    return {name: 0o750 if (folder / name).is_dir() else 0o640 for name in modes(folder)}


@pytest.mark.parametrize(
    ("key", "value", "holds"),
    [("switches.teacher_cache", "logits", "teacher_cache"), ("teacher.ensemble", [0, 1], "predictions.safetensors")],
    ids=["teacher cache", "ensemble"],
)
def test_every_file_of_a_study_follows_the_umask(key: str, value: object, holds: str, tmp_path: Path) -> None:
    recipe = changed(values(write_images(tmp_path / "images")), "grid.label_smoothing", [0.0])
    recipe = changed(changed(recipe, "grid.temperature", [1]), key, value)
    study = finished_study(recipe, tmp_path)
    found = modes(study)
    assert found == readable(study)
    for part in ("cells/student-a0-T1-s0/model/model.safetensors", "cells/teacher-a0-s0/statistics.safetensors"):
        assert part in found
    assert any(holds in name for name in found)


def test_a_converted_model_follows_the_umask(tmp_path: Path) -> None:
    save_file(timm.create_model("test_vit", num_classes=3).state_dict(), tmp_path / "w.safetensors")
    convert_timm(tmp_path / "w.safetensors", tmp_path / "ours", architecture="test_vit")
    assert modes(tmp_path / "ours") == dict.fromkeys(("config.json", "model.safetensors", "conversion.json"), 0o640)


def test_a_model_that_a_trainer_saves_follows_the_umask(tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = DistillationArguments(str(tmp_path / "out"), report_to="none", use_cpu=True)
    DistillationTrainer(timm.create_model("test_vit", num_classes=3), arguments).save_model(str(tmp_path / "final"))
    found = modes(tmp_path / "final")
    assert "model.safetensors" in found
    assert found == readable(tmp_path / "final")

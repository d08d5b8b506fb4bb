"""A study that takes over the teachers of one beside it, and leaves alone what is not the very same teacher."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_lskd.recipe import recipe_from_dict
from hf_lskd.record import read_record
from hf_lskd.study import sharing
from hf_lskd.study.runner import run_study
from tests.tiny_study import NAMES, bytes_of, changed, values, write_images

TEACHERS = [name for name in NAMES if name.startswith("teacher")]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    tiny = values(write_images(tmp_path_factory.mktemp("images")))
    return changed(changed(tiny, "projection", None), "teacher.shared", True)


@pytest.fixture(scope="module")
def first(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "first"
    run_study(recipe_from_dict(recipe), folder, jobs=1)
    return folder


def second_of(first: Path, recipe: dict[str, Any], name: str) -> tuple[Path, dict[str, dict[str, Any]]]:
    folder = first.parent / name
    run_study(recipe_from_dict(recipe), folder, jobs=1)
    return folder, {cell: read_record(folder / "cells" / cell) or {} for cell in TEACHERS}


def test_the_second_study_takes_the_firsts_teachers_and_trains_its_own_students(
    first: Path, recipe: dict[str, Any]
) -> None:
    other = changed(recipe, "students.0.name", "other")
    folder, teachers = second_of(first, other, "second")
    for name, record in teachers.items():
        assert record["taken_from"] == {"study": "tiny", "folder": str(first / "cells" / name)}
        there, here = (place / "cells" / name / "model" / "model.safetensors" for place in (first, folder))
        assert there.samefile(here) or there.read_bytes() == here.read_bytes()
    assert len(list((folder / "cells").glob("other-*"))) == 4


def test_alone_it_gives_what_it_gives_beside_the_first(first: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    folder, _ = second_of(first, recipe, "same")
    run_study(recipe_from_dict(recipe), tmp_path / "far" / "alone", jobs=1)
    assert bytes_of(folder, "results.csv", "eta.csv") == bytes_of(tmp_path / "far" / "alone", "results.csv", "eta.csv")


def test_teachers_of_another_training_are_trained(first: Path, recipe: dict[str, Any]) -> None:
    _, teachers = second_of(first, changed(recipe, "teacher.training.learning_rate", 0.02), "otherwise")
    assert not any("taken_from" in record for record in teachers.values())


def test_a_study_that_does_not_say_shared_trains_its_own(first: Path, recipe: dict[str, Any]) -> None:
    _, teachers = second_of(first, changed(recipe, "teacher.shared", False), "own")
    assert not any("taken_from" in record for record in teachers.values())


def test_failed_damaged_and_foreign_records_are_passed_over(
    first: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    for name, text in (("failed", None), ("damaged", "{"), ("foreign", '{"format": "x"}')):
        cell = tmp_path / name / "cells" / TEACHERS[0]
        shutil.copytree(first / "cells" / TEACHERS[0], cell)
        record = json.loads((cell / "record.json").read_text())
        (cell / "record.json").write_text(text or json.dumps({**record, "status": "failed"}))
    _, teachers = second_of(tmp_path / "failed", recipe, "new")
    assert "taken_from" not in teachers[TEACHERS[0]]


def test_where_files_cannot_be_linked_they_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("another file system")

    (tmp_path / "a").write_text("x")
    monkeypatch.setattr(sharing.os, "link", refuse)
    sharing.link_or_copy(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "b").read_text() == "x"

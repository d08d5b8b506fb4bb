"""Whose folder it is, grids that grow, and teachers that come from elsewhere."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.study.files import Study, record, stamps, table, weights
from tests.tiny_study import NAMES, changed, write_images

# ---- Whose folder


def test_another_study_is_refused_with_what_differs(
    copy: Path, recipe: dict, study: Study, capsys: pytest.CaptureFixture
) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert study(changed(recipe, "training.learning_rate", 0.2), folder=copy) == 2
    message = capsys.readouterr().err
    assert "training.learning_rate is 0.01 there and 0.2 here" in message
    assert message.count("\n") == 1
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_other_images_in_the_same_place_are_another_study(
    copy: Path, recipe: dict, study: Study, images: Path, capsys: pytest.CaptureFixture
) -> None:
    write_images(images, seed=1)
    try:
        assert study(recipe, folder=copy) == 2
    finally:
        write_images(images)
    assert "the data" in capsys.readouterr().err


def test_a_grid_that_grew_runs_only_the_new_cells(copy: Path, quick: dict, study: Study) -> None:
    old = stamps(copy)
    grown = changed(changed(quick, "grid.temperature", [1, 2, 4]), "name", "renamed")
    assert study(changed(grown, "eta.dissimilar", 2), folder=copy) == 0
    new = stamps(copy)
    changed_files = {path.relative_to(copy / "cells").parts[0] for path in new if new[path] != old.get(path)}
    # teachers keep their records; g of the new temperature joins the others beside them
    assert changed_files == {"student-a0-T4-s0", "student-a0.1-T4-s0", "teacher-a0-s0", "teacher-a0.1-s0"}
    for name in ("teacher-a0-s0", "teacher-a0.1-s0"):
        assert new[copy / "cells" / name / "record.json"] == old[copy / "cells" / name / "record.json"]
    assert len(table(copy / "results.csv")) == 8
    assert float(record(copy, "student-a0-T4-s0")["target_gradient"]) > 0


def test_a_recipe_may_bring_one_more_student(copy: Path, quick: dict, study: Study) -> None:
    more = changed(quick, "students", [*quick["students"], {**quick["students"][0], "name": "second"}])
    assert study(more, folder=copy) == 0
    assert len(table(copy / "results.csv")) == 10


def test_a_study_without_groups_has_no_eta_and_no_projections(copy: Path, recipe: dict, study: Study) -> None:
    assert study(changed(changed(recipe, "eta", None), "projection", None), folder=copy) == 0
    assert not any((copy / name).exists() for name in ("eta.csv", "eta_chance.csv", "projections.json"))


def test_bad_input_is_found_before_the_folder_is_touched(
    recipe: dict, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for path, value, message in (
        ("data.path", str(tmp_path / "nowhere"), "nowhere"),
        ("eta.targets", ["ö"], "class 'ö'"),
        ("eta.min_similar", 3, "no class with 3 similar"),
        ("projection.classes", ["a", "à", "z"], "class 'z'"),
        ("teacher.model", "resnet5O", "resnet50"),
        ("students.0.model", "vit_tiny_patch16_242", "vit_tiny_patch16_224"),
        ("students.0.pretrained", str(tmp_path / "none.pth"), "none.pth does not exist"),
    ):
        assert study(changed(recipe, path, value)) == 2, path
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1, err
        assert "Traceback" not in err
        assert not (tmp_path / "run").exists()


def test_foreign_and_unwritable_folders_are_refused(
    recipe: dict, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    assert study(recipe) == 2
    assert "is not empty and holds no study" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]
    file = tmp_path / "file"
    file.write_text("")
    assert study(recipe, folder=file / "run") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_damaged_study_json_or_record_is_named(
    copy: Path, quick: dict, study: Study, capsys: pytest.CaptureFixture
) -> None:
    page = copy / "cells" / "student-a0-T1-s0" / "record.json"
    page.write_text(page.read_text()[:100])
    assert study(quick, folder=copy) == 2
    assert f"{page} is no JSON" in capsys.readouterr().err
    shutil.rmtree(page.parent)
    assert study(quick, folder=copy) == 0


# ---- Teachers from elsewhere


def test_finished_teachers_are_taken_from_their_paths(done: Path, quick: dict, study: Study, tmp_path: Path) -> None:
    paths = {"0.0": str(done / "cells/teacher-a0-s0"), "0.1": str(done / "cells/teacher-a0.1-s0/model")}
    assert study(changed(quick, "teacher", {"path": paths})) == 0
    for name in NAMES:
        given, own = weights(tmp_path / "run", name), weights(done, name)
        assert all(torch.equal(weight, own[key]) for key, weight in given.items()), name
    assert record(tmp_path / "run", NAMES[0])["curve"] == []


def test_a_finished_teacher_that_does_not_fit_is_refused_at_once(
    done: Path, recipe: dict, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    one = changed(recipe, "grid.label_smoothing", [0.0])
    assert study(changed(one, "teacher", {"path": str(done / "cells/teacher-a0.1-s0")})) == 2
    assert "was trained with label smoothing 0.1" in capsys.readouterr().err
    cut = Path(shutil.copytree(done / "cells/teacher-a0-s0/model", tmp_path / "cut"))
    whole = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole[:-50])
    assert study(changed(one, "teacher", {"path": str(cut)})) == 2
    assert "cannot be loaded" in capsys.readouterr().err
    (cut / "model.safetensors").write_bytes(whole)
    renamed = changed(changed(one, "data.class_names", list("abcdef")), "teacher", {"path": str(cut)})
    assert study(renamed) == 2
    assert "class 1 is 'à' for the teacher and 'b' for the student" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

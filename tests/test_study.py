"""A study end to end on tiny cells: repeated, killed, grown, broken, mended; and what its records and tables hold."""

import csv
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_lskd.analysis.gradient import target_gradient
from hf_lskd.cli import main
from hf_lskd.recipe import recipe_from_dict
from hf_lskd.record import Cell, file_sha256
from hf_lskd.study import runner
from hf_lskd.study.bench import cell_signature, open_bench
from hf_lskd.study.cell import DivergedError, refuse_diverged
from hf_lskd.study.grid import cells
from hf_lskd.trainer import DistillationTrainer
from tests.tiny_study import NAMES, bytes_of, changed, dump, fork, run_and_kill, values, write_images

Study = Callable[..., int]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def recipe(images: Path) -> dict[str, Any]:
    return values(images)


@pytest.fixture(scope="module")
def quick(recipe: dict[str, Any]) -> dict[str, Any]:
    """The same study without projections, which cost as much as its cells."""
    return changed(recipe, "projection", None)


@pytest.fixture(scope="module")
def done(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("study")
    torch.set_num_threads(1)
    assert main(["study", str(dump(recipe, folder / "recipe.yaml")), "--output-dir", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "run"))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Run `hf-lskd study` on recipe values; the folder is the same in one test."""

    def run(recipe: dict[str, Any], *options: str, folder: Path | None = None) -> int:
        path = dump(recipe, tmp_path / "recipe.yaml")
        return main(["study", str(path), "--output-dir", str(folder or tmp_path / "run"), *options])

    return run


def record(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "cells" / name / "record.json").read_text(encoding="utf-8"))


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "cells" / name / "model" / "model.safetensors")


def predictions(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "cells" / name / "predictions.safetensors")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted((folder / "cells").rglob("*"))}


# ---- Again


def test_a_second_run_does_nothing_and_writes_the_same_tables(
    copy: Path, recipe: dict, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, cells_before = bytes_of(copy), stamps(copy)
    projected = (copy / "projections.json").stat().st_mtime_ns
    monkeypatch.setattr(DistillationTrainer, "train", lambda *a, **k: pytest.fail("a finished cell was trained again"))
    assert study(recipe, folder=copy) == 0
    assert bytes_of(copy) == before
    assert stamps(copy) == cells_before
    assert (copy / "projections.json").stat().st_mtime_ns == projected


def test_tables_have_a_row_a_cell_and_a_row_a_target(done: Path) -> None:
    rows = table(done / "results.csv")
    assert [row["name"] for row in rows] == NAMES
    assert {row["status"] for row in rows} == {"complete"}
    eta = table(done / "eta.csv")
    assert len(eta) == 2 * 2 * 6  # α, splits, targets; one pair of temperatures
    assert {(row["T1"], row["T2"]) for row in eta} == {("1.0", "2.0")}
    assert table(done / "eta_chance.csv") == []
    panels = json.loads((done / "projections.json").read_text())["rows"][0]["panels"]
    assert [panel["temperature"] for panel in panels] == [None, None, 1.0, 1.0, 2.0, 2.0]


def test_the_terminal_ends_with_a_table_the_answer_and_the_page(
    copy: Path, recipe: dict, study: Study, capsys: pytest.CaptureFixture
) -> None:
    study(recipe, folder=copy)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split() == ["top-1", "%", "α", "teacher", "T=1", "T=2"]
    top1 = {row["name"]: f"{float(row['top1']):.1f}" for row in table(copy / "results.csv")}
    assert lines[1].split() == ["student", "0", *(top1[name] for name in NAMES[:3])]
    assert lines[2].split() == ["student", "0.1", *(top1[name] for name in NAMES[3:])]
    assert lines[3].startswith("One seed: the students learnt nothing to speak of")  # four steps on noise
    assert lines[-1] == str(copy / "report.html")
    assert (copy / "report.html").stat().st_size > 10_000
    assert "top-1" not in err  # progress is for terminals


# ---- Killed


@pytest.mark.parametrize(
    ("save", "there"),
    [
        ("no", "cells/.teacher-a0-s0.partial"),
        ("no", "cells/.student-a0.1-T1-s0.partial/model/config.json"),
        ("steps", "cells/.student-a0-T1-s0.partial/trainer/checkpoint-2"),
        ("no", "cells/student-a0.1-T1-s0/record.json"),
    ],
)
def test_a_study_killed_in_the_middle_and_run_again_gives_the_same_tables(
    done: Path, quick: dict, study: Study, tmp_path: Path, save: str, there: str
) -> None:
    recipe = changed(changed(quick, "training.save_strategy", save), "training.save_steps", 1)
    folder = tmp_path / "run"
    path = dump(recipe, tmp_path / "recipe.yaml")
    run_and_kill(["study", str(path), "--output-dir", str(folder)], lambda: (folder / there).exists())
    assert study(recipe) == 0
    assert bytes_of(folder, "results.csv", "eta.csv") == bytes_of(done, "results.csv", "eta.csv")
    assert not list((folder / "cells").glob(".*"))
    for name in NAMES:
        assert all(torch.equal(w, weights(done, name)[key]) for key, w in weights(folder, name).items())


def test_a_checkpoint_cut_short_by_a_kill_is_not_resumed_from(
    done: Path, quick: dict, study: Study, tmp_path: Path
) -> None:
    recipe = changed(changed(quick, "training.save_strategy", "steps"), "training.save_steps", 1)
    folder, path = tmp_path / "run", dump(recipe, tmp_path / "recipe.yaml")
    last = folder / "cells/.teacher-a0-s0.partial/trainer/checkpoint-2"
    run_and_kill(["study", str(path), "--output-dir", str(folder)], (last / "trainer_state.json").exists)
    (last / "trainer_state.json").write_text('{"epoch": 1')  # half of a file
    for part in (last.parent / "checkpoint-3", last.parent / "checkpoint-4"):
        part.mkdir(exist_ok=True)  # the folder was made, and nothing more
    assert study(recipe) == 0
    assert bytes_of(folder, "results.csv") == bytes_of(done, "results.csv")


def test_an_unfinished_cell_of_another_recipe_is_begun_anew_unless_it_has_a_checkpoint(
    copy: Path, quick: dict, study: Study, capsys: pytest.CaptureFixture
) -> None:
    shutil.rmtree(copy / "cells" / NAMES[1])
    left = copy / "cells" / f".{NAMES[1]}.partial"
    checkpoint = left / "trainer" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    (left / "signature").write_text("another")
    (left / "leftover").write_text("")
    assert study(quick, folder=copy) == 2
    assert "holds another study" in capsys.readouterr().err
    assert checkpoint.is_dir()
    (checkpoint / "trainer_state.json").unlink()
    assert study(quick, folder=copy) == 0
    assert not (copy / "cells" / NAMES[1] / "leftover").exists()
    assert not left.exists()


def test_a_folder_that_another_process_works_in_is_left_to_it(
    quick: dict, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder, path = tmp_path / "run", dump(quick, tmp_path / "recipe.yaml")
    child = fork(["study", str(path), "--output-dir", str(folder)])
    while not (folder / "cells" / NAMES[0]).exists():
        time.sleep(0.001)
    assert study(changed(quick, "grid.temperature", [1])) == 2
    assert "another process is at work" in capsys.readouterr().err
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [row["status"] for row in table(folder / "results.csv")] == ["complete"] * 6


# ---- One cell on its own


def test_trap_29_a_cell_run_alone_has_the_weights_it_has_in_a_study(
    done: Path, recipe: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Where the teacher is the one in memory, students of a study and students run alone differ in the last bits."""
    path = dump(recipe, tmp_path / "recipe.yaml")
    capsys.readouterr()
    main(["study", str(path), "--output-dir", str(tmp_path / "alone"), "--dry-run"])
    commands = [line.split("\t")[-1].split()[1:] for line in capsys.readouterr().out.splitlines()]
    assert len(commands) == 6
    for command, name in list(zip(commands, NAMES))[3:]:
        assert main(command) == 0
        mine = weights(tmp_path / "alone", name)
        assert all(torch.equal(weight, mine[key]) for key, weight in weights(done, name).items())
        alone, inside = record(tmp_path / "alone", name), record(done, name)
        for key in ("signature", "metrics", "target_gradient", "target_entropy"):
            assert alone[key] == inside[key], key


def test_trap_29_a_teacher_that_was_just_trained_is_read_back_from_its_cells_folder(
    quick: dict, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = []
    original = DistillationTrainer.__init__

    def note(self: Any, *args: Any, teacher_model: Any = None, **kwargs: Any) -> None:
        sources.append(teacher_model)
        original(self, *args, teacher_model=teacher_model, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "__init__", note)
    recipe = changed(changed(quick, "grid.label_smoothing", [0.1]), "grid.temperature", [1])
    assert study(recipe) == 0
    assert [s for s in sources if s is not None] == [str(tmp_path / "run/cells/teacher-a0.1-s0/model")]


# ---- Failures


def test_a_failed_cell_is_recorded_the_others_go_on_and_it_is_tried_again(
    quick: dict, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recipe = changed(quick, "grid.label_smoothing", [0.1])
    other = {**recipe["students"][0], "name": "other"}
    broken = changed(
        recipe, "students", [{**other, "model_args": {**other["model_args"], "heads": 2}}, other | {"name": "student"}]
    )
    assert study(broken) == 1
    folder = tmp_path / "run"
    failed = record(folder, "other-a0.1-T2-s0")
    assert failed["status"] == "failed"
    assert failed["error"]["type"] == "InputError"
    assert "heads" in failed["error"]["message"]
    assert "Traceback" in failed["error"]["traceback"]
    states = {row["name"]: row["status"] for row in table(folder / "results.csv")}
    assert states == {
        "teacher-a0.1-s0": "complete",
        "other-a0.1-T1-s0": "failed",
        "other-a0.1-T2-s0": "failed",
        "student-a0.1-T1-s0": "complete",
        "student-a0.1-T2-s0": "complete",
    }
    assert "failed: other-a0.1-T1-s0: InputError" in capsys.readouterr().err
    finished = stamps(folder / "cells" / "student-a0.1-T1-s0" / "..")
    mended = changed(broken, "students.0", other)
    assert study(mended) == 0
    assert {row["status"] for row in table(folder / "results.csv")} == {"complete"}
    kept = {path: stamp for path, stamp in finished.items() if "student-a0.1" in str(path)}
    assert kept.items() <= stamps(folder / "cells" / "student-a0.1-T1-s0" / "..").items()


def test_students_of_a_failed_teacher_fail_with_its_error_and_finished_ones_are_kept(
    copy: Path, quick: dict, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copy / "cells" / "teacher-a0.1-s0")
    shutil.rmtree(copy / "cells" / "student-a0.1-T2-s0")
    tried = []

    def broken(self: Any, *args: Any, **kwargs: Any) -> None:
        tried.append(self)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(DistillationTrainer, "train", broken)
    two_columns = changed(quick, "grid.scale_student", [True, False])
    assert study(two_columns, folder=copy) == 1
    assert len(tried) == 1 + 2  # the teacher once, though it has two columns; and the unscaled students of the other
    assert record(copy, "teacher-a0.1-s0")["error"]["message"] == "out of memory"
    orphan = record(copy, "student-a0.1-T2-s0")
    assert orphan["status"] == "failed"
    assert "teacher-a0.1-s0 failed: out of memory" in orphan["error"]["message"]
    assert record(copy, "student-a0.1-T1-s0")["status"] == "complete"
    assert (copy / "cells" / "student-a0.1-T1-s0" / "model").is_dir()


def test_a_cell_that_fails_in_the_middle_of_its_training_leaves_no_trace_in_the_next(
    done: Path, quick: dict, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = DistillationTrainer.compute_loss, []

    def break_once(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self.model.training and NAMES[1] in self.args.output_dir)
        if sum(calls) == 2 and calls[-1]:
            raise RuntimeError("in the second step of the first student")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "compute_loss", break_once)
    assert study(quick) == 1
    assert record(tmp_path / "run", NAMES[1])["status"] == "failed"
    for name in (*NAMES[:1], *NAMES[2:]):
        other = weights(done, name)
        assert all(torch.equal(weight, other[key]) for key, weight in weights(tmp_path / "run", name).items()), name
    assert study(quick) == 0
    assert bytes_of(tmp_path / "run", "results.csv") == bytes_of(done, "results.csv")


def test_diverged_weights_fail_a_cell() -> None:
    model = torch.nn.Linear(2, 2)
    refuse_diverged(model)
    model.bias.data[1] = math.inf
    with pytest.raises(DivergedError, match=r"diverged: bias.*learning_rate"):
        refuse_diverged(model)


def test_collapsed_models_cost_no_cell_and_no_table(
    recipe: dict, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All embeddings of a collapsed model are one: no geometry, no η and no projection of it, and everything else is there."""

    def collapse(self: Any, *args: Any, **kwargs: Any) -> None:
        for weight in self.model.parameters():
            weight.data.zero_()

    monkeypatch.setattr(DistillationTrainer, "train", collapse)
    assert study(changed(recipe, "grid.kd_loss_scale", [1.0, "equalised"])) == 1  # g = 0 cannot be equalised
    rows = {row["name"]: row for row in table(tmp_path / "run" / "results.csv")}
    assert rows["student-a0-T1-s0"]["status"] == "complete"
    assert rows["student-a0-T1-s0"]["tightness"] == ""
    assert rows["student-a0-T1-s0"]["separation"] == ""
    assert "g = 0" in record(tmp_path / "run", "student-a0-T1-xequalised-s0")["error"]["message"]
    assert table(tmp_path / "run" / "eta.csv") == []
    assert (tmp_path / "run" / "report.html").is_file()


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


# ---- Records


def test_trap_23_a_record_holds_all_that_made_the_numbers(done: Path, recipe: dict) -> None:
    page = record(done, "student-a0.1-T2-s0")
    assert recipe_from_dict(page["recipe"]) == recipe_from_dict(recipe)
    assert page["recipe"]["training"]["per_device_train_batch_size"] == 16
    assert (page["seed"], page["status"], page["error"]) == (0, "complete", None)
    assert set(page["metrics"]) == {"top1", "top5", "ece", "nll", "train_top1", "agreement"}
    points = [point for point in page["curve"] if point["split"] == "validation"]
    assert page["best"]["top1"] == max(point["top1"] for point in points)
    assert page["best"]["epoch"] == next(p["epoch"] for p in points if p["top1"] == page["best"]["top1"])
    assert page["metrics"]["top1"] == pytest.approx(points[-1]["top1"])  # the last epoch, beside the best
    assert page["metrics"]["nll"] == pytest.approx(points[-1]["nll"], rel=1e-5)
    trained = [point for point in page["curve"] if point["split"] == "train"]
    assert {"loss", "learning_rate", "soft_loss", "hard_loss", "agreement", "target_entropy"} <= set(trained[-1])
    assert {"python", "hf_lskd", "torch", "transformers", "timm", "numpy"} <= set(page["versions"])
    agree = [p["prediction"] for p in (predictions(done, "student-a0.1-T2-s0"), predictions(done, "teacher-a0.1-s0"))]
    assert page["metrics"]["agreement"] == pytest.approx(float((agree[0] == agree[1]).float().mean()))
    assert {"cpu", "gpu", "threads", "world_size"} == set(page["hardware"])
    assert 0 < page["durations"]["train"] < page["durations"]["total"]
    assert 10 < page["peak_memory_mb"] < 100_000
    teacher = done / "cells" / "teacher-a0.1-s0" / "record.json"
    assert page["teacher"] == {"name": "teacher-a0.1-s0", "record_sha256": file_sha256(teacher)}
    json.dumps(page, allow_nan=False)


@pytest.mark.parametrize(
    ("path", "value", "changes"),
    [
        ("data.max_train", 90, True),
        ("data.augmentation", "standard", True),
        ("data.image_size", 32, True),
        ("training.learning_rate", 0.2, True),
        ("training.bf16", True, True),
        ("students.0.model_args.depth", 2, True),
        ("students.0.training", {"weight_decay": 0.1}, True),
        ("teacher.training", {"weight_decay": 0.1}, True),
        ("teacher.model_args.depth", 2, True),
        ("switches.ema", 0.9, True),
        ("name", "other", False),
        ("grid.temperature", [2, 5], False),
        ("grid.seed", [0, 1], False),
        ("eta.dissimilar", 2, False),
        ("projection", None, False),
        ("students.0.paper", "cub200_resnet50_resnet18", False),
    ],
)
def test_a_signature_changes_with_what_can_change_the_numbers_and_with_nothing_else(
    recipe: dict, path: str, value: Any, changes: bool
) -> None:
    cell = Cell("student", 0.1, 0, "student", 2.0, 1.0, 1.0, True, 0.0, None)

    def signature(of: dict[str, Any]) -> str:
        return cell_signature(open_bench(recipe_from_dict(of)), cell)

    assert (signature(changed(recipe, path, value)) != signature(recipe)) is changes


def test_signatures_differ_from_cell_to_cell_and_with_a_model_files_content(
    done: Path, recipe: dict, tmp_path: Path
) -> None:
    grown = changed(changed(recipe, "grid.seed", [0, 1]), "grid.kd_loss_scale", [1, "equalised"])
    bench = open_bench(recipe_from_dict(grown))
    signatures = [cell_signature(bench, cell) for cell in cells(bench.recipe)]
    assert len(set(signatures)) == len(signatures) == 20
    for copy in ("one", "two"):
        shutil.copytree(done / "cells/teacher-a0-s0/model", tmp_path / copy)
    cell = Cell("teacher", 0.0, 0)

    def of(folder: str) -> str:
        start = changed(recipe, "teacher", {"model": str(tmp_path / folder), "pretrained": True})
        return cell_signature(open_bench(recipe_from_dict(start)), cell)

    assert of("one") == of("two")  # where the file lies says nothing
    file = tmp_path / "two" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    assert of("one") != of("two")


def test_trap_31_label_smoothing_is_the_teachers_and_the_students_own_has_its_own_name(
    quick: dict, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: dict[str, float] = {}
    original = DistillationTrainer.train

    def note(self: Any, *args: Any, **kwargs: Any) -> Any:
        reached[Path(self.args.output_dir).parent.name.strip(".").removesuffix(".partial")] = (
            self.args.label_smoothing_factor
        )
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "train", note)
    grid = {"label_smoothing": [0.1], "temperature": [2], "kd_weight": [0.5], "student_label_smoothing": [0.0, 0.3]}
    assert study(changed(quick, "grid", grid)) == 0
    plain, own = "student-a0.1-T2-w0.5-s0", "student-a0.1-T2-w0.5-own0.3-s0"
    assert reached == {"teacher-a0.1-s0": 0.1, plain: 0.0, own: 0.3}
    rows = {row["name"]: row for row in table(tmp_path / "run" / "results.csv")}
    assert {name: (row["label_smoothing"], row["student_label_smoothing"]) for name, row in rows.items()} == {
        "teacher-a0.1-s0": ("0.1", ""),
        plain: ("0.1", "0.0"),
        own: ("0.1", "0.3"),
    }
    assert record(tmp_path / "run", own)["label_smoothing"] == 0.1
    assert record(tmp_path / "run", own)["student_label_smoothing"] == 0.3
    one, other = weights(tmp_path / "run", plain), weights(tmp_path / "run", own)
    assert any(not torch.equal(weight, other[key]) for key, weight in one.items())


# ---- g(T)


def teacher_logits(recipe: dict, folder: Path, name: str) -> torch.Tensor:
    """The saved teacher's logits over the training images, by a plain loop over the data set."""
    from transformers import AutoModelForImageClassification

    bench = open_bench(recipe_from_dict(recipe))
    model = AutoModelForImageClassification.from_pretrained(folder / "cells" / name / "model").eval()
    images = bench.task.dataset(bench.recipe.teacher, "train", train=False)
    with torch.no_grad():
        return torch.cat([model(images[i]["pixel_values"][None]).logits for i in range(len(images))])


def test_equalised_loss_scale_is_one_over_g_of_that_teacher_recorded_and_used(
    quick: dict, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: dict[str, float] = {}
    original = DistillationTrainer.train

    def note(self: Any, *args: Any, **kwargs: Any) -> Any:
        used[Path(self.args.output_dir).parent.name.strip(".").removesuffix(".partial")] = self.args.kd_loss_scale
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "train", note)
    recipe = changed(quick, "grid.kd_loss_scale", ["equalised"])
    assert study(recipe) == 0
    folder = tmp_path / "run"
    for alpha in ("0", "0.1"):
        logits = teacher_logits(recipe, folder, f"teacher-a{alpha}-s0")
        for temperature in (1, 2):
            name = f"student-a{alpha}-T{temperature}-xequalised-s0"
            page = record(folder, name)
            assert page["target_gradient"] == pytest.approx(target_gradient(logits, temperature), rel=1e-5)
            assert page["kd_loss_scale"] == "equalised"
            assert page["kd_loss_scale_value"] == 1 / page["target_gradient"] == used[name]
    rows = {row["name"]: row for row in table(folder / "results.csv")}
    assert rows["student-a0.1-T2-xequalised-s0"]["kd_loss_scale"] == "equalised"
    assert float(rows["student-a0.1-T2-xequalised-s0"]["kd_loss_scale_value"]) == pytest.approx(
        used["student-a0.1-T2-xequalised-s0"], rel=1e-6
    )


def test_g_of_a_temperature_added_later_is_that_of_a_study_that_had_it_from_the_start(
    copy: Path, quick: dict, study: Study, tmp_path: Path
) -> None:
    grown = changed(changed(quick, "grid.temperature", [2, 7]), "grid.kd_loss_scale", ["equalised"])
    assert study(grown, folder=copy) == 0
    assert study(grown, folder=tmp_path / "from_the_start") == 0
    assert bytes_of(copy, "results.csv") == bytes_of(tmp_path / "from_the_start", "results.csv")


def test_cells_of_different_precision_share_a_process(quick: dict, study: Study, tmp_path: Path) -> None:
    """accelerate keeps one precision a process: after a teacher in bf16 (here read for its g) a student would be in bf16 too."""
    recipe = changed(changed(quick, "teacher.training", {"bf16": True, "use_cpu": True}), "grid.label_smoothing", [0.1])
    assert study(changed(recipe, "grid.temperature", [1])) == 0
    both = changed(recipe, "grid.temperature", [1, 3])
    assert study(both) == 0
    assert study(both, folder=tmp_path / "from_the_start") == 0
    for name in ("student-a0.1-T1-s0", "student-a0.1-T3-s0"):
        other = weights(tmp_path / "from_the_start", name)
        assert all(torch.equal(weight, other[key]) for key, weight in weights(tmp_path / "run", name).items()), name


def test_seeds_give_a_chance_level_and_their_spread(
    quick: dict, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recipe = changed(quick, "grid.label_smoothing", [0.1])
    assert study(recipe, "--seeds", "2") == 0
    assert " sd" in capsys.readouterr().out.splitlines()[1]
    chance = table(tmp_path / "run" / "eta_chance.csv")
    assert len(chance) == 2 * 2 * 2 * 6  # orders of the two seeds, temperatures, splits, targets
    assert {row["seed"] for row in chance} == {"0|1", "1|0"}
    assert all(row["T1"] == row["T2"] for row in chance)
    one, other = (record(tmp_path / "run", f"teacher-a0.1-s{seed}")["metrics"]["nll"] for seed in (0, 1))
    assert one != other


def test_a_projection_asked_for_by_name_replaces_the_recipes(copy: Path) -> None:
    runner.retabulate(copy, "projection", ["o", "ò", "a"])
    page = json.loads((copy / "projections.json").read_text())
    assert [entry["name"] for entry in page["classes"]] == ["o", "ò", "a"]

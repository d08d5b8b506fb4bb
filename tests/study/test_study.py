"""A study end to end on tiny cells: repeated, killed, and one cell on its own."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_lskd.cli import main
from hf_lskd.trainer import DistillationTrainer
from tests.study.files import Study, record, stamps, table, weights
from tests.tiny_study import NAMES, bytes_of, changed, dump, fork, run_and_kill

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

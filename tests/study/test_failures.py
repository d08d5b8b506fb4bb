"""Cells that fail, in the middle or by their numbers, and what it costs the others: nothing."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_lskd.study.cell import DivergedError, refuse_diverged
from hf_lskd.trainer import DistillationTrainer
from tests.study.files import Study, record, stamps, table, weights
from tests.tiny_study import NAMES, bytes_of, changed

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

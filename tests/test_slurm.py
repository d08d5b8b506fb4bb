"""A study as jobs: what is submitted, what is refused, and the whole of it on a real cluster of two nodes."""

import re
from pathlib import Path

import pytest
import torch

from hf_lskd.cli import main
from hf_lskd.study import slurm
from tests.launch_files import page, record_of, until, weights_of
from tests.slurm_cluster import ask, cluster  # noqa: F401  # a fixture
from tests.tiny_study import NAMES, bytes_of


def begun(study: Path, name: str) -> list[str]:
    """When and where each attempt at a cell began, from its log."""
    log = study / "logs" / f"{name}.log"
    return re.findall(r"==== (.*)", log.read_text())[::1] if log.is_file() else []


def half_trained(study: Path, name: str) -> bool:
    return any((study / "cells" / f".{name}.partial").glob("trainer/checkpoint-*/trainer_state.json"))


@pytest.mark.slow
def test_jobs_that_are_requeued_and_cancelled_end_as_the_inline_study(
    cluster: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(cluster))
    monkeypatch.setattr(slurm, "LOOK", 0.5)
    monkeypatch.setattr(slurm, "ASK", 2.0)
    recipe, study = page(tmp_path, training__max_steps=600, training__save_minutes=0.005), tmp_path / "jobs"
    command = ["study", str(recipe), "--output-dir", str(study), "--launcher", "slurm", "--slurm-limit", "2"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "submitted: 2 teachers, 4 students; queued or running already: 0; finished: 0 of 6 cells" in said
    jobs = slurm.jobs_of(study)

    until(lambda: half_trained(study, "teacher-a0-s0"))
    assert ask(cluster, "scontrol", "requeue", jobs["teacher-a0-s0"][0]) == ""
    until(lambda: half_trained(study, "teacher-a0.1-s0"))
    assert ask(cluster, "scancel", jobs["teacher-a0.1-s0"][0]) == ""
    gone = {jobs[name][0] for name in NAMES[3:]}
    until(lambda: not gone & set(ask(cluster, "squeue", "--noheader", "--array", "--format=%i").split()))

    assert main([*command, "--wait"]) == 0
    said = capsys.readouterr().out
    assert "submitted: 1 teachers, 2 students; queued or running already: 3; finished: 0 of 6 cells" in said
    assert "submitted again, since their jobs ended before them: teacher-a0.1-s0, " in said

    requeued, again = begun(study, "teacher-a0-s0"), begun(study, "teacher-a0.1-s0")
    assert "requeued 0 times" in requeued[0]
    assert "requeued 1 times" in requeued[1]
    assert [jobs["teacher-a0.1-s0"][0] in again[0], slurm.jobs_of(study)["teacher-a0.1-s0"][1] in again[1]] == [
        True
    ] * 2
    for name in ("teacher-a0-s0", "teacher-a0.1-s0"):
        assert re.search(r"goes on from checkpoint-\d+", (study / "logs" / f"{name}.log").read_text())
    nodes = {re.search(r"node (n\d)", begun(study, name)[0])[1] for name in NAMES}  # type: ignore[index]
    assert nodes == {"n1", "n2"}
    for name in NAMES:
        if name.startswith("student"):
            teacher = name.replace("student", "teacher").replace("-T1", "").replace("-T2", "")
            assert begun(study, name)[0][:19] >= begun(study, teacher)[-1][:19]  # it begins when the teacher has ended

    inline = tmp_path / "inline"
    assert main(["study", str(recipe), "--output-dir", str(inline), "--jobs", "1"]) == 0
    assert bytes_of(study, "results.csv", "eta.csv") == bytes_of(inline, "results.csv", "eta.csv")
    for name in NAMES:
        one, other = record_of(study, name), record_of(inline, name)
        for key in ("signature", "metrics", "best", "kd_loss_scale_value"):
            assert one[key] == other[key], (name, key)
        mine, theirs = weights_of(study, name), weights_of(inline, name)
        assert all(torch.equal(weight, theirs[key]) for key, weight in mine.items())
    capsys.readouterr()
    assert main(command) == 0  # all is made: nothing is submitted
    assert "submitted" not in capsys.readouterr().out

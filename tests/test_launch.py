"""What accelerate starts from our configurations, that a run on other processes than were meant stops before it begins, and
studies whose cells are process groups."""

import csv
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

from hf_lskd.cli import main
from hf_lskd.errors import InputError
from hf_lskd.recipe import load_recipe
from hf_lskd.record import STUDY, write_json
from hf_lskd.study import launched as launched_cell
from hf_lskd.study.batch import check_batch
from hf_lskd.study.launch import read_config
from tests.launch_files import CPU_2, ROOT, page, processes, record_of, until, weights_of
from tests.tiny_study import dump, fork, values, write_images

CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
PROCESSES = {
    "cpu_2": (2, 1),
    "ddp_8": (8, 1),
    "single_gpu": (1, 1),
    "two_machines": (16, 2),
    "fsdp": (8, 1),
    "deepspeed": (8, 1),
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_loads_and_means_what_its_name_says(path: Path, capsys: pytest.CaptureFixture) -> None:
    found: Any = load_config_from_file(str(path))
    assert (found.num_processes, found.num_machines) == PROCESSES[path.stem]
    assert found.mixed_precision == "no"  # the recipe says it
    assert main(["validate", str(path)]) == 0
    processes, machines = PROCESSES[path.stem]
    assert capsys.readouterr().out == f"{path}: accelerate, {processes} processes on {machines} machines\n"


def launched(tmp_path: Path, *words: str, command: str = "train", **environment: str) -> subprocess.CompletedProcess:
    page = dump(values(write_images(tmp_path / "images")), tmp_path / "recipe.yaml")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE")}
    parts = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "recipes/accelerate/cpu_2.yaml")]
    parts += ["--main_process_port", "0", "-m", "hf_lskd.cli", command, str(page)]
    return subprocess.run(
        [sys.executable, *parts, "--output-dir", str(tmp_path / "cell"), *words],
        env={**clean, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **environment},
        capture_output=True, text=True, timeout=300, cwd=ROOT,
    )  # fmt: skip


@pytest.mark.slow
def test_trap_27_two_processes_train_one_cell_together(tmp_path: Path) -> None:
    result = launched(tmp_path, "--processes", "2", ACCELERATE_USE_CPU="true")
    assert result.returncode == 0, result.stderr
    assert '"world_size": 2' in (tmp_path / "cell" / "record.json").read_text()


@pytest.mark.slow
def test_trap_27_processes_that_do_not_know_of_each_other_are_refused(tmp_path: Path) -> None:
    result = launched(tmp_path)
    assert result.returncode != 0
    assert "1 process that knows of each other, with 2 launched" in result.stderr
    assert not (tmp_path / "cell").exists()


def test_trap_27_one_process_where_two_were_asked_for_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = dump(values(write_images(tmp_path / "images")), tmp_path / "recipe.yaml")
    assert main(["train", str(page), "--output-dir", str(tmp_path / "cell"), "--processes", "2"]) == 2
    assert "1 process that knows of each other, with 1 launched and 2 asked for" in capsys.readouterr().err
    assert not (tmp_path / "cell").exists()


@pytest.mark.slow
def test_a_whole_study_on_processes_that_were_launched_together_writes_one_ledger(tmp_path: Path) -> None:
    result = launched(tmp_path, command="study", ACCELERATE_USE_CPU="true")
    assert result.returncode == 0, result.stderr
    with (tmp_path / "cell" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["complete"] * 6
    assert result.stdout.count("report.html") == 1


# ---- Studies whose cells are process groups


LAUNCHED = "hf_lskd.study.launched"


@pytest.fixture
def on_two(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words behind `hf-lskd study RECIPE --output-dir DIR` that make each cell by two processes on a processor."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    return ["--launcher", "accelerate", "--accelerate-config", str(CPU_2)]


@pytest.mark.slow
def test_a_lost_rank_ends_its_cell_and_the_study_goes_on(tmp_path: Path, on_two: list[str]) -> None:
    """Two rows; rank 1 of the first teacher is killed while it trains, and the next `study` makes up for it."""
    settings = {"training__max_steps": 12, "training__optim": "sgd", "grid__temperature": [1]}
    recipe = page(tmp_path, **settings)
    study, lost = tmp_path / "two", "teacher-a0-s0"
    log = study / "logs" / f"{lost}.log"

    def kill_rank_1() -> None:
        until(lambda: log.is_file() and "a step;" in log.read_text())
        (rank,) = processes(LAUNCHED, lost, str(study), rank=1)
        os.kill(rank, signal.SIGKILL)

    killer = threading.Thread(target=kill_rank_1)
    killer.start()
    command = ["study", str(recipe), "--output-dir", str(study), *on_two]
    assert main(command) == 1
    killer.join()
    failed = record_of(study, lost)
    assert (failed["status"], failed["exit_status"], failed["log"]) == ("failed", 1, f"logs/{lost}.log")
    assert "rank 1 was ended by signal 9" in failed["error"]["message"]
    assert "its teacher teacher-a0-s0 failed" in record_of(study, "student-a0-T1-s0")["error"]["message"]
    for name in ("teacher-a0.1-s0", "student-a0.1-T1-s0"):
        assert (record_of(study, name)["status"], record_of(study, name)["hardware"]["world_size"]) == ("complete", 2)
    words = f"{lost}: 2 processes x 16 examples x 1 accumulated = 32 a step; learning rate 0.01 as the recipe says it"
    assert log.read_text().count(words) == 1  # by one rank
    assert processes(LAUNCHED, str(study)) == []

    assert main(command) == 0
    assert log.read_text().count(words) == 2  # both attempts
    one = page(tmp_path, **settings, training__per_device_train_batch_size=32)
    assert main(["study", str(one), "--output-dir", str(tmp_path / "one"), "--jobs", "1"]) == 0
    for name in (lost, "student-a0-T1-s0", "student-a0.1-T1-s0"):
        mine, theirs = weights_of(study, name), weights_of(tmp_path / "one", name)
        for key, weight in theirs.items():
            torch.testing.assert_close(mine[key], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_process_group_ends_with_the_study_that_began_it(
    number: signal.Signals, tmp_path: Path, on_two: list[str]
) -> None:
    study = tmp_path / "two"
    recipe = page(tmp_path, training__max_steps=100_000)
    child = fork(["study", str(recipe), "--output-dir", str(study), *on_two])
    try:
        until(lambda: len(processes(LAUNCHED, str(study))) == 3)  # the launcher and two ranks
    finally:  # also when this test is cut off: the study would go on for hours
        os.kill(child, number)
    _, status = os.waitpid(child, 0)
    assert (os.WEXITSTATUS(status) == 130) if number == signal.SIGINT else os.WIFSIGNALED(status)
    until(lambda: processes(LAUNCHED, str(study)) == [])


def test_an_inline_study_refuses_the_cells_of_two_processes(tmp_path: Path) -> None:
    """They took twice the batch: see the signature."""
    from dataclasses import replace

    from hf_lskd.study.bench import cell_signature, open_bench
    from hf_lskd.study.grid import cells

    bench = open_bench(load_recipe(page(tmp_path)))
    signatures = {cell_signature(replace(bench, processes=n), cells(bench.recipe)[0]) for n in (1, 2)}
    assert len(signatures) == 2


def test_a_launched_cell_on_other_processes_than_asked_for_fails_with_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    study = tmp_path / "study"
    (study / "cells").mkdir(parents=True)
    write_json(study / STUDY, load_recipe(page(tmp_path)).to_dict())
    assert launched_cell.main([str(study), "teacher-a0-s0", "--processes", "2"]) == 2
    error = record_of(study, "teacher-a0-s0")["error"]
    assert "1 process that knows of each other, with 1 launched and 2 asked for" in error["message"]
    assert error["input"]
    with pytest.raises(InputError, match=r"cell teacher-a1.*teacher-a0-s0"):
        launched_cell.main([str(study), "teacher-a1-s0"])


def test_a_launched_cell_is_the_cell_of_its_study(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recipe, study, inline = page(tmp_path), tmp_path / "study", tmp_path / "inline"
    (study / "cells").mkdir(parents=True)
    write_json(study / STUDY, load_recipe(recipe).to_dict())
    assert launched_cell.main([str(study), "student-a0-T2-s0"]) == 2  # before its teacher
    assert "without its teacher teacher-a0-s0" in record_of(study, "student-a0-T2-s0")["error"]["message"]
    assert launched_cell.main([str(study), "teacher-a0-s0"]) == 0
    assert launched_cell.main([str(study), "student-a0-T2-s0"]) == 0
    assert "1 process x 16 examples x 1 accumulated = 16 a step" in capsys.readouterr().out
    assert main(["study", str(recipe), "--output-dir", str(inline), "--jobs", "1"]) == 0
    for name in ("teacher-a0-s0", "student-a0-T2-s0"):
        one, other = record_of(study, name), record_of(inline, name)
        assert (one["signature"], one["metrics"]) == (other["signature"], other["metrics"])
        mine, theirs = weights_of(study, name), weights_of(inline, name)
        assert all(torch.equal(weight, theirs[key]) for key, weight in mine.items())


# ---- What is refused before anything begins


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--launcher", "accelerate"], "no --accelerate-config.*counts only when it is named"),
        (["--launcher", "accelerate", "--accelerate-config", "nowhere.yaml"], "nowhere.yaml.*See recipes/accelerate"),
        (
            ["--launcher", "accelerate", "--accelerate-config", str(CPU_2)],
            "2 processes on 0 accelerators.*ACCELERATE_USE",
        ),
        (["--launcher", "accelerate", "--jobs", "2"], "--jobs 2 with --launcher accelerate"),
        (["--wait"], "--wait with --launcher inline"),
        (["--accelerate-config", str(CPU_2)], "--accelerate-config with --launcher inline"),
        (["--launcher", "accelerate", "--slurm-limit", "3"], "--slurm-limit with --launcher accelerate"),
    ],
)
def test_options_that_do_not_fit_change_nothing(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import re

    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert main(["study", str(page(tmp_path)), "--output-dir", str(tmp_path / "study"), *words]) == 2
    assert re.search(message, capsys.readouterr().err, re.DOTALL)
    assert not (tmp_path / "study").exists()


def test_a_cell_over_two_machines_is_not_started_by_one(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = CPU_2.with_name("two_machines.yaml")
    words = ["--launcher", "accelerate", "--accelerate-config", str(config), "--output-dir", str(tmp_path / "study")]
    assert main(["study", str(page(tmp_path)), *words]) == 2
    assert "2 machines with --launcher accelerate" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["distributed_type: MULTI_CPU", 'distributed_type: "NO"', "use_cpu: true"])
def test_trap_27_a_configuration_that_starts_strangers_is_refused(kind: str, tmp_path: Path) -> None:
    """accelerate starts one process, or two that know nothing of each other, from these, and says nothing."""
    lines = [line for line in CPU_2.read_text().splitlines() if not line.startswith(kind.partition(":")[0])]
    (tmp_path / "bad.yaml").write_text("\n".join([*lines, kind]))
    with pytest.raises(InputError, match=r"2 processes with.*cpu_2\.yaml"):
        read_config(tmp_path / "bad.yaml")


def test_trap_20_a_process_that_would_split_its_batch_over_several_gpus_is_refused() -> None:
    """One process on a machine of eight: the stock trainer multiplies the batch by eight and says so in its own log only."""
    usual = {"world_size": 1, "n_gpu": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
    args = SimpleNamespace(**usual, learning_rate=0.5)
    assert check_batch(args, 1).startswith("1 process x 4 examples x 3 accumulated = 12 a step; learning rate 0.5")
    assert check_batch(SimpleNamespace(**vars(args), max_tokens=100), 1).startswith(
        "1 process x 100 tokens at most x 3"
    )
    with pytest.raises(InputError, match="1 process with 8 GPUs"):
        check_batch(SimpleNamespace(**{**vars(args), "n_gpu": 8}), 1)
    with pytest.raises(InputError, match=r"1 process with 1 GPU each.*2 with"):
        check_batch(args, 2)

"""What accelerate starts from our configurations, and that a run on other processes than were meant stops before it begins."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from hf_lskd.cli import main
from tests.tiny_study import dump, values, write_images

ROOT = Path(__file__).resolve().parents[1]
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


def launched(tmp_path: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    page = dump(values(write_images(tmp_path / "images")), tmp_path / "recipe.yaml")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE")}
    command = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "recipes/accelerate/cpu_2.yaml")]
    command += ["--main_process_port", "0", "-m", "hf_lskd.cli", "train", str(page)]
    return subprocess.run(
        [sys.executable, *command, "--output-dir", str(tmp_path / "cell"), *words],
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

"""Rows of a study in processes of their own: the same study, whoever dies."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_lskd.errors import InputError
from hf_lskd.recipe import Recipe, recipe_from_dict
from hf_lskd.record import read_record
from hf_lskd.study import side_by_side
from hf_lskd.study.grid import teachers
from hf_lskd.study.runner import run_study
from tests.tiny_study import NAMES, bytes_of, changed, dump, fork, values, write_images


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    tiny = values(write_images(tmp_path_factory.mktemp("images")))
    return recipe_from_dict(changed(tiny, "projection", None))


def rows_at_work(folder: Path) -> list[int]:
    """Process ids of the rows of the study in `folder`."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes().decode().split("\0")
        except OSError:
            continue
        if "hf_lskd.study.side_by_side" in words and any(str(folder) in word for word in words):
            found.append(int(place.parent.name))
    return found


def until(holds: Any, limit: float = 60.0) -> None:
    deadline = time.monotonic() + limit
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_rows_at_once_give_the_study_of_one_after_another(recipe: Recipe, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    one, two = (run_study(recipe, tmp_path / str(jobs), jobs=jobs) for jobs in (1, 2))
    assert [record["name"] for record in two] == [record["name"] for record in one] == NAMES
    assert bytes_of(tmp_path / "1", "results.csv", "eta.csv") == bytes_of(tmp_path / "2", "results.csv", "eta.csv")
    for name in NAMES:
        mine, theirs = (load_file(tmp_path / n / "cells" / name / "model" / "model.safetensors") for n in "12")
        assert all(torch.equal(weight, theirs[key]) for key, weight in mine.items())
    assert rows_at_work(tmp_path) == []


def test_a_row_whose_process_dies_costs_the_others_nothing_and_is_made_up_for(recipe: Recipe, tmp_path: Path) -> None:
    def smoothed() -> list[int]:
        return [pid for pid in rows_at_work(tmp_path) if b'"label_smoothing": 0.1' in words_of(pid)]

    def kill_one() -> None:
        until(smoothed)
        os.kill(smoothed()[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    records = run_study(recipe, tmp_path, jobs=2)
    killer.join()
    assert [record["status"] for record in records] == ["complete"] * 3 + ["failed"] * 3
    assert "run the study again" in records[3]["error"]["message"]
    assert {record["status"] for record in run_study(recipe, tmp_path, jobs=2)} == {"complete"}


def words_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def test_rows_end_with_the_study_that_began_them(recipe: Recipe, tmp_path: Path) -> None:
    page = dump(recipe.to_dict(), tmp_path / "recipe.yaml")
    child = fork(["study", str(page), "--output-dir", str(tmp_path / "run"), "--jobs", "2"])
    until(lambda: len(rows_at_work(tmp_path / "run")) == 2)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    until(lambda: rows_at_work(tmp_path / "run") == [])


def test_a_cell_that_fails_in_a_row_of_its_own_is_recorded_with_its_error(recipe: Recipe, tmp_path: Path) -> None:
    broken = recipe_from_dict(changed(recipe.to_dict(), "students.0.training.learning_rate", 1e30))
    records = run_study(broken, tmp_path, jobs=2)
    assert [record["status"] for record in records] == ["complete", "failed", "failed"] * 2
    error = (read_record(tmp_path / "cells" / NAMES[1]) or {})["error"]
    assert "diverged" in error["message"]
    assert error["traceback"].startswith("Traceback")


def test_jobs_are_no_more_than_rows_and_at_least_one(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(teachers(recipe)) == 2
    assert side_by_side.jobs_of(recipe, 8) == 2
    assert side_by_side.jobs_of(recipe, 1) == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert side_by_side.jobs_of(recipe, None) == (1 if torch.accelerator.is_available() else 2)
    assert side_by_side.threads_of(2) == 4
    with pytest.raises(InputError, match=r"--jobs 0.*from 1"):
        side_by_side.jobs_of(recipe, 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert side_by_side.jobs_of(recipe, None) == 1
    with pytest.raises(InputError, match="2 processes"):
        side_by_side.jobs_of(recipe, 2)


def test_each_row_has_a_gpu_of_its_own_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [side_by_side.environment(3, slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [side_by_side.environment(2, slot)["CUDA_VISIBLE_DEVICES"] for slot in range(2)] == ["5", "7"]


@pytest.mark.parametrize("text", ["not JSON", "3", "null", "[1]"])
def test_what_a_library_prints_in_a_row_is_passed_on(capfd: pytest.CaptureFixture, text: str) -> None:
    process = subprocess.Popen(["echo", text], stdout=subprocess.PIPE, text=True)
    notes = side_by_side.SimpleQueue()
    side_by_side.listen(3, process, notes)
    side_by_side.close(process)
    assert notes.get() == (3, None)
    assert capfd.readouterr().err == f"{text}\n"

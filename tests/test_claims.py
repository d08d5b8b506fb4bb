"""Several processes at once on one study's folder: everything is made, once."""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hf_lskd.cli import main
from hf_lskd.record import read_record
from hf_lskd.study import claims, runner
from tests.test_side_by_side import until
from tests.tiny_study import NAMES, bytes_of, changed, dump, fork, run_and_kill, values, write_images

HOLD = """
import sys
from pathlib import Path
from hf_lskd.study.claims import claim
with claim(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    recipe = changed(values(write_images(folder)), "projection", None)
    return dump(recipe, folder / "recipe.yaml")


@pytest.fixture
def diary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that gets a line with the name of each cell that any process, forked from here, begins to make."""
    path, make = tmp_path / "diary", runner.run_cell

    def told(bench: Any, cell: Any, *rest: Any) -> Any:
        with path.open("a") as file:
            file.write(f"{cell.name}\n")
        return make(bench, cell, *rest)

    monkeypatch.setattr(runner, "run_cell", told)
    return path


def study_of(page: Path, folder: Path) -> list[str]:
    return ["study", str(page), "--output-dir", str(folder), "--jobs", "1"]


def all_end_well(children: list[int]) -> None:
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * len(children)


def finish_together(page: Path, folder: Path, diary: Path) -> None:
    diary.unlink(missing_ok=True)
    all_end_well([fork(study_of(page, folder)) for _ in range(3)])
    assert Counter(diary.read_text().split()) == Counter(NAMES)
    assert [(read_record(folder / "cells" / name) or {})["status"] for name in NAMES] == ["complete"] * 6
    assert [place.name for place in (folder / "cells").glob(".*")] == []


def test_three_processes_started_at_once_finish_one_study_together(page: Path, diary: Path, tmp_path: Path) -> None:
    finish_together(page, tmp_path / "three", diary)
    assert main(study_of(page, tmp_path / "one")) == 0
    assert bytes_of(tmp_path / "three", "results.csv", "eta.csv") == bytes_of(
        tmp_path / "one", "results.csv", "eta.csv"
    )


@pytest.mark.slow
def test_no_cell_is_made_twice_in_twenty_runs_of_three_processes(page: Path, diary: Path, tmp_path: Path) -> None:
    for run in range(20):
        finish_together(page, tmp_path / str(run), diary)


def test_what_a_killed_process_was_making_is_made_by_the_one_that_waits(
    page: Path, diary: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    last = folder / "cells" / f".{NAMES[-1]}.partial"
    waiting: list[int] = []

    def join_when_the_last_cell_is_begun() -> None:
        until(last.exists)
        waiting.append(fork(study_of(page, folder)))

    starter = threading.Thread(target=join_when_the_last_cell_is_begun)
    starter.start()
    run_and_kill([*study_of(page, folder), "--lockstep", "off"], lambda: bool(waiting))
    starter.join()
    all_end_well(waiting)
    assert Counter(diary.read_text().split()) == Counter([*NAMES, NAMES[-1]])


def test_a_cell_that_fails_is_tried_by_one_process_only(page: Path, diary: Path, tmp_path: Path) -> None:
    import yaml

    broken = dump(
        changed(yaml.safe_load(page.read_text()), "students.0.training.learning_rate", 1e30), tmp_path / "broken.yaml"
    )
    children = [fork(study_of(broken, tmp_path / "run")) for _ in range(2)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [1, 1]
    assert Counter(diary.read_text().split()) == Counter(NAMES)
    assert main(study_of(broken, tmp_path / "run")) == 1  # another run tries again
    assert Counter(diary.read_text().split())[NAMES[1]] == 2


def holder(folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_claim_is_one_processs_until_it_ends_and_leaves_nothing(tmp_path: Path) -> None:
    cell = tmp_path / "cells" / "cell"
    with holder(cell) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with claims.claim(cell) as mine:
            assert not mine
        other.send_signal(signal.SIGKILL)
        other.wait()
        with claims.claim(cell) as mine:
            assert mine
    assert list(cell.parent.iterdir()) == []


def test_a_lock_file_that_its_owner_removed_is_not_taken_for_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A has the file open, B removes it and lets go, A locks it, C makes a new one: A must not believe to have C's."""
    path, opened, really_open = tmp_path / "lock", [], claims.open_lock

    def open_and_lose_the_first(path: Path) -> Any:
        opened.append(really_open(path))
        if len(opened) == 1:
            path.unlink()
        return opened[-1]

    monkeypatch.setattr(claims, "open_lock", open_and_lose_the_first)
    file = claims.locked(path)
    assert file is not None
    assert path.exists()
    assert len(opened) == 2
    file.close()


def test_one_cell_alone_is_refused_while_another_process_makes_it(
    page: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with holder(tmp_path / "cell") as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert main(["train", str(page), "--output-dir", str(tmp_path / "cell")]) == 2
        other.kill()
    assert "another process is making" in capsys.readouterr().err


def test_what_a_process_leaves_that_is_killed_before_its_first_page_is_no_foreign_folder(
    page: Path, tmp_path: Path
) -> None:
    for name in (claims.BEGIN, claims.AT_WORK, ".study.json.host.123"):
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("")
    assert main(study_of(page, tmp_path / "run")) == 0


def test_where_there_are_no_locks_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    import fcntl

    def none_here(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none_here)
    with claims.claim(tmp_path / "cell") as mine:
        assert mine
    assert "one process at a time" in caplog.text

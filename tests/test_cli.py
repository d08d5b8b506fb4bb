"""The command line as its user meets it: help, exit codes, one message for each mistake, every command on a real study."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hf_lskd
from hf_lskd.cli import main
from hf_lskd.study.summary import time_taken
from hf_lskd.trainer import DistillationTrainer
from tests.command import Capture, refused
from tests.tiny_study import changed, dump, finished_study, fork, values, write_idx, write_images

HEAVY = ("torch", "transformers", "timm", "datasets", "sklearn", "matplotlib")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def recipe(images: Path) -> dict[str, Any]:
    """One teacher, two students."""
    return changed(changed(values(images), "grid.label_smoothing", [0.1]), "projection", None)


@pytest.fixture(scope="module")
def done(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_study(recipe, tmp_path_factory.mktemp("study"))


@pytest.fixture
def page(recipe: dict[str, Any], tmp_path: Path) -> Path:
    return dump(recipe, tmp_path / "recipe.yaml")


def python(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, check=False, **more)


# ---- Help


def test_help_answers_without_the_heavy_libraries() -> None:
    code = (
        "import sys; from hf_lskd.cli import main\n"
        "for words in (['--help'], ['study', '--help'], ['--version']):\n"
        "    try: main(words)\n"
        "    except SystemExit as stop: assert stop.code == 0\n"
        f"print('LOADED', [m for m in {HEAVY} if m in sys.modules])"
    )
    out = python("-c", code).stdout
    assert "examples:" in out
    assert "example:\n  hf-lskd study" in out
    assert out.rpartition("LOADED ")[2].strip() == "[]"


@pytest.mark.parametrize("command", ["train", "study", "eta", "project", "report", "compare", "validate"])
def test_each_command_has_help_with_an_example(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"example:\n  hf-lskd {command} " in capsys.readouterr().out


def test_python_m_is_the_command_line() -> None:
    found = python("-m", "hf_lskd", "--version")
    assert (found.returncode, found.stdout) == (0, f"hf-lskd {hf_lskd.__version__}\n")
    found = python("-m", "hf_lskd", "stduy")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("hf-lskd: argument COMMAND: 'stduy'.")


# ---- Mistakes in the words of a command


def test_misspelt_words_get_the_nearest_known_one(capsys: Capture, page: Path) -> None:
    for argv, hint in (
        (["stduy"], "'study'"),
        (["study", str(page), "--outptu-dir", "x"], "'--output-dir'"),
        (["study", str(page), "--dryrun"], "'--dry-run'"),
        (["report", "x", "--debgu"], "'--debug'"),
        (["study", str(page), "--launcher", "inlin"], "'inline'"),
        (["train", str(page), "--role", "techer"], "'teacher'"),
        (["train", str(page), "--learning_rat", "0.1"], "'learning_rate'"),
        (["train", str(page), "--lr=0.1"], "learning_rate"),
    ):
        message = refused(capsys, *argv)
        assert hint in message, message
        assert message.count("\n") == 1


def test_options_are_not_guessed_from_their_beginnings(capsys: Capture, page: Path) -> None:
    assert "unknown argument --out" in refused(capsys, "study", str(page), "--out", "x")


def test_missing_words_are_named(capsys: Capture) -> None:
    assert "recipe" in refused(capsys, "study")
    assert "COMMAND" in refused(capsys)


def test_a_recipe_that_is_not_there_is_named(capsys: Capture, tmp_path: Path) -> None:
    for command in ("study", "train", "validate"):
        message = refused(capsys, command, str(tmp_path / "none.yaml"))
        assert "none.yaml" in message
        assert message.count("\n") == 1


def test_launchers_that_are_not_there_are_answered_with_those_that_are(capsys: Capture, page: Path) -> None:
    assert "inline, accelerate, slurm" in refused(capsys, "study", str(page), "--launcher", "ray")


def test_a_dry_run_says_how_a_cell_is_launched(capsys: Capture, page: Path) -> None:
    config = "recipes/accelerate/ddp_8.yaml"
    words = ["--dry-run", "--launcher", "accelerate", "--accelerate-config", config]
    assert main(["study", str(page), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert f"\taccelerate launch --config_file {config} -m hf_lskd.cli train {page} --role teacher" in lines[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--slurm-limit", "2"], "--slurm-limit with --launcher inline"),
        (["--accelerate-config", "recipes/accelerate/ddp_8.yaml"], "--accelerate-config with --launcher inline"),
        (["--launcher", "accelerate"], "no --accelerate-config"),
        (
            ["--launcher", "accelerate", "--accelerate-config", "recipes/accelerate/two_machines.yaml"],
            "2 machines with",
        ),
        (["--launcher", "slurm", "--slurm-limit", "0"], "--slurm-limit 0"),
        (["--launcher", "slurm", "--slurm-template", "none.sh"], "--slurm-template none.sh"),
        (["--launcher", "slurm", "--jobs", "2"], "--jobs 2 with --launcher slurm"),
        (["--jobs", "0"], "--jobs 0"),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses(
    capsys: Capture, page: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    command = ["study", str(page), "--output-dir", str(tmp_path / "run"), *words]
    assert message in refused(capsys, *command, "--dry-run")
    assert message in refused(capsys, *command)


def test_a_dry_runs_line_starts_as_many_processes_or_none(
    capsys: Capture, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    config = "recipes/accelerate/cpu_2.yaml"
    assert main(["study", str(page), "--dry-run", "--launcher", "accelerate", "--accelerate-config", config]) == 0
    for line in capsys.readouterr().out.splitlines():
        command = line.split("\t")[4]
        assert command.startswith(
            f"ACCELERATE_USE_CPU=true accelerate launch --config_file {config} -m hf_lskd.cli train"
        )
        assert " --processes 2 " in command


# ---- Mistakes in recipes and data


def test_validate_gives_every_error_of_every_file_at_once(capsys: Capture, recipe: dict, tmp_path: Path) -> None:
    good = dump(recipe, tmp_path / "good.yaml")
    one = changed(changed(recipe, "grid.label_smoothing", [1.0]), "grid.temperature", [0, 2, 2])
    bad = dump(changed(one, "training.learning_rat", 0.1), tmp_path / "bad.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: [")
    capsys.readouterr()
    assert main(["validate", str(good), str(bad), str(broken), str(tmp_path / "none.yaml")]) == 2
    out, err = capsys.readouterr()
    assert out == f"{good}: image_classification, 3 cells\n"
    for part in ("grid.label_smoothing", "grid.temperature", "learning_rate", "broken.yaml", "none.yaml"):
        assert part in err
    assert err.count("bad.yaml:") >= 4
    assert "Traceback" not in err


def test_validate_opens_data_only_when_asked(capsys: Capture, recipe: dict, tmp_path: Path) -> None:
    page = dump(changed(recipe, "data.path", str(tmp_path / "nowhere")), tmp_path / "recipe.yaml")
    assert main(["validate", str(page)]) == 0
    assert str(tmp_path / "nowhere") in refused(capsys, "validate", str(page), "--data")
    page = dump(changed(recipe, "eta.targets", ["z"]), tmp_path / "recipe.yaml")
    assert "class 'z'" in refused(capsys, "validate", str(page), "--data")


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "label", "class"])
def test_bad_data_get_one_message(capsys: Capture, recipe: dict, tmp_path: Path, damage: str) -> None:
    folder = write_images(tmp_path / "images")
    labels = folder / "train-labels-idx1-ubyte"
    images = folder / "train-images-idx3-ubyte"
    if damage == "missing":
        labels.unlink()
    elif damage == "empty":
        write_idx(labels, np.zeros(0, np.uint8))
        write_idx(images, np.zeros((0, 16, 16), np.uint8))
    elif damage == "cut":
        images.write_bytes(images.read_bytes()[:-1])
    elif damage == "label":
        labels.write_bytes(labels.read_bytes()[:-1] + b"\x09")
    else:
        content = labels.read_bytes()
        labels.write_bytes(content[:8] + content[8:].replace(b"\x03", b"\x02"))
    path = dump(changed(recipe, "data.path", str(folder)), tmp_path / "recipe.yaml")
    message = refused(capsys, "study", str(path), "--output-dir", str(tmp_path / "run"))
    assert message.count("\n") == 1
    assert "Allowed" in message
    assert not (tmp_path / "run").exists()


def test_debug_shows_the_traceback(capsys: Capture, tmp_path: Path) -> None:
    assert main(["report", str(tmp_path), "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("hf-lskd: ")


def test_the_unexpected_exits_with_1_and_points_to_debug(
    capsys: Capture, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no space left")

    monkeypatch.setattr(DistillationTrainer, "train", broken)
    message = refused(capsys, "train", str(page), "--output-dir", str(tmp_path / "cell"), code=1)
    assert message.splitlines() == [
        "hf-lskd: RuntimeError: no space left",
        "hf-lskd: run again with --debug for the traceback",
    ]


def test_an_interrupt_exits_with_130_and_the_study_goes_on_later(
    capsys: Capture, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = DistillationTrainer.train
    calls = []

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        return trained(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "train", interrupted)
    argv = ["study", str(page), "--output-dir", str(tmp_path / "run")]
    assert refused(capsys, *argv, code=130) == "hf-lskd: Interrupted. Run the same command again to go on.\n"
    assert main(argv) == 0
    assert len(calls) == 4  # the teacher once, the student that was interrupted twice, the last student


# ---- Dry run


def test_dry_run_prints_a_line_a_cell_and_needs_no_data(capsys: Capture, recipe: dict, tmp_path: Path) -> None:
    page = dump(changed(recipe, "data.path", "/nowhere"), tmp_path / "recipe.yaml")
    assert main(["study", str(page), "--output-dir", str(tmp_path / "run"), "--dry-run", "--seeds", "2"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[:4] for row in rows] == [
        ["teacher", "0.1", "-", "0"],
        ["student", "0.1", "1", "0"],
        ["student", "0.1", "2", "0"],
        ["teacher", "0.1", "-", "1"],
        ["student", "0.1", "1", "1"],
        ["student", "0.1", "2", "1"],
    ]
    assert all(len(row) == 5 for row in rows)
    assert all(row[4].startswith(f"hf-lskd train {page} --role {row[0]} ") for row in rows)
    assert not (tmp_path / "run").exists()
    assert "at least 1" in refused(capsys, "study", str(page), "--dry-run", "--seeds", "0")


def test_every_command_of_a_dry_run_names_the_very_cell(
    capsys: Capture, recipe: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the recipe's first values are not the paper's, and with values that need all their digits."""
    from hf_lskd.recipe import load_recipe
    from hf_lskd.study import single
    from hf_lskd.study.grid import cells

    grid = {
        "label_smoothing": [0.1000001],
        "temperature": [2.0000001],
        "kd_weight": [0.5, 1],
        "kd_loss_scale": ["equalised", 1],
        "scale_student": [False, True],
        "student_label_smoothing": [0.1, 0],
        "kd_top_k": [3, None],
    }
    page = dump(changed(recipe, "grid", grid), tmp_path / "recipe.yaml")
    named = []

    class Enough(Exception):  # noqa: N818
        pass

    def stop(found_recipe: Any, cell: Any, rest: Any) -> None:
        named.append(cell)
        raise Enough

    monkeypatch.setattr(single, "with_training", stop)
    monkeypatch.setattr(single, "given_teachers", lambda args: [Path()] if args.role == "student" else [])
    monkeypatch.setattr(single, "finished", lambda path: {"label_smoothing": 0.1000001})
    main(["study", str(page), "--dry-run"])
    for line in capsys.readouterr().out.splitlines():
        main(line.split("\t")[4].split()[1:])
    assert named == cells(load_recipe(page))


# ---- On a finished study


def test_eta_prints_a_line_a_pair_and_split(capsys: Capture, done: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(done, tmp_path / "run"))
    before = (copy / "eta.csv").read_bytes()
    (copy / "eta.csv").unlink()
    capsys.readouterr()
    assert main(["eta", str(copy)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (copy / "eta.csv").read_bytes() == before
    assert [line.split()[:5] for line in lines[1:3]] == [
        ["student", "0.1", "0", "1→2", "train"],
        ["student", "0.1", "0", "1→2", "validation"],
    ]
    assert all("needs two seeds" in line for line in lines[1:3])
    assert lines[3] == str(copy / "eta.csv")


def test_a_study_says_how_long_it_took_and_where_the_time_went(capsys: Capture, recipe: dict, tmp_path: Path) -> None:
    study = finished_study(recipe, tmp_path)
    took = r"\d+ s"
    said, page = capsys.readouterr().out.splitlines()[-2:]
    parts = rf"{took}: 1 teacher {took}, 2 students {took}, measuring them {took}, tables and report {took}( \(cells' .*\))?"
    assert re.fullmatch(parts, said)
    assert page == str(study / "report.html")
    assert main(["study", str(tmp_path / "recipe.yaml"), "--output-dir", str(study)]) == 0
    said, page = capsys.readouterr().out.splitlines()[-2:]
    assert re.fullmatch(rf"{took}: all 3 cells were finished already; tables and report were made again", said)


def test_the_time_of_a_command_is_that_of_its_process(recipe: dict, tmp_path: Path) -> None:
    page = dump(changed(recipe, "grid.temperature", [1]), tmp_path / "recipe.yaml")
    argv = ["study", str(page), "--output-dir", str(tmp_path / "run"), "--jobs", "1"]
    wait = "import time; time.sleep(2)"  # stands for what is imported before the command begins
    command = f"{wait}\nimport sys; from hf_lskd.cli import main; sys.argv = ['hf-lskd', *{argv!r}]; sys.exit(main())"
    began = time.monotonic()
    done = python("-c", command)
    took = time.monotonic() - began
    said = done.stdout.splitlines()[-2]
    parts = r"(\d+) s: before the first cell (\d+) s, 1 teacher (\d+) s, 1 student (\d+) s, measuring them (\d+) s, "
    found = re.fullmatch(rf"{parts}tables and report (\d+) s", said)
    assert found, said
    whole, before, *rest = map(int, found.groups())
    assert 2 <= before <= whole <= took + 2  # seconds are rounded, and a process's beginning is known to one
    assert before + sum(rest) <= whole + 4


def test_the_time_of_a_study_is_what_its_records_say(tmp_path: Path) -> None:
    def record(name: str, role: str, train: float, **more: Any) -> dict[str, Any]:
        durations = {"train": train, "evaluate": 10.0, "total": train + 10.0}
        return {"name": name, "role": role, "status": "complete", "durations": durations, **more}

    records = [record("a", "teacher", 99.0), record("b", "student", 70.0), record("c", "student", 50.0)]
    records += [{"name": "d", "role": "student", "status": "failed"}]
    for name, at in (("b", 1000), ("c", 1020)):
        (tmp_path / "cells" / name).mkdir(parents=True)
        (tmp_path / "cells" / name / "record.json").touch()
        os.utime(tmp_path / "cells" / name / "record.json", (at, at))
    (tmp_path / "report.html").touch()
    os.utime(tmp_path / "report.html", (1025, 1025))
    rest = "2 students 2 min 00 s, measuring them 20 s, tables and report 5 s, 1 failed"
    assert time_taken(tmp_path, records, {"a"}, 150.0) == f"2 min 30 s: {rest}"
    assert time_taken(tmp_path, records, {"a"}, 80.0).startswith(f"1 min 20 s: {rest} (cells' own times")
    # of a process that began at 875: its first cell, b, at 920
    assert time_taken(tmp_path, records, {"a"}, 150.0, True) == f"2 min 30 s: before the first cell 45 s, {rest}"
    for one in records[1:3]:  # in turns with each other: nobody has noted when they began
        one["lockstep"] = 2
    assert time_taken(tmp_path, records, {"a"}, 150.0, True) == f"2 min 30 s: {rest}"
    taken = record("e", "teacher", 99.0, taken_from={})
    assert time_taken(tmp_path, [taken, records[0]], {"a"}, 3.0) == "3 s: 1 taken over"


def test_project_and_report_write_the_page(capsys: Capture, done: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(done, tmp_path / "run"))
    (copy / "report.html").unlink()
    capsys.readouterr()
    assert main(["project", str(copy), "--classes", "o", "ó", "a"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(copy / "projections.json"), str(copy / "report.html")]
    names = [entry["name"] for entry in json.loads((copy / "projections.json").read_text())["classes"]]
    assert names == ["o", "ó", "a"]
    assert main(["report", str(copy)]) == 0
    assert "'z'" in refused(capsys, "project", str(copy), "--classes", "o", "z", "a")
    assert "three different classes" in refused(capsys, "project", str(copy), "--classes", "o", "o", "a")


def test_commands_on_what_is_no_study(capsys: Capture, done: Path, tmp_path: Path) -> None:
    for command in ("eta", "project", "report", "compare"):
        for folder in (tmp_path / "none", tmp_path, done / "cells" / "teacher-a0.1-s0"):
            message = refused(capsys, command, str(folder))
            assert str(folder) in message
            assert message.count("\n") == 1
    (tmp_path / "study.json").write_text("{")
    assert "study.json is no JSON" in refused(capsys, "eta", str(tmp_path))


def test_eta_of_a_study_without_groups_says_so(capsys: Capture, recipe: dict, done: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(done, tmp_path / "run"))
    page = json.loads((copy / "study.json").read_text())
    (copy / "study.json").write_text(json.dumps({**page, "data": {**page["data"], "groups": None}, "eta": None}))
    assert "no semantic groups" in refused(capsys, "eta", str(copy))


# ---- A terminal, and a process of its own


def test_progress_shows_a_line_a_cell_with_the_time_left_on_a_terminal_only(page: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    out = tmp_path / "out"
    with out.open("w") as file:
        child = fork(["study", str(page), "--output-dir", str(tmp_path / "run")], file.fileno(), theirs)
    os.close(theirs)
    seen = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            seen += os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    lines = [line.rpartition("\x1b[2K")[2].strip() for line in seen.decode().split("\n")]
    for index, name in enumerate(("teacher-a0.1-s0", "student-a0.1-T1-s0", "student-a0.1-T2-s0"), start=1):
        (line,) = [line for line in lines if line.startswith(f"{index}/3 {name}")]
        assert "top-1" in line
        assert (" left" in line) is (index < 3)
    assert "\x1b" not in out.read_text()
    assert out.read_text().splitlines()[-1] == str(tmp_path / "run" / "report.html")


def test_a_reader_that_stops_reading_gets_no_traceback(page: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with (tmp_path / "err").open("w") as err:
        child = fork(["study", str(page), "--dry-run"], writing, err.fileno())
    os.close(writing)
    os.waitpid(child, 0)
    assert (tmp_path / "err").read_text() == ""

"""The bench's page, and that its column still trains; no test asserts a time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import __main__, tables
from bench.gpu import __main__ as gpu
from bench.gpu.sizes import TINY, Size
from bench.measure import Result


def result(name: str) -> Result:
    return Result(name, "a / b", "peer", "≤ 1", 0.5, True, (0.4, 0.6), (0.3, 0.7), 5)


def test_page_has_every_row_and_one_machine_that_of_the_latest_run(tmp_path, monkeypatch):
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    monkeypatch.setattr(tables, "PAGE", page)
    monkeypatch.setattr(tables, "RESULTS", results)
    for load, name in ((1.0, "first"), (2.0, "second"), (3.0, "first")):
        monkeypatch.setattr(tables.os, "getloadavg", lambda load=load: (load, load, load))
        tables.write(name, [result(f"row {name}")])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert text.count("| row first |") == text.count("| row second |") == 1
    assert [line for line in text.splitlines() if "load at the end" in line] == [
        line for line in text.splitlines() if "load at the end 3.0" in line and line.startswith("Machine of the latest")
    ]
    assert text.count("load at the end") == 1
    assert list(json.loads(results.read_text())) == ["second", "first"]


@pytest.mark.parametrize("words", [["loss", "--set", "data.size=16"], ["--recipe", "x.yaml"]])
def test_settings_go_with_the_column_alone(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    with pytest.raises(SystemExit):
        __main__.main()
    assert "go with the row column" in capsys.readouterr().err


@pytest.mark.slow
def test_column_trains_each_way(monkeypatch, capsys):
    from bench import column

    monkeypatch.setattr(column, "TEMPERATURES", (1.0, 64.0))
    found = column.rows(1, settings=["training.max_steps=2"])
    assert [(one.meaning, one.rounds) for one in found] == [(column.LOCKSTEP, 1), (column.CACHED, 1)]
    assert all(one.ratio > 0 for one in found)


@pytest.mark.slow
def test_the_script_for_a_gpu_works_from_end_to_end(tmp_path):
    root = Path(__file__).resolve().parents[1]
    command = [
        sys.executable,
        "-m",
        "bench.gpu",
        "--device",
        "cpu",
        "--tiny",
        "--minutes",
        "20",
        "--out",
        str(tmp_path / "lines"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert [line for line in lines if "error" in line] == [], done.stderr
    rows = {line["part"]: [] for line in lines}
    for line in lines:
        rows[line["part"]].append(line)
    assert list(rows) == list(gpu.PARTS)
    assert {"naive", "compiled", "ours"} <= {line.get("contestant") for line in rows["loss"]}
    assert {line.get("contestant") for line in rows["step"]} >= {"ours", "bare loop", "timm", "plain Trainer"}
    assert all(line["images_per_second"] > 0 for line in rows["cell"] if "images_per_second" in line)
    assert done.stdout.count("\ncell ") == 3  # the table


def test_a_part_that_fails_leaves_the_others_alone(monkeypatch, capsys):
    def broken(size):
        yield {"row": "before"}
        raise ValueError("no such kernel")

    monkeypatch.setitem(gpu.PARTS, "loss", broken)
    gpu.run_part("loss", Size("cpu", **TINY))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"part": "loss", "row": "before"}, {"part": "loss", "error": "ValueError: no such kernel"}]


def test_a_part_that_ends_badly_or_takes_too_long_is_said(monkeypatch, capsys):
    for code, seconds, said in (
        ("import os; os._exit(3)", 60, "ended with 3"),
        ("import time; time.sleep(60)", 1, "stopped after 1 s"),
    ):
        monkeypatch.setattr(gpu, "command_of", lambda name, words, code=code: [sys.executable, "-c", code])
        lines = list(gpu.run_apart("loss", [], seconds))
        assert lines[0] == {"part": "loss", "error": said}
        assert list(lines[1]) == ["part", "seconds"]

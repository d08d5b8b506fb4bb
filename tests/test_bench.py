"""The bench's page, and that its column still trains; no test asserts a time."""

import json
import sys

import pytest

from bench import __main__, tables
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

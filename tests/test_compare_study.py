"""A real study beside the paper's tables: `study` writes compare.csv itself, and g stands where a teacher alone is finished too."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from hf_lskd.cli import main
from hf_lskd.paper import paper_pair
from hf_lskd.study.compare import COMPARE, write_comparison
from tests.tiny_study import changed, dump, finished_study, values, write_images

R18 = "cub200_resnet50_resnet18"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def beside(folder: Path) -> dict[tuple[float, float], dict[str, str]]:
    """The students' top-1 rows of a study's compare.csv, by α and T."""
    rows = [row for row in rows_of(folder / COMPARE) if (row["kind"], row["metric"]) == ("cell", "top1")]
    return {(float(r["label_smoothing"]), float(r["temperature"])): r for r in rows if r["role"] == "student"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two seeds of a teacher and two temperatures of a student that belongs to a table."""
    made = values(write_images(tmp_path_factory.mktemp("images"), train=48, validation=24))
    for path, value in {
        "students.0.paper": R18,
        "grid": {"label_smoothing": [0.1], "temperature": [1, 64], "seed": [0, 1]},
        "projection": None,
        "eta": None,
    }.items():
        made = changed(made, path, value)
    return made


@pytest.fixture(scope="module")
def done(page: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_study(page, tmp_path_factory.mktemp("beside"))


def without(done: Path, folder: Path, temperature: str) -> Path:
    """The study as it is when no student of this T was trained."""
    shutil.copytree(done, folder)
    kept = [row for row in rows_of(folder / "results.csv") if row["temperature"] != temperature]
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(kept[0]))
        writer.writeheader()
        writer.writerows(kept)
    return folder


def test_a_study_writes_what_compare_writes_and_its_page_shows_it(done: Path, tmp_path: Path) -> None:
    own = (done / COMPARE).read_bytes()
    folder = Path(shutil.copytree(done, tmp_path / "run"))
    (folder / COMPARE).unlink()
    write_comparison(folder)
    assert (folder / COMPARE).read_bytes() == own
    text = re.sub(r"\s+", " ", (done / "report.html").read_text())
    assert "Each cell beside the paper’s" in text
    assert R18 in text
    found = beside(done)
    assert found.keys() == {(0.1, 1.0), (0.1, 64.0)}
    assert all(float(row["target_gradient"]) > 0 and row["seeds"] == "2" for row in found.values())


def test_a_study_that_names_no_table_any_more_has_no_comparison(
    page: dict[str, Any], done: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(done, tmp_path / "run"))
    plain = dump(changed(page, "students.0.paper", None), tmp_path / "r.yaml")
    assert main(["study", str(plain), "--output-dir", str(folder)]) == 0
    assert not (folder / COMPARE).exists()


def test_g_of_a_cell_whose_teacher_alone_is_finished_is_the_one_that_it_has_when_it_is_trained(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = without(done, tmp_path / "run", "64.0")
    assert main(["compare", str(folder)]) == 0
    shown = capsys.readouterr().out
    before, after = beside(done)[0.1, 64.0], beside(folder)[0.1, 64.0]
    assert after["target_gradient"] == before["target_gradient"]
    assert (after["ours"], after["seeds"], after["verdict"]) == ("", "0", "cannot tell")
    assert float(after["paper_value"]) == paper_pair(R18).value(0.1, 64.0, "top1")
    line = next(line for line in shown.splitlines() if line.startswith("α = 0.1, T = 64  Top-1"))
    assert line.split()[-1] not in ("–", "tell")
    assert (0.1, 2.0) not in beside(folder)  # no g, no row
    assert "α = 0.1, T = 2; α = 0.1, T = 3; α = 0.1, T = 64" in re.sub(r"\s+", " ", shown)
    trained = next(line for line in shown.splitlines() if line.startswith("Of the numbers"))
    assert "2 differ" in trained or "2 cannot be told" in trained  # top-1 and top-5 of T = 1 alone are counted


def test_g_there_is_the_mean_over_the_teachers_and_of_the_papers_own_targets(done: Path, tmp_path: Path) -> None:
    folder = without(done, tmp_path / "run", "64.0")
    for seed, g in ((0, 0.25), (1, 0.75)):
        path = folder / "cells" / f"teacher-a0.1-s{seed}" / "targets.json"
        path.write_text(json.dumps({"64": {"gradient": g}, "64 top 8": {"gradient": 9.0}}))
    write_comparison(folder)
    assert float(beside(folder)[0.1, 64.0]["target_gradient"]) == 0.5
    study = json.loads((folder / "study.json").read_text())
    study["teacher"]["ensemble"] = [0, 1]  # what students would learn from is neither of the two
    (folder / "study.json").write_text(json.dumps(study))
    write_comparison(folder)
    assert (0.1, 64.0) not in beside(folder)

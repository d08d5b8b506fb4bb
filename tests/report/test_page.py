"""The report's page: what went wrong is on it, it stands alone, and it admits what it does not show."""

import json
import re
from pathlib import Path

import pytest

from hf_lskd.errors import InputError
from hf_lskd.study.report import LARGEST, write_report
from hf_lskd.study.report_folder import Key, Setting, read_study
from hf_lskd.study.report_numbers import Scores
from tests.report.page import SMALL, Page, page_of
from tests.study_folder import ETA, RESULTS, make_study

# ---- What went wrong


def test_failed_cells_are_shown_with_their_errors_and_left_out(tmp_path: Path) -> None:
    folder = make_study(tmp_path, failed=("student-a0.1-T64-s1",), error="<b>boom</b> & more", **SMALL)
    page = page_of(folder)
    assert "1 of 30 cells failed and is left out of every number." in page.text
    assert "<b>boom</b> & more" in page.text
    assert "<b>boom" not in page.source
    assert "Where cells share only two seeds, the intervals in brackets are" in page.text
    found = Scores(read_study(folder)).cells[Key(Setting("student"), 0.1, 64.0)]
    assert sorted(found) == [0, 2]


def test_a_study_where_every_student_failed_still_has_a_page(tmp_path: Path) -> None:
    names = [f"student-a{a}-T{t}-s0" for a in ("0", "0.1") for t in (1, 2, 3, 64)]
    page = page_of(make_study(tmp_path, seeds=1, failed=names, **SMALL))
    assert "No student of this study is finished, so there is no answer." in page.text
    assert page.text.count("OutOfMemoryError") == 8


@pytest.mark.parametrize("damaged", ["study.json", "projections.json", "cells/student-a0-T1-s0/record.json"])
def test_damaged_files_are_named(tmp_path: Path, damaged: str) -> None:
    folder = make_study(tmp_path, seeds=1, eta=False, examples=100)
    (folder / damaged).write_text('{"half": ')
    with pytest.raises(InputError, match=re.escape(damaged)):
        write_report(folder)


def test_a_damaged_table_is_named_with_its_line(tmp_path: Path) -> None:
    folder = make_study(tmp_path, seeds=1, **SMALL)
    path = folder / "results.csv"
    path.write_text(path.read_text().replace("teacher-a0-s0,teacher,,0.0", "teacher-a0-s0,teacher,,zero"))
    with pytest.raises(InputError, match=r"results\.csv:2: .*zero"):
        write_report(folder)


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no results\.csv.*hf-lskd study"):
        write_report(tmp_path)


# ---- The page itself


def test_page_is_well_formed_and_stands_alone(demo_page: Page) -> None:
    assert demo_page.stack == []
    assert dict(demo_page.tags)["html"] == {"lang": "en"}
    names = {tag for tag, _ in demo_page.tags}
    assert {"main", "nav", "header", "h1", "h2", "figure", "figcaption", "caption", "title"} <= names
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert not any(
        {"src", "srcset", "style"} & set(attrs) or any(a.startswith("on") for a in attrs) for _, attrs in demo_page.tags
    )
    assert not re.search(r"@import|@font-face|url\(|https?:", demo_page.source)
    links = [attrs["href"] for tag, attrs in demo_page.tags if tag == "a"]
    ids = [attrs["id"] for _, attrs in demo_page.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    assert {str(link) for link in links} <= {f"#{i}" for i in ids}


def test_every_picture_has_a_name_and_a_text(demo_page: Page) -> None:
    pictures = re.findall(r'<svg [^>]*role="img"[^>]*>.*?</svg>', demo_page.source, re.S)
    assert len(pictures) > 20
    assert all(re.search(r"<title>.+?</title><desc>.{20,}?</desc>", p) for p in pictures)
    assert demo_page.source.count("The same as a table") >= 10


def test_every_table_scrolls_in_its_own_box(demo_page: Page) -> None:
    assert demo_page.source.count("<table") == len(re.findall(r'<div class="scroll"[^>]*>\s*<table', demo_page.source))


def test_names_from_data_are_text_never_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    classes = [f"{evil}{i}" for i in range(30)]
    folder = make_study(
        tmp_path, seeds=2, name=f"</title>{evil}", class_names=classes, students=("a", '"><img src=x>'), examples=300
    )
    page = page_of(folder)
    assert "<script" not in page.source
    assert "<img" not in page.source
    assert page.stack == []
    assert evil in page.text


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = make_study(tmp_path, seeds=2, targets=20, examples=300)
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    assert not list(folder.glob(".report*"))


def test_a_large_study_stays_below_three_megabytes(tmp_path: Path) -> None:
    folder = make_study(tmp_path, seeds=1, examples=200)
    content = json.loads((folder / "projections.json").read_text())
    content["rows"] = [{**row, "kd_weight": w / 100} for row in content["rows"] for w in range(80)]
    (folder / "projections.json").write_text(json.dumps(content))
    page = page_of(folder)
    assert len(page.source.encode()) < LARGEST
    assert page.source.count("Projection, α = ") >= 2 * 80 * 5
    assert "of 141 targets; all are in eta.csv" in page.text


def test_best_epoch_last_epoch_settings_and_versions_are_there(demo_page: Page) -> None:
    for text in (
        "best, %",
        "learning_rate: 0.2",
        "2.14.1",
        "Intel(R) Xeon(R)",
        "PMLR 162:2890–2916",
        "Durations",
        "812 MB",
    ):
        assert text in demo_page.text


def test_the_page_says_what_the_study_does_not_show(demo_page: Page) -> None:
    shown = demo_page.text.split("What this study does not show", 1)[1]
    assert "That a smoothed teacher at low T is better: at T = 1, α = 0.1 and α = 0 differ by" in demo_page.text
    assert "One data set, one teacher architecture, one student architecture" in shown
    assert "It does not show that this movement is what costs the accuracy" in shown


def test_the_drawn_studies_have_the_runners_columns() -> None:
    from hf_lskd.study import tables

    assert list(tables.RESULT_FIELDS) == RESULTS
    assert list(tables.ETA_FIELDS) == ETA

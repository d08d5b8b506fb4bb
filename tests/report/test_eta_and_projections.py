"""η and projections in the report."""

import csv
import re
import statistics
from pathlib import Path

import pytest

from hf_lskd.study.panels import Cloud, projection_panel
from hf_lskd.study.report_eta import summaries
from hf_lskd.study.report_folder import read_study
from hf_lskd.study.summary import print_eta
from tests.report.page import SMALL, Page, page_of
from tests.study_folder import make_study


def test_the_terminals_chance_is_that_of_the_page(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_eta(demo)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for one in summaries(read_study(demo)):
        if one.setting.kd_loss_scale == 1.0:
            start = ["student", f"{one.alpha:g}", "0", f"{one.low:g}→{one.high:g}", one.split]
            assert one.chance is not None
            assert [line[-1] for line in lines if line[:5] == start] == [f"{one.chance:.0f}"]
    assert len(lines) == 1 + 2 * 2 * 3 * 6 * 2 + 1


def test_eta_means_are_those_of_the_rows_with_the_interval_around_them(demo: Path) -> None:
    rows = list(csv.DictReader((demo / "eta.csv").read_text(encoding="utf-8").splitlines()))
    for one in summaries(read_study(demo)):
        same = [
            r
            for r in rows
            if (float(r["label_smoothing"]), float(r["T1"]), float(r["T2"]), r["split"])
            == (one.alpha, one.low, one.high, one.split)
            and (r["kd_loss_scale"] == "equalised") == (one.setting.kd_loss_scale == "equalised")
        ]
        assert len(same) == 3 * 40
        assert one.similar.value == pytest.approx(statistics.fmean(float(r["eta_similar"]) for r in same))
        assert one.systematic.value == pytest.approx(100 * statistics.fmean(r["systematic"] == "true" for r in same))
        low, high = one.similar.low, one.similar.high
        assert low is not None
        assert high is not None
        assert low < one.similar.value < high


def test_systematic_share_stands_beside_its_chance(demo: Path, demo_page: Page) -> None:
    chance = [
        r["systematic"] == "true"
        for r in csv.DictReader((demo / "eta_chance.csv").read_text(encoding="utf-8").splitlines())
        if (r["label_smoothing"], r["kd_loss_scale"], r["split"]) == ("0.1", "1.0", "train")
        and r["T1"] in ("1.0", "2.0")
    ]
    found = next(e for e in summaries(read_study(demo)) if (e.alpha, e.high, e.split) == (0.1, 2.0, "train"))
    assert found.chance == pytest.approx(100 * statistics.fmean(chance))
    assert found.chance_pairs == 6
    assert f"{found.chance:.0f} %" in demo_page.text


def test_all_splits_and_targets_are_on_the_page(demo_page: Page) -> None:
    assert demo_page.text.count("Every target, train") == demo_page.text.count("Every target, validation") == 2
    assert "Choice of S1 and S2: min_similar=4" in demo_page.text


def test_projection_panel_keeps_proportions_and_the_row_keeps_its_axes() -> None:
    clouds = [Cloud([(0.0, 0.0), (4.0, 0.0), (0.0, 2.0)], [], None)]
    box = (-1.0, 9.0, -2.0, 3.0)
    placed = [
        re.findall(r"M([\d.]+) ([\d.]+)h0", projection_panel("t", "d", clouds, b))[:3]
        for b in (box, (-1.0, 19.0, -2.0, 8.0))
    ]
    for points in placed:
        (x0, y0), (x1, y1), (x2, y2) = [(float(x), float(y)) for x, y in points]
        assert (x1 - x0) / 4 == pytest.approx((y0 - y2) / 2, abs=0.1)
        assert (y0, x0) == (y1, x2)
    assert placed[0] != placed[1]


def test_studies_without_eta_and_projections_say_so(tmp_path: Path) -> None:
    page = page_of(make_study(tmp_path, **SMALL))
    assert "this study has no η" in page.text
    assert 'id="eta"' not in page.source
    assert "What to look at" not in page.text

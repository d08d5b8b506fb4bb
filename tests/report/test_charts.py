"""Charts: to scale, legible, and whole where cells are missing."""

import re
from itertools import pairwise

import pytest

from hf_lskd.study.charts import LINE_HEIGHT, Curve, Mark, Series, curve_chart, line_chart, nice_ticks
from hf_lskd.study.report_figures import thinned


def test_line_names_do_not_overlap_and_stay_inside() -> None:
    series = [Series(f"α = {i}", [Mark(50 + 0.01 * i), Mark(40 - 0.01 * i)]) for i in range(6)]
    drawn = line_chart("t", "d", ["1", "2"], series, x_label="x", y_label="y")
    heights = sorted(float(y) for y in re.findall(r'class="end s\d" x="[\d.]+" y="([\d.]+)"', drawn))
    assert len(heights) == 6
    assert min(b - a for a, b in pairwise(heights)) >= LINE_HEIGHT - 0.11
    assert heights[0] > 0
    assert heights[-1] < 262


def test_a_missing_cell_breaks_the_line() -> None:
    marks = [Mark(1.0), Mark(2.0), None, Mark(3.0), Mark(4.0)]
    drawn = line_chart("t", "d", list("abcde"), [Series("s", marks)], x_label="x", y_label="y")
    path = re.search(r'class="line" d="([^"]+)"', drawn)
    assert path is not None
    assert [len(part.split("L")) for part in path[1].split("M") if part] == [2, 2]


def test_intervals_are_drawn_to_scale() -> None:
    series = [Series("s", [Mark(5.0, 4.0, 6.0), Mark(8.0, 7.0, 9.0)])]
    drawn = line_chart("t", "d", ["1", "2"], series, x_label="x", y_label="y", limits=(0.0, 10.0))
    tops = [float(y) for y in re.findall(r'class="bar" d="M[\d.]+ ([\d.]+)V', drawn)]
    bottoms = [float(y) for y in re.findall(r'class="bar" d="M[\d.]+ [\d.]+V([\d.]+)M', drawn)]
    assert bottoms[0] - tops[0] == pytest.approx((bottoms[0] - bottoms[1]) * 2 / 3, abs=0.2)


def test_charts_bear_single_points_and_empty_lines() -> None:
    assert "<circle" in curve_chart("t", "d", [Curve("one", [(1.0, 2.0)]), Curve("none", [])], x_label="x", y_label="y")
    assert line_chart("t", "d", ["1"], [Series("s", [None])], x_label="x", y_label="y").endswith("</svg>")


@pytest.mark.parametrize(("low", "high"), [(79.2, 91.3), (0.0, 1.0), (-3.0, 0.02), (5.0, 5.0), (0.001, 0.004)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in ticks)
    assert len(ticks) <= 6
    assert len({round(b - a, 9) for a, b in pairwise(ticks)}) <= 1


def test_thinning_keeps_both_ends() -> None:
    points = [(float(i), 0.0) for i in range(1000)]
    kept = thinned(points, 50)
    assert len(kept) == 50
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]

"""The report's page: its answer against numbers worked out here, what it admits, and that it stands alone."""

import csv
import json
import re
import statistics
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from hf_lskd.errors import InputError
from hf_lskd.study.charts import LINE_HEIGHT, Curve, Mark, Series, curve_chart, line_chart, nice_ticks
from hf_lskd.study.panels import Cloud, projection_panel
from hf_lskd.study.report import LARGEST, write_report
from hf_lskd.study.report_classes import class_table
from hf_lskd.study.report_eta import summaries
from hf_lskd.study.report_figures import thinned
from hf_lskd.study.report_folder import Key, Setting, read_study
from hf_lskd.study.report_numbers import Control, Estimate, Rise, Scores, best_cell, example_interval
from hf_lskd.study.report_words import answer_lines, control_sentence, number, uncertain
from hf_lskd.study.summary import print_eta

from .study_folder import ETA, RESULTS, make_study

T_975 = {2: 12.7062, 3: 4.30265}  # Student t, 97.5 %, n − 1 degrees of freedom, by n
VOID = {"meta", "br", "path", "rect", "circle", "line"}


class Page(HTMLParser):
    """A page as its text (spaces made plain), its opening tags, and whether every tag is closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.pieces: list[str] = []
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", "".join(self.pieces).replace("\u00a0", " "))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag, f"</{tag}> does not close what is open"

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack:
            self.pieces.append(data)


def width(of: Estimate) -> float:
    assert of.low is not None
    assert of.high is not None
    return of.high - of.low


def page_of(folder: Path) -> Page:
    return Page(write_report(folder))


def set_top1(folder: Path, value: Callable[[float, float, int], float]) -> Path:
    """Replace the students' top-1 by value(α, T, seed)."""
    path = folder / "results.csv"
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    for row in rows:
        if row["role"] == "student" and row["status"] == "complete":
            row["top1"] = str(value(float(row["label_smoothing"]), float(row["temperature"]), int(row["seed"])))
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def measured(alpha: float, temperature: float, seed: int) -> float:
    """Falls with T as design/measured.md reports them, seeds far apart: only differences by seed are narrow."""
    fall = {0.0: [0.0, 0.4, 0.2], 0.1: [7.1, 7.0, 8.4]}[alpha][seed]
    return 87.0 + 3 * seed + {1.0: 0.0, 2.0: 1.0 - alpha, 3.0: 0.5 - alpha, 64.0: -fall}[temperature]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds with an equalised axis; read only."""
    return make_study(tmp_path_factory.mktemp("demo"), loss_scales=(1.0, "equalised"), targets=40)


@pytest.fixture(scope="module")
def demo_page(demo: Path) -> Page:
    return page_of(demo)


SMALL = {"eta": False, "projections": False, "examples": 600}


# ---- The answer


def test_answer_is_the_paired_difference_with_a_student_t_interval(tmp_path: Path) -> None:
    page = page_of(set_top1(make_study(tmp_path, **SMALL), measured))
    half = T_975[3] * statistics.stdev([7.1, 7.0, 8.4]) / sqrt(3)
    flat = T_975[3] * statistics.stdev([0.0, 0.4, 0.2]) / sqrt(3)
    assert f"With α = 0.1, raising T from 1 to 64 costs 7.5 ± {half:.1f} points; " in page.text
    assert f"without smoothing it costs nothing (−0.2 ± {flat:.1f}). " in page.text
    assert "over 3 seeds; differences are taken seed by seed" in page.text


def test_answer_comes_first_and_names_the_best_cell(tmp_path: Path) -> None:
    page = page_of(set_top1(make_study(tmp_path, **SMALL), measured))
    start = page.text.index("With α = 0.1, raising T")
    assert start < 200
    assert (
        page.text.index("Best: α = 0, T = 2 (91.0 ± 7.5 %), ahead of the next, α = 0.1, T = 2, by 0.1 ± 0")
        < start + 200
    )


def test_best_cell_names_every_cell_that_it_cannot_be_told_from(tmp_path: Path) -> None:
    def wobbly(alpha: float, temperature: float, seed: int) -> float:
        return measured(alpha, temperature, seed) + (0.5 * (-1) ** seed if (alpha, temperature) == (0.1, 2.0) else 0.0)

    folder = set_top1(make_study(tmp_path, **SMALL), wobbly)
    best = best_cell(Scores(read_study(folder)), "student")
    assert best is not None
    assert (best.key.alpha, best.key.temperature) == (0.1, 2.0)
    assert {(k.alpha, k.temperature) for k in best.rivals} == {
        (0.0, 2.0),
        (0.0, 3.0),
        (0.1, 3.0),
        (0.0, 1.0),
        (0.1, 1.0),
    }
    text = page_of(folder).text
    assert "cannot be told from α = 0 at T = 1, 2 and 3 and α = 0.1 at T = 1 and 3." in text


def test_scatter_that_allows_no_answer_is_said(tmp_path: Path) -> None:
    def scattered(alpha: float, temperature: float, seed: int) -> float:
        return 80 + 3 * ((seed + {1.0: 0, 2.0: 1, 3.0: 2, 64.0: 1}[temperature]) % 3)

    page = page_of(set_top1(make_study(tmp_path, **SMALL), scattered))
    assert (
        "The intervals do not allow an answer: with α = 0.1, raising T from 1 to 64 cannot be told from no change"
        in page.text
    )
    assert "No cell can be called best" in page.text


def test_one_seed_is_called_one_and_bootstrapped_over_examples(tmp_path: Path) -> None:
    folder = make_study(tmp_path, seeds=1, targets=20, examples=2000)
    right = {}
    for t in (1, 64):
        found = load_file(folder / "cells" / f"student-a0.1-T{t}-s0" / "predictions.safetensors")
        right[t] = found["label"] == found["prediction"]
    fall = 100 * float(right[1].mean() - right[64].mean())
    page = page_of(folder)
    assert f"One seed: with α = 0.1, raising T from 1 to 64 costs {fall:.1f} points (" in page.text
    assert "one seed · bootstrap over test examples" in page.text
    assert "nothing about another seed" in page.text
    assert "±" not in page.text.split("One seed only.")[0]
    assert "chance level is unknown with one seed" in page.text


def test_one_seed_without_predictions_has_no_interval_and_says_so(tmp_path: Path) -> None:
    page = page_of(make_study(tmp_path, seeds=1, predictions=False, **SMALL))
    assert (
        "One seed: without intervals this is not yet an answer: with α = 0.1, raising T from 1 to 64 changes the score by −"
        in page.text
    )
    assert "One seed only and no stored predictions to resample, so there is no interval." in page.text
    assert "without intervals it cannot be told from any other cell" in page.text


def test_two_seeds_are_bootstrapped_too(tmp_path: Path) -> None:
    page = page_of(make_study(tmp_path, seeds=2, **SMALL))
    assert "Two seeds: with α = 0.1" in page.text
    assert "2 seeds" in page.text
    assert "two seeds · bootstrap over test examples" in page.text


def test_example_bootstrap_agrees_with_drawing_the_examples(tmp_path: Path) -> None:
    values = np.repeat([-100.0, 0.0, 100.0], [40, 500, 90])
    rng = np.random.default_rng(1)
    means = [rng.choice(values, size=len(values)).mean() for _ in range(4000)]
    assert example_interval(values) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.35)


def test_example_bootstrap_pairs_the_same_examples(tmp_path: Path) -> None:
    """Cells that err on the same examples: their difference is far narrower than their scores."""
    folder = make_study(tmp_path, seeds=1, examples=4000, eta=False, projections=False)
    scores = Scores(read_study(folder))
    setting = Setting("student")
    high, low = Key(setting, 0.0, 64.0), Key(setting, 0.0, 1.0)
    change = scores.contrast([(1.0, high), (-1.0, low)])
    mean = scores.mean(low)
    assert change is not None
    assert mean is not None
    assert change.kind == mean.kind == "examples"
    assert width(change) < 0.9 * sqrt(2) * width(mean)


def test_other_examples_are_never_paired(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = make_study(tmp_path, seeds=1, **SMALL)
    path = folder / "cells" / "student-a0.1-T64-s0" / "predictions.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "label": np.roll(tensors["label"], 1)}, path)
    scores = Scores(read_study(folder))
    change = scores.contrast([(1.0, Key(Setting("student"), 0.1, 64.0)), (-1.0, Key(Setting("student"), 0.1, 1.0))])
    assert change is not None
    assert change.kind == "none"


def test_answer_for_each_student(tmp_path: Path) -> None:
    page = page_of(make_study(tmp_path, students=("small", "large"), **SMALL))
    assert (
        page.text.index("Student “small”")
        < page.text.index("Student “large”")
        < page.text.index("Top-1 over temperature")
    )
    assert (
        page.text.split("Top-1 over temperature")[0].count("Best:") + page.text.count("No cell can be called best") >= 2
    )
    assert len(answer_lines(tmp_path)) == 4


def test_students_near_chance_learnt_nothing_and_lose_nothing(tmp_path: Path) -> None:
    text = page_of(set_top1(make_study(tmp_path, **SMALL), lambda alpha, t, seed: 0.6 + 0.05 * seed)).text
    assert "The students learnt nothing to speak of: the highest has " in text
    assert "below twice chance (" in text
    assert "So this study does not say what raising T costs." in text
    assert "8 of 10 models (α and T) are below twice chance" in text
    assert "every student. Differences between such models mean nothing." in text
    assert "costs nothing (" not in text
    assert "Best:" not in text


def test_only_the_smoothing_that_learnt_is_judged(tmp_path: Path) -> None:
    folder = set_top1(make_study(tmp_path, **SMALL), lambda alpha, t, seed: 0.5 + 0.01 * seed if alpha else 80 + seed)
    text = page_of(folder).text
    assert (
        "With α = 0.1, raising T from 1 to 64 says nothing, as the students learnt nothing at either T (below" in text
    )
    assert "without smoothing it costs nothing (" in text
    assert "learnt nothing to speak of. Below twice chance (1.4 %): the students of α = 0.1, T = 1; " in text


@pytest.mark.parametrize("axis", [{"alphas": (0.1,)}, {"alphas": (0.0,)}, {"alphas": (0.0, 0.05, 0.1)}])
def test_any_set_of_alphas_has_an_answer(tmp_path: Path, axis: dict) -> None:
    text = page_of(make_study(tmp_path, **SMALL, **axis)).text
    assert len(re.findall(r"ith α = 0\.\d+", text.split("Best")[0].split("No cell")[0])) >= sum(
        a > 0 for a in axis["alphas"]
    )
    assert ("without smoothing" in text.lower().split("contents")[0]) == (0.0 in axis["alphas"])


def test_one_temperature_asks_no_question_about_temperature(tmp_path: Path) -> None:
    page = page_of(make_study(tmp_path, temperatures=(2.0,), **SMALL))
    assert "no two temperatures finished for every α" in page.text


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-3, -1, "falls"),
        (0.1, 2, "rises"),
        (-0.9, 0.8, "same"),
        (-1.1, 0.5, "open"),
        (-5, 5, "open"),
        (None, None, "unknown"),
    ],
)
def test_a_change_is_called_nothing_only_inside_one_point(low: float | None, high: float | None, verdict: str) -> None:
    assert Estimate(0.0, low, high, 3, "seeds").verdict == verdict


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(-0.04, -0.54, 0.46, 3, "seeds"), "0.0 ± 0.5"),
        (Estimate(-7.5, -8.3, -6.7, 3, "seeds"), "−7.5 ± 0.8"),
        (Estimate(0.5, 0.48, 0.52, 3, "seeds"), "0.50 ± 0.02"),
        (Estimate(7.5, 6.2, 8.8, 1, "examples"), "7.5 (6.2 to 8.8)"),
        (Estimate(7.5, None, None, 1, "none"), "7.5"),
    ],
)
def test_numbers_read_well(estimate: Estimate, text: str) -> None:
    assert uncertain(estimate) == text
    assert number(-0.0, 1, sign=True) == "0.0"


# ---- The gradient's scale


def test_small_gradient_is_called_a_smaller_learning_rate_and_the_control_named(demo_page: Page) -> None:
    assert (
        "With α = 0.1, g = 0.20 at T = 3 and 0.053 at T = 64: trained at about 1/5 and 1/19 of the effective"
        in demo_page.text
    )
    assert (
        "cannot be told from too small a learning rate by these cells alone; the equalised row is the control"
        in demo_page.text
    )
    assert "points with T² alone" in demo_page.text.split("Top-1 over temperature")[0]


def test_missing_control_is_named(tmp_path: Path) -> None:
    page = page_of(make_study(tmp_path, **SMALL))
    assert "this study has no equalised row to tell them apart" in page.text
    assert "Whether a fall with T is due to softer targets or to a smaller gradient" in page.text


def test_adam_divides_the_scale_out(tmp_path: Path) -> None:
    page = page_of(make_study(tmp_path, optim="adamw_torch_fused", **SMALL))
    assert "The optimizer is adamw_torch_fused, which divides the loss’s scale out again" in page.text
    assert "of the effective learning rate" not in page.text


def test_equalised_cells_have_an_effective_gradient_of_one(demo_page: Page) -> None:
    rows = [r for r in re.findall(r"<tr>.*?</tr>", demo_page.source.replace("\u00a0", " ")) if "equalised</th>" in r]
    assert len(rows) == 8
    assert all("<td>1.00</td></tr>" in r for r in rows)


def test_beside_a_hard_loss_a_small_gradient_is_no_learning_rate(tmp_path: Path) -> None:
    text = page_of(make_study(tmp_path, kd_weights=(0.5,), loss_scales=(1.0, "equalised"), **SMALL)).text
    assert "The hard loss beside it (weight 0.5) keeps its scale" in text
    assert "a hard loss, whose scale does not change with T, stands beside the soft one" in text
    assert "points with the soft loss times 1," in text
    for wrong in ("effective learning rate", "smaller learning rate", "T² alone"):
        assert wrong not in text


def test_over_the_top_classes_alone_g_is_that_of_those_targets(tmp_path: Path) -> None:
    text = page_of(make_study(tmp_path, kd_top_k=5, **SMALL)).text
    assert "of the effective learning rate" in text
    assert "T² alone" not in text


def test_a_fall_that_cannot_be_computed_is_not_denied(tmp_path: Path) -> None:
    text = page_of(make_study(tmp_path, temperatures=(64.0,), **SMALL)).text
    assert "What the score does there cannot be said: no lower T to compare with is finished." in text
    assert "does not measurably fall" not in text


def test_no_fall_at_a_small_gradient_is_said(tmp_path: Path) -> None:
    text = page_of(set_top1(make_study(tmp_path, **SMALL), lambda alpha, t, seed: 80 + 0.01 * t + seed)).text
    assert "Accuracy does not measurably fall at these temperatures all the same." in text


def estimate(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, low, high, 3, "seeds")


@pytest.mark.parametrize(
    ("paper", "equalised", "difference", "expected"),
    [
        ((-8, -7), (-0.5, 0.5), (7, 8), "nothing of it is left: here the fall goes with the smaller gradient"),
        ((-8, -7), (-3, 2), (5, 9), "no fall can be told from zero any more"),
        ((-8, -7), (-4, -2), (3, 6), "is not explained by the gradient’s scale"),
        ((-8, -7), (-8, -6), (-0.5, 0.9), "The fall stays: the gradient’s scale does not explain it here"),
        ((-8, -7), (-9, 3), (-2, 9), "The intervals do not allow to say"),
        ((-0.9, -0.1), (-0.5, 0.5), (-0.5, 0.9), "There is no fall of a point or more to explain."),
        ((-2, 2), (3, 4), (2, 5), "equalising changes the rise all the same"),
    ],
)
def test_control_is_put_into_words(paper: tuple, equalised: tuple, difference: tuple, expected: str) -> None:
    setting = Setting("student")
    first = Rise(setting, 0.1, 1.0, 64.0, estimate(*paper))
    twin = Rise(replace(setting, kd_loss_scale="equalised"), 0.1, 1.0, 64.0, estimate(*equalised))
    assert expected in control_sentence(Control(first, twin, estimate(*difference)))


# ---- Classes


def test_best_and_worst_classes_of_teacher_and_student(tmp_path: Path) -> None:
    names = [f"letter {i}" for i in range(12)]
    folder = make_study(tmp_path, seeds=2, class_names=names, temperatures=(1.0, 64.0), alphas=(0.1,), **SMALL)
    config = folder / "cells" / "teacher-a0.1-s0" / "model" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"id2label": dict(enumerate(names))}))
    table = class_table(Scores(read_study(folder)))
    assert table is not None
    assert list(table.head) == ["class", "teacher, α = 0.1", "α = 0.1, T = 1", "α = 0.1, T = 64"]
    shares = np.empty((3, 12))
    for row, cell in enumerate(("teacher-a0.1", "student-a0.1-T1", "student-a0.1-T64")):
        seeds = [load_file(folder / "cells" / f"{cell}-s{seed}" / "predictions.safetensors") for seed in (0, 1)]
        for c in range(12):
            right = [np.mean(f["prediction"][f["label"] == c] == c) for f in seeds]
            shares[row, c] = 100 * np.mean(right)
    order = np.argsort(-shares.mean(axis=0), kind="stable")
    chosen = [*order[:5], *order[-5:]]
    assert [row[0] for row in table.rows] == [names[c] for c in chosen]
    assert [row[1:] for row in table.rows] == [[f"{v:.0f}" for v in shares[:, c]] for c in chosen]
    assert "Accuracy by class, %" in page_of(folder).text


def test_few_classes_are_shown_once_and_none_without_predictions(tmp_path: Path) -> None:
    few = make_study(tmp_path / "few", seeds=1, class_names=[str(i) for i in range(7)], **SMALL)
    table = class_table(Scores(read_study(few)))
    assert table is not None
    assert sorted(row[0] for row in table.rows) == [f"class {i}" for i in range(7)]
    bare = make_study(tmp_path / "bare", seeds=1, predictions=False, **SMALL)
    assert class_table(Scores(read_study(bare))) is None


# ---- η and projections


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


# ---- Charts


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

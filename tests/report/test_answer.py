"""The report's answer, against numbers worked out here."""

import re
import statistics
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from hf_lskd.study.report_folder import Key, Setting, read_study
from hf_lskd.study.report_numbers import Estimate, Scores, best_cell, example_interval
from hf_lskd.study.report_words import answer_lines, number, uncertain
from tests.report.page import SMALL, T_975, measured, page_of, set_top1, width
from tests.study_folder import make_study


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

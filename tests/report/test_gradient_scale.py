"""What the report says of the gradient's scale and of its control."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from hf_lskd.study.report_folder import Setting
from hf_lskd.study.report_numbers import Control, Estimate, Rise
from hf_lskd.study.report_words import control_sentence
from tests.report.page import SMALL, Page, page_of, set_top1
from tests.study_folder import make_study


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

"""Expected calibration error and per-class accuracy."""

import math

import numpy as np
import pytest
import torch

from hf_lskd.analysis import expected_calibration_error, per_class_accuracy, reliability_bins
from hf_lskd.errors import InputError
from tests.reference import slow_calibration_error


def predictions(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.RandomState(seed)
    confidence = draw.rand(n)
    return confidence, draw.rand(n) < 0.2 + 0.5 * confidence


def test_by_hand() -> None:
    # Two bins. (0, .5]: .4 right, .2 wrong: accuracy .5 against .3. (.5, 1]: .9 right, .8 wrong, .7 wrong: 1/3 against .8.
    # 2/5 · .2 + 3/5 · (.8 − 1/3) = .08 + .28 = 36 %
    ece = expected_calibration_error([0.4, 0.2, 0.9, 0.8, 0.7], [1, 0, 1, 0, 0], bins=2)
    assert ece == pytest.approx(36.0, rel=1e-12)


@pytest.mark.parametrize("bins", [1, 2, 10, 15])
def test_equals_the_slow_loops(bins: int) -> None:
    confidence, correct = predictions(500)
    expected = slow_calibration_error(confidence.tolist(), correct.tolist(), bins)
    assert expected_calibration_error(confidence, correct, bins) == pytest.approx(expected, rel=1e-10)


def test_default_is_fifteen_bins() -> None:
    confidence, correct = predictions(500)
    assert expected_calibration_error(confidence, correct) == expected_calibration_error(confidence, correct, 15)
    assert expected_calibration_error(confidence, correct) != expected_calibration_error(confidence, correct, 14)


def test_bins_agree_with_scikit_learn() -> None:
    from sklearn.calibration import calibration_curve

    confidence, correct = predictions(800, seed=1)
    accuracy, mean_confidence = calibration_curve(correct, confidence, n_bins=12, strategy="uniform")
    ours = reliability_bins(confidence, correct, 12)
    assert ours.samples.sum() == 800
    np.testing.assert_allclose(ours.accuracy, accuracy, rtol=1e-10)
    np.testing.assert_allclose(ours.confidence, mean_confidence, rtol=1e-10)


def test_a_calibrated_model_scores_zero_and_a_sure_and_wrong_one_a_hundred() -> None:
    assert expected_calibration_error([0.75] * 4, [1, 1, 1, 0]) == pytest.approx(0.0, abs=1e-12)
    assert expected_calibration_error([1.0] * 4, [0, 0, 0, 0]) == 100.0


def test_bins_are_closed_on_the_right_and_zero_is_in_the_first() -> None:
    bins = reliability_bins([0.0, 0.25, 0.5, 0.75, 1.0], [0, 1, 1, 1, 1], bins=4)
    assert bins.samples.tolist() == [2, 1, 1, 1]


def test_empty_bins_are_nan_and_count_nothing() -> None:
    bins = reliability_bins([0.9, 0.95], [1, 1], bins=10)
    assert bins.samples.tolist() == [0] * 8 + [1, 1]
    assert np.isnan(bins.accuracy[:8]).all()
    assert expected_calibration_error([0.9, 0.95], [1, 1], bins=10) == pytest.approx(7.5, rel=1e-10)


def test_the_order_of_the_samples_does_not_matter() -> None:
    confidence, correct = predictions(200)
    order = np.random.RandomState(5).permutation(200)
    shuffled = expected_calibration_error(confidence[order], correct[order])
    assert shuffled == pytest.approx(expected_calibration_error(confidence, correct), rel=1e-10)


def test_takes_tensors_of_any_precision_and_a_softmax_that_rounds_above_one() -> None:
    confidence = torch.tensor([0.5, 1.0], dtype=torch.bfloat16)
    assert expected_calibration_error(confidence, torch.tensor([True, True])) == pytest.approx(25.0)
    assert expected_calibration_error(np.array([1.0000002], dtype=np.float32), [1]) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize(
    ("confidence", "correct", "bins", "message"),
    [
        (["high"], [1], 15, "no array of numbers"),
        ([], [], 15, "N at least 1"),
        ([0.5, 0.5], [1], 15, r"\[2\] and correct \[1\]"),
        ([95.0], [1], 15, "not percent"),
        ([-0.1], [1], 15, "0 to 1"),
        ([math.nan], [1], 15, "0 to 1"),
        ([0.5], [2], 15, "0 or 1"),
        ([0.5], [1], 0, "bins = 0"),
    ],
)
def test_bad_input_is_refused(confidence: list, correct: list, bins: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        expected_calibration_error(confidence, correct, bins)


def test_per_class_accuracy_by_hand() -> None:
    accuracy = per_class_accuracy([0, 1, 1, 2, 2, 0], [0, 1, 2, 2, 2, 1], 4)
    np.testing.assert_allclose(accuracy, [100, 50, 200 / 3, np.nan])


def test_per_class_accuracy_weighted_by_class_size_is_the_accuracy() -> None:
    draw = np.random.RandomState(0)
    labels, predicted = draw.randint(5, size=300), draw.randint(5, size=300)
    weighted = per_class_accuracy(predicted, labels, 5) @ np.bincount(labels) / 300
    assert weighted == pytest.approx(100 * (labels == predicted).mean(), rel=1e-12)


@pytest.mark.parametrize(
    ("predicted", "labels", "message"),
    [
        ([0, 1], [0], r"predictions of shape \[2\]"),
        ([0, 3], [0, 1], "predictions out of range: 3"),
        ([0, 1], [0, -1], "labels out of range: -1"),
    ],
)
def test_per_class_accuracy_refuses_what_does_not_fit(predicted: list, labels: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        per_class_accuracy(predicted, labels, 3)

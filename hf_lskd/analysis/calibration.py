"""Does confidence match accuracy, and which classes are hard."""

import operator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hf_lskd.analysis._inputs import Array, as_cpu, as_labels
from hf_lskd.errors import InputError


class ReliabilityBins(NamedTuple):
    """Per bin of confidence: samples `[bins]`, their mean confidence and their accuracy (0 … 1; NaN where empty)."""

    samples: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def reliability_bins(
    confidence: Array | Sequence[float], correct: Array | Sequence[int], bins: int = 15
) -> ReliabilityBins:
    """Samples sorted into `bins` equal-width bins ((m − 1)/M, m/M] of confidence `[N]`; correct `[N]` is 0/1 or bool.

    Confidence is the probability of the predicted class, 0 … 1; 0 itself falls into the first bin.

    Raises InputError for no samples, other shapes, confidence outside 0 … 1, and `correct` other than 0 and 1.
    """
    p, hit = as_cpu(confidence).double().numpy(), as_cpu(correct).double().numpy()
    if p.ndim != 1 or p.shape != hit.shape or not len(p):
        raise InputError(f"confidence {list(p.shape)} and correct {list(hit.shape)}", "[N] and [N], N at least 1")
    # A softmax in float32 may exceed 1 by its rounding, a percentage exceeds it by far more.
    if not bool(((p >= 0) & (p <= 1 + 1e-5)).all()):
        raise InputError(f"confidence from {p.min()} to {p.max()}", "0 to 1", "Give probabilities, not percent.")
    if not bool(((hit == 0) | (hit == 1)).all()):
        raise InputError("correct with other values than 0 and 1", "0 or 1 a sample")
    if operator.index(bins) < 1:
        raise InputError(f"bins = {bins}", "a positive integer")
    edges = np.arange(1, bins + 1) / bins
    index = np.searchsorted(edges, np.minimum(p, 1.0), side="left")
    count = np.bincount(index, minlength=bins)
    filled = np.where(count > 0, count, np.nan)
    return ReliabilityBins(
        count, np.bincount(index, p, minlength=bins) / filled, np.bincount(index, hit, minlength=bins) / filled
    )


def expected_calibration_error(
    confidence: Array | Sequence[float], correct: Array | Sequence[int], bins: int = 15
) -> float:
    """Σ over bins of (n_bin / N) · |accuracy − mean confidence|, in percent: 0 is calibrated, 100 the worst.

    Equal-width bins of the predicted class's confidence (Guo et al., ICML 2017, equation 3); arguments and errors
    as in `reliability_bins`. The number depends on `bins`: state it beside the score.
    """
    samples, mean_confidence, accuracy = reliability_bins(confidence, correct, bins)
    return float(100 * np.nansum(samples * np.abs(accuracy - mean_confidence)) / samples.sum())


def per_class_accuracy(
    predictions: Array | Sequence[int], labels: Array | Sequence[int], num_classes: int
) -> np.ndarray:
    """Percent of each class's samples that are predicted as it: float64 `[C]`, NaN for a class without samples.

    Raises InputError for predictions and labels of different lengths or outside 0 … C − 1.
    """
    true = as_labels(labels, len(labels), num_classes)
    predicted = as_labels(predictions, len(true), num_classes, "predictions")
    count = np.bincount(true.numpy(), minlength=num_classes)
    hits = np.bincount(true[true == predicted].numpy(), minlength=num_classes)
    return 100 * hits / np.where(count > 0, count, np.nan)

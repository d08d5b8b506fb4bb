"""The diffusion index η: how far distillation at a raised temperature moves similar classes together.

Chandrasegaran et al., "Revisiting Label Smoothing and Knowledge Distillation Compatibility: What was Missing?",
ICML 2022: η(T1, T2; π, S) = mean over k in S of [d(π, k; T2) − d(π, k; T1)] / d(π, k; T1), in percent.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hf_lskd.analysis._inputs import Array, as_classes, as_cpu, distances_from, require_samples, show_class
from hf_lskd.analysis.semantics import SimilarSets
from hf_lskd.errors import InputError, nearest

REFERENCES = ("sets", "all", "none")

# Percent. Distances of float64 centroids are right to about 1e-12 percent; a smaller change is rounding, not
# diffusion, and must not count as systematic by the accident of its sign.
_ROUNDING = 1e-9


class DiffusionIndex(NamedTuple):
    """η of one target class over S1 (similar) and S2 (dissimilar) in percent; systematic = similar < 0 < dissimilar."""

    similar: float
    dissimilar: float
    systematic: bool


class TargetDiffusion(NamedTuple):
    """One row of a table of η: the target's class index, and what `DiffusionIndex` holds."""

    target: int
    similar: float
    dissimilar: float
    systematic: bool


class MeanInterval(NamedTuple):
    """A mean and the ends of its confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """The number after ±."""
        return (self.high - self.low) / 2


def diffusion_index(
    low: Array,
    high: Array,
    target: int,
    similar: Sequence[int],
    dissimilar: Sequence[int],
    *,
    reference: str = "sets",
    class_names: Sequence[str] | None = None,
) -> DiffusionIndex:
    """η of one target class between the centroids `low` and `high`, both `[C, D]`, of students distilled at T1 < T2.

    Distances d are Euclidean and divided by what `reference` names, in `low` and in `high` each by its own:
    "sets": the mean distance from the target to S1 ∪ S2 (η then does not change when all features shrink or grow);
    "all": the mean distance from the target to every other class; "none": nothing. The paper does not print its
    normaliser; "sets" reproduces the sizes, signs and ratios of its table.

    Relations: η = 0 when `high` is `low`; with "sets" and "all" also when it is a rotated, shifted or scaled copy.
    `class_names` are only for messages.

    Raises InputError for an unknown reference, centroids of different shapes, a class that does not exist, S1 or S2
    that is empty, repeats a class, holds the target or shares a class with the other, a class without samples, and
    centroids that coincide (a distance of 0 cannot be divided by).
    """
    sets = {target: SimilarSets(tuple(similar), tuple(dissimilar))}
    return DiffusionIndex(*eta_table(low, high, sets, reference, class_names=class_names)[0][1:])


def eta_table(
    low: Array,
    high: Array,
    sets: Mapping[int, SimilarSets],
    reference: str = "sets",
    *,
    class_names: Sequence[str] | None = None,
) -> list[TargetDiffusion]:
    """`diffusion_index` for every target of `sets`, in the order of `sets`. Raises the same errors."""
    if reference not in REFERENCES:
        raise InputError(f"reference = {reference!r}", ", ".join(REFERENCES), nearest(str(reference), REFERENCES))
    before, after = as_cpu(low).double(), as_cpu(high).double()
    if before.ndim != 2 or before.shape != after.shape:
        raise InputError(
            f"centroids of shapes {list(before.shape)} and {list(after.shape)}",
            "[C, D] twice, the same shape",
            "η compares students of one architecture on one set of classes.",
        )
    targets = as_classes(list(sets), len(before), "targets")
    checked = {target: _checked_sets(target, one, len(before)) for target, one in zip(targets, sets.values())}
    d1 = _normalised_distances(before, checked, reference, "low", class_names)
    d2 = _normalised_distances(after, checked, reference, "high", class_names)
    return [_eta_of(target, len(one.similar), d1[target], d2[target]) for target, one in checked.items()]


def _checked_sets(target: int, sets: SimilarSets, num_classes: int) -> SimilarSets:
    similar = as_classes(sets[0], num_classes, "similar")
    dissimilar = as_classes(sets[1], num_classes, "dissimilar")
    for name, classes in (("similar", similar), ("dissimilar", dissimilar)):
        if not classes:
            raise InputError(f"target class {target} with no {name} classes", "at least one")
        if target in classes:
            raise InputError(f"target class {target} among its own {name} classes", "other classes")
    both = sorted(set(similar) & set(dissimilar))
    if both:
        raise InputError(f"class {both[0]} both similar and dissimilar to target class {target}", "one of the two")
    return SimilarSets(tuple(similar), tuple(dissimilar))


def _require_touched(
    centroids: Tensor,
    sets: Mapping[int, SimilarSets],
    reference: str,
    where: str,
    names: Sequence[str] | None,
) -> None:
    touched = {i for target, one in sets.items() for i in (target, *one.similar, *one.dissimilar)}
    require_samples(centroids, sorted(touched), where, names)
    if reference == "all":
        why = 'Choose reference="sets", which needs only the classes of the sets'
        require_samples(centroids, range(len(centroids)), where, names, why)


def _normalised_distances(
    centroids: Tensor,
    sets: Mapping[int, SimilarSets],
    reference: str,
    where: str,
    names: Sequence[str] | None,
) -> dict[int, Tensor]:
    """For each target the distances to S1, then S2, divided by what `reference` says."""
    _require_touched(centroids, sets, reference, where, names)
    to_all = _mean_distances(centroids, list(sets)) if reference == "all" else {}
    normalised = {}
    for target, one in sets.items():
        others = one.similar + one.dissimilar
        distances = distances_from(centroids, target, others)
        divisor = {"sets": float(distances.mean()), "all": to_all.get(target, 0.0), "none": 1.0}[reference]
        # Distances of `low` are divided by, those of `high` are not: there a class may well lie on the target.
        if not divisor > 0 or (where == "low" and not bool((distances > 0).all())):
            other = others[int(distances.argmin())]
            raise InputError(
                f"{show_class(target, names)} and {show_class(other, names)} have the same centroid in {where}",
                "centroids at a distance above 0",
                "A student whose classes coincide has collapsed: check its accuracy, or leave the target out.",
            )
        normalised[target] = distances / divisor
    return normalised


def _mean_distances(centroids: Tensor, targets: list[int]) -> dict[int, float]:
    """The mean distance from each target to all other classes."""
    others = len(centroids) - 1
    if 8 * len(targets) < others:  # row by row is the cheaper way for a few targets
        return {t: float(distances_from(centroids, t, range(others + 1)).sum()) / others for t in targets}
    pairs = torch.pdist(centroids)
    i, j = torch.triu_indices(others + 1, others + 1, offset=1)
    total = torch.zeros(others + 1, dtype=torch.float64).index_add_(0, i, pairs).index_add_(0, j, pairs)
    return {t: float(total[t]) / others for t in targets}


def _eta_of(target: int, num_similar: int, low: Tensor, high: Tensor) -> TargetDiffusion:
    """The equation: mean relative change of the normalised distances over S1 (they come first) and over S2."""
    change = 100 * (high - low) / low
    similar = _without_rounding(float(change[:num_similar].mean()))
    dissimilar = _without_rounding(float(change[num_similar:].mean()))
    return TargetDiffusion(target, similar, dissimilar, similar < 0 < dissimilar)


def _without_rounding(percent: float) -> float:
    return 0.0 if abs(percent) < _ROUNDING else percent


def bootstrap_interval(
    values: Sequence[float] | Array, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the mean of `values`: `[n]`, or `[seeds, targets]`.

    Of a table both ways are resampled, independently of each other, so the interval is over seeds and over targets.
    The result is a pure function of the values and `seed`. Efron & Tibshirani, 1993, chapter 13.

    Raises InputError for fewer than 2 values (on every axis), values that are not finite, and a bad confidence.
    """
    table = _checked_values(values, confidence)
    if resamples < 1:
        raise InputError(f"resamples = {resamples}", "a positive integer")
    draw = np.random.RandomState(seed % 2**32)
    if table.ndim == 2:
        means = np.array([_resampled(table, draw).mean() for _ in range(resamples)])
    else:
        rows = max(1, 2**20 // len(table))  # a test set has thousands of values: never all resamples at once
        sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
        means = np.concatenate([table[draw.randint(len(table), size=(k, len(table)))].mean(axis=1) for k in sizes])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _resampled(table: np.ndarray, draw: np.random.RandomState) -> np.ndarray:
    rows, columns = (draw.randint(size, size=size) for size in table.shape)
    return table[rows][:, columns]


def mean_and_t_interval(values: Sequence[float] | Array, *, confidence: float = 0.95) -> MeanInterval:
    """Mean of n ≥ 2 independent values (seeds) and its Student t interval: mean ± t(n − 1) · sd / √n.

    Raises InputError for fewer than 2 values, values that are not finite, and a bad confidence.
    """
    from scipy.special import stdtrit

    numbers = _checked_values(values, confidence)
    if numbers.ndim != 1:
        raise InputError(f"values of shape {list(numbers.shape)}", "[n]")
    mean = float(numbers.mean())
    t = float(stdtrit(len(numbers) - 1, (1 + confidence) / 2))
    half = t * float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
    return MeanInterval(mean, mean - half, mean + half)


def _checked_values(values: Sequence[float] | Array, confidence: float) -> np.ndarray:
    table = as_cpu(values).double().numpy()
    if not 0 < confidence < 1:
        raise InputError(f"confidence = {confidence}", "between 0 and 1")
    if table.ndim not in (1, 2) or min(table.shape) < 2:
        raise InputError(
            f"values of shape {list(table.shape)}",
            "at least 2 values a way",
            "One value has no interval: show it alone and say so.",
        )
    if not np.isfinite(table).all():
        raise InputError("values with NaN or infinity", "finite numbers", "Leave out cells that failed.")
    return table

"""What hf_lskd.losses and hf_lskd.analysis are held against: slow float64 loops in plain Python, and cases worked out by hand."""

import math
from collections.abc import Sequence
from typing import NamedTuple

Rows = Sequence[Sequence[float]]


def slow_class_statistics(features: Rows, labels: Sequence[int], num_classes: int) -> tuple[list, list, list]:
    """count, mean and within by two passes over the samples of each class; None where a class has none."""
    count: list[int] = []
    means: list[list[float] | None] = []
    within: list[float | None] = []
    for c in range(num_classes):
        mine = [row for row, label in zip(features, labels) if label == c]
        count.append(len(mine))
        if not mine:
            means.append(None)
            within.append(None)
            continue
        mean = [math.fsum(column) / len(mine) for column in zip(*mine)]
        means.append(mean)
        within.append(math.fsum((x - m) ** 2 for row in mine for x, m in zip(row, mean)) / len(mine))
    return count, means, within


def slow_eta(
    low: Rows, high: Rows, target: int, similar: Sequence[int], dissimilar: Sequence[int], reference: str
) -> tuple[float, float]:
    """The paper's equation, one distance at a time."""

    def normalised(centroids: Rows) -> dict[int, float]:
        d = {k: math.dist(centroids[target], row) for k, row in enumerate(centroids) if k != target}
        chosen = {"sets": [*similar, *dissimilar], "all": list(d), "none": []}[reference]
        by = sum(d[k] for k in chosen) / len(chosen) if chosen else 1.0
        return {k: value / by for k, value in d.items()}

    d1, d2 = normalised(low), normalised(high)
    return tuple(100 * sum((d2[k] - d1[k]) / d1[k] for k in s) / len(s) for s in (similar, dissimilar))  # type: ignore[return-value]


def slow_softmax(logits: Sequence[float], temperature: float) -> list[float]:
    top = max(logits)
    e = [math.exp((z - top) / temperature) for z in logits]
    return [x / math.fsum(e) for x in e]


def slow_ensemble(members: Sequence[Sequence[float]], temperature: float, of: str) -> list[float]:
    """The target probabilities of one item from several teachers' logits: the mean of their tempered probabilities (Hinton et
    al. 2015), or the tempered probabilities of their mean logits."""
    if of == "logits":
        return slow_softmax([math.fsum(column) / len(members) for column in zip(*members)], temperature)
    each = [slow_softmax(z, temperature) for z in members]
    return [math.fsum(column) / len(members) for column in zip(*each)]


def slow_target_gradient(logits: Rows, temperature: float) -> float:
    norms = [math.sqrt(math.fsum((p - 1 / len(z)) ** 2 for p in slow_softmax(z, temperature))) for z in logits]
    return temperature * math.fsum(norms) / len(norms)


def slow_target_entropy(logits: Rows, temperature: float) -> float:
    entropies = [-math.fsum(p * math.log(p) for p in slow_softmax(z, temperature) if p > 0) for z in logits]
    return math.fsum(entropies) / len(entropies)


def slow_calibration_error(confidence: Sequence[float], correct: Sequence[int], bins: int) -> float:
    total = 0.0
    for m in range(1, bins + 1):
        low = -1.0 if m == 1 else (m - 1) / bins  # 0 belongs to the first bin
        inside = [(p, hit) for p, hit in zip(confidence, correct) if low < p <= m / bins]
        if inside:
            gap = sum(hit for _, hit in inside) / len(inside) - sum(p for p, _ in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(gap)
    return 100 * total


def slow_basis(weight: Rows, bias: Sequence[float], classes: Sequence[int]) -> list[list[float]]:
    """Three orthonormal vectors by Gram-Schmidt on the classes' weight rows with their own biases appended."""
    basis: list[list[float]] = []
    for c in classes:
        v = [*weight[c], bias[c]]
        for b in basis:
            along = math.fsum(x * y for x, y in zip(v, b))
            v = [x - along * y for x, y in zip(v, b)]
        length = math.sqrt(math.fsum(x * x for x in v))
        basis.append([x / length for x in v])
    return basis


class EtaCase(NamedTuple):
    """Centroids of two students, target 0, S1 = 1, 2, S2 = 3, 4, and η in percent (S1, S2) for each reference."""

    low: list[list[float]]
    high: list[list[float]]
    eta: dict[str, tuple[float, float]]
    systematic: bool


# class                  0         1         2           3          4            5
_FIRST = [[0.0, 0.0], [1.0, 0.0], [1.8, 2.4], [-4.0, 0.0], [4.8, -6.4], [9.0, 0.0]]
# from class 0:           d = 1      3 (3-4-5)    4            8 (3-4-5)    9
_SECOND = [[10.0, -5.0], [10.6, -4.2], [10.0, -3.0], [16.0, -5.0], [10.0, -16.0], [4.0, 3.0]]
# from (10, -5):          d = 1        2              6              11             10 (6-8-10)

ETA_CASES = [
    EtaCase(
        _FIRST,
        _SECOND,
        {
            # none: S1 ((1 − 1)/1 + (2 − 3)/3)/2 = −1/6;             S2 ((6 − 4)/4 + (11 − 8)/8)/2 = (4/8 + 3/8)/2 = 7/16
            "none": (-100 / 6, 700 / 16),
            # sets: divide by (1 + 3 + 4 + 8)/4 = 4 and (1 + 2 + 6 + 11)/4 = 5:   .25 .75 1 2  ->  .2 .4 1.2 2.2
            #       S1 (−.05/.25 − .35/.75)/2 = (−1/5 − 7/15)/2 = −1/3;         S2 (.2/1 + .2/2)/2 = 3/20
            "sets": (-100 / 3, 15.0),
            # all:  divide by (1 + 3 + 4 + 8 + 9)/5 = 5 and (1 + 2 + 6 + 11 + 10)/5 = 6:  1/5 3/5 4/5 8/5 -> 1/6 1/3 1 11/6
            #       S1 (5/6 − 1 + 5/9 − 1)/2 = (−1/6 − 4/9)/2 = −11/36;    S2 (5/4 − 1 + 55/48 − 1)/2 = (12/48 + 7/48)/2 = 19/96
            "all": (-1100 / 36, 1900 / 96),
        },
        systematic=True,
    ),
    EtaCase(  # the same two the other way round
        _SECOND,
        _FIRST,
        {
            # none: S1 (0 + (3 − 2)/2)/2 = 1/4;                      S2 ((4 − 6)/6 + (8 − 11)/11)/2 = −(11/33 + 9/33)/2 = −10/33
            "none": (25.0, -1000 / 33),
            # sets: .2 .4 1.2 2.2 -> .25 .75 1 2
            #       S1 (1/4 + 7/8)/2 = 9/16;                         S2 (−.2/1.2 − .2/2.2)/2 = −(1/6 + 1/11)/2 = −17/132
            "sets": (900 / 16, -1700 / 132),
            # all:  1/6 1/3 1 11/6 -> 1/5 3/5 4/5 8/5
            #       S1 (6/5 − 1 + 9/5 − 1)/2 = 1/2;                  S2 (4/5 − 1 + 48/55 − 1)/2 = −(11/55 + 7/55)/2 = −9/55
            "all": (50.0, -900 / 55),
        },
        systematic=False,
    ),
]

# g(T) of a teacher with one gap, trained to its smoothed targets with α = 0.1: one logit is ln(K(1 − α)/α + 1) above
# K − 1 equal ones, since softmax is then (1 − α) + α/K against α/K, a ratio of K(1 − α)/α + 1. At T the ratio is its
# T-th root r, so p = r/(r + K − 1), and as the other K − 1 share 1 − p equally,
#   ‖softmax − 1/K‖₂ = (p − 1/K) · √(K/(K − 1)).
# By hand for K = 10: the ratio is 91. T = 1: p = .91, .81 · √(10/9) = .81 · 1.05409 = .85381.
#   T = 2: r = √91 = 9.53939, p = 9.53939/18.53939 = .51455, (.51455 − .1) · 1.05409 = .43697, times 2 = .87394.
ONE_GAP_BY_HAND = {(10, 1): 0.85381, (10, 2): 0.87394}

# The table of ../paper's note on the gradient's scale as printed, to two digits. (K, T) -> g.
# It prints .20 for K = 141, T = 3, where the formula gives .1948: the tolerance is one unit of the last digit.
ONE_GAP_TABLE = {
    (10, 1): 0.85,
    (10, 2): 0.87,
    (10, 3): 0.74,
    (10, 64): 0.44,
    (141, 1): 0.90,
    (141, 2): 0.39,
    (141, 3): 0.20,
    (141, 64): 0.053,
    (200, 1): 0.90,
    (200, 2): 0.34,
    (200, 3): 0.16,
    (200, 64): 0.040,
    (1000, 1): 0.90,
    (1000, 2): 0.17,
    (1000, 3): 0.058,
    (1000, 64): 0.010,
}


def one_gap_logits(num_classes: int, alpha: float) -> list[list[float]]:
    """One sample of each of three classes, of a teacher that fits its smoothed targets exactly; any common offset."""
    gap = math.log(num_classes * (1 - alpha) / alpha + 1)
    return [[(gap if j == i else 0.0) + 3.0 * i for j in range(num_classes)] for i in (0, 1, num_classes - 1)]


def one_gap_gradient(num_classes: int, alpha: float, temperature: float) -> float:
    """The closed form above."""
    root = (num_classes * (1 - alpha) / alpha + 1) ** (1 / temperature)
    p = root / (root + num_classes - 1)
    return temperature * (p - 1 / num_classes) * math.sqrt(num_classes / (num_classes - 1))


# ---- losses


def slow_log_softmax(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    scaled = [z / temperature for z in logits]
    top = max(scaled)
    log_sum = top + math.log(math.fsum(math.exp(z - top) for z in scaled))
    return [z - log_sum for z in scaled]


def slow_smoothed_cross_entropy(
    logits: Rows, labels: Sequence[int], smoothing: float, num_items: float | None = None
) -> float:
    """-sum_c [(1 - alpha) onehot + alpha/C] log q(c), summed over the labels that are not -100, over the number of items."""
    terms = []
    for row, label in zip(logits, labels):
        if label == -100:
            continue
        log_q = slow_log_softmax(row)
        target = [smoothing / len(row) + (1 - smoothing) * (c == label) for c in range(len(row))]
        terms.append(-math.fsum(t * q for t, q in zip(target, log_q)))
    return math.fsum(terms) / (len(terms) if num_items is None else num_items)


def slow_kl(
    student: Rows,
    teacher: Rows,
    temperature: float,
    *,
    labels: Sequence[int] | None = None,
    scale_student: bool = True,
    top_k: int | None = None,
    num_items: float | None = None,
) -> float:
    """T^2 sum_c p(c) [log p(c) - log q(c)] over the rows that count, over the number of items."""
    terms = []
    for index, (s, t) in enumerate(zip(student, teacher)):
        if labels is not None and labels[index] == -100:
            continue
        kept = sorted(range(len(t)), key=lambda c: -t[c])[: top_k or len(t)]
        log_p = dict(zip(kept, slow_log_softmax([t[c] for c in kept], temperature)))
        log_q = slow_log_softmax(s, temperature if scale_student else 1.0)
        terms.append(temperature**2 * math.fsum(math.exp(lp) * (lp - log_q[c]) for c, lp in log_p.items()))
    return math.fsum(terms) / (len(terms) if num_items is None else num_items)

"""η: hand-worked numbers, slow loops, invariances, bad input; and the intervals of its means."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_lskd.analysis import (
    REFERENCES,
    ClassStatistics,
    SimilarSets,
    bootstrap_interval,
    diffusion_index,
    eta_table,
    mean_and_t_interval,
    sets_from_groups,
)
from hf_lskd.errors import InputError
from tests.reference import ETA_CASES, EtaCase, slow_eta

GROUPS = ["a"] * 6 + ["b"] * 5 + ["c"] * 5 + ["d"] * 2  # 18 classes


def centroids(seed: int, classes: int = 18, dim: int = 7) -> Tensor:
    return torch.randn(classes, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_students(seed: int) -> tuple[Tensor, Tensor]:
    low = centroids(seed)
    return low, low + 0.2 * centroids(seed + 1000)


def rotation(dim: int, seed: int) -> Tensor:
    return torch.linalg.qr(centroids(seed, dim, dim)).Q


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("case", ETA_CASES, ids=["systematic", "the other way round"])
def test_equals_the_hand_worked_numbers(case: EtaCase, reference: str) -> None:
    eta = diffusion_index(torch.tensor(case.low), torch.tensor(case.high), 0, [1, 2], [3, 4], reference=reference)
    # float32 centroids, as a user may give: seven digits
    assert (eta.similar, eta.dissimilar) == pytest.approx(case.eta[reference], rel=1e-5)
    assert eta.systematic is case.systematic
    exact = diffusion_index(np.array(case.low), np.array(case.high), 0, [1, 2], [3, 4], reference=reference)
    assert (exact.similar, exact.dissimilar) == pytest.approx(case.eta[reference], rel=1e-12)


def test_the_default_reference_is_the_mean_over_both_sets() -> None:
    case = ETA_CASES[0]
    eta = diffusion_index(np.array(case.low), np.array(case.high), 0, [1, 2], [3, 4])
    assert eta[:2] == pytest.approx(case.eta["sets"], rel=1e-12)


@pytest.mark.parametrize("case", ETA_CASES)
def test_the_slow_loops_agree_with_the_hand(case: EtaCase) -> None:
    for reference, expected in case.eta.items():
        assert slow_eta(case.low, case.high, 0, [1, 2], [3, 4], reference) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("seed", range(3))
def test_table_and_single_index_equal_the_slow_loops(seed: int, reference: str) -> None:
    low, high = two_students(seed)
    sets = sets_from_groups(GROUPS, dissimilar=6, seed=seed)
    table = eta_table(low, high, sets, reference)
    assert [row.target for row in table] == list(sets) == list(range(16))
    for row in table:
        expected = slow_eta(low.tolist(), high.tolist(), row.target, *sets[row.target], reference)
        assert row[1:3] == pytest.approx(expected, rel=1e-10)
        assert row.systematic is (expected[0] < 0 < expected[1])
        single = diffusion_index(low, high, row.target, *sets[row.target], reference=reference)
        assert single[:2] == pytest.approx(row[1:3], rel=1e-10)


@pytest.mark.parametrize("signs", [(-1, 1), (1, -1), (1, 1), (-1, -1)])
def test_systematic_means_similar_nearer_and_dissimilar_farther(signs: tuple[int, int]) -> None:
    low = np.array([[0.0], [1.0], [2.0], [-5.0]])
    high = np.array([[0.0], [1.0 + 0.1 * signs[0]], [2.0 + 0.1 * signs[0]], [-5.0 - 0.1 * signs[1]]])
    eta = diffusion_index(low, high, 0, [1, 2], [3], reference="none")
    assert (np.sign(eta.similar), np.sign(eta.dissimilar)) == signs
    assert eta.systematic is (signs == (-1, 1))


@pytest.mark.parametrize("reference", REFERENCES)
def test_the_same_centroids_twice_give_zero_and_nothing_systematic(reference: str) -> None:
    low = centroids(0)
    for row in eta_table(low, low.clone(), sets_from_groups(GROUPS), reference):
        assert (row.similar, row.dissimilar, row.systematic) == (0.0, 0.0, False)


@pytest.mark.parametrize("reference", ["sets", "all"])
@pytest.mark.parametrize("scale", [3.0, 1 / 7, 1e6])
def test_a_scaled_rotated_and_shifted_copy_is_no_diffusion(scale: float, reference: str) -> None:
    low = centroids(1)
    high = scale * (low @ rotation(7, 2)) + 0.3
    for row in eta_table(low, high, sets_from_groups(GROUPS), reference):
        assert (row.similar, row.dissimilar, row.systematic) == (0.0, 0.0, False)


@pytest.mark.parametrize("reference", ["sets", "all"])
def test_scaling_either_student_changes_nothing(reference: str) -> None:
    low, high = two_students(3)
    sets = sets_from_groups(GROUPS)
    expected = eta_table(low, high, sets, reference)
    for low_scale, high_scale in ((5.0, 1.0), (1.0, 0.01), (0.3, 7.0)):
        scaled = eta_table(low_scale * low, high_scale * high, sets, reference)
        for row, other in zip(expected, scaled):
            assert other == pytest.approx(row, rel=1e-9)


def test_undivided_distances_do_see_the_scale() -> None:
    low = centroids(4)
    (row,) = eta_table(low, 1.5 * low, {0: SimilarSets((1, 2), (9, 10))}, "none")
    assert (row.similar, row.dissimilar) == pytest.approx((50.0, 50.0), rel=1e-12)


@pytest.mark.parametrize("reference", REFERENCES)
def test_rotating_and_shifting_either_student_changes_nothing(reference: str) -> None:
    low, high = two_students(5)
    sets = sets_from_groups(GROUPS)
    moved = eta_table(low @ rotation(7, 6) + 2.0, high @ rotation(7, 7) - centroids(8)[0], sets, reference)
    for row, other in zip(eta_table(low, high, sets, reference), moved):
        assert other == pytest.approx(row, rel=1e-9)


@pytest.mark.parametrize("reference", REFERENCES)
def test_relabelling_the_classes_changes_nothing(reference: str) -> None:
    low, high = two_students(9)
    new_name = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    old_name = torch.argsort(new_name)
    renamed = [new_name[[0, *range(1, 6)]].tolist(), new_name[[8, 12, 17]].tolist()]
    before = diffusion_index(low, high, 0, range(1, 6), [8, 12, 17], reference=reference)
    after = diffusion_index(
        low[old_name], high[old_name], renamed[0][0], renamed[0][1:], renamed[1], reference=reference
    )
    assert after == pytest.approx(before, rel=1e-12)


def test_the_order_within_a_set_changes_nothing() -> None:
    low, high = two_students(10)
    forward = diffusion_index(low, high, 0, [1, 2, 3], [8, 9])
    assert diffusion_index(low, high, 0, [3, 1, 2], [9, 8]) == pytest.approx(forward, rel=1e-12)


def test_with_reference_sets_other_classes_do_not_matter() -> None:
    low, high = two_students(11)
    before = diffusion_index(low, high, 0, [1, 2], [8, 9])
    low[17], high[17] = 1e3, math.nan
    assert diffusion_index(low, high, 0, [1, 2], [8, 9]) == before


def test_a_few_targets_among_many_classes_agree_with_the_whole_table() -> None:
    low, high = two_students(12)
    sets = sets_from_groups(GROUPS)
    whole = {row.target: row for row in eta_table(low, high, sets, "all")}
    for target in (0, 13):
        (row,) = eta_table(low, high, {target: sets[target]}, "all")
        assert row == pytest.approx(whole[target], rel=1e-12)


def test_comes_straight_from_class_statistics_and_names_an_empty_class() -> None:
    features = centroids(13, classes=40)
    labels = torch.arange(40) % 5
    full = ClassStatistics(5, 7).update(features, labels)
    without_three = ClassStatistics(5, 7).update(features[labels != 3], labels[labels != 3])
    with pytest.raises(InputError, match=r"class 3 has no samples .*in high"):
        diffusion_index(full.mean, without_three.mean, 0, [1], [2, 3])
    with pytest.raises(InputError, match=r"class 3 \(owl\) has no samples .*in low"):
        diffusion_index(without_three.mean, full.mean, 3, [1], [2], class_names=["ant", "bee", "cat", "owl", "pig"])
    with pytest.raises(InputError, match=r"class 3 has no samples.*reference=\"sets\""):
        diffusion_index(without_three.mean, full.mean, 0, [1], [2], reference="all")
    diffusion_index(without_three.mean, full.mean, 0, [1], [2])  # not touched: no error


def test_the_references_are_named_and_misspelt_ones_get_the_nearest() -> None:
    low, high = two_students(0)
    with pytest.raises(InputError, match=r"'set'.*sets, all, none.*Did you mean 'sets'"):
        diffusion_index(low, high, 0, [1], [2], reference="set")


@pytest.mark.parametrize(
    ("target", "similar", "dissimilar", "message"),
    [
        (0, [], [8], "class 0 with no similar classes"),
        (0, [1], [], "class 0 with no dissimilar classes"),
        (0, [1, 0], [8], "class 0 among its own similar"),
        (0, [1], [0, 8], "class 0 among its own dissimilar"),
        (0, [1, 8], [8], "class 8 both similar and dissimilar"),
        (0, [1, 1], [8], "similar: class 1 given twice"),
        (18, [1], [8], r"no class 18.*0 to 17"),
        (0, [-1], [8], r"similar: no class -1.*0 to 17"),
        (0, [1], [8.5], "class indices"),
    ],
)
def test_impossible_sets_are_refused(target: int, similar: list, dissimilar: list, message: str) -> None:
    low, high = two_students(0)
    with pytest.raises(InputError, match=message):
        diffusion_index(low, high, target, similar, dissimilar)


def test_centroids_of_different_shapes_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[18, 7\] and \[17, 7\]"):
        diffusion_index(centroids(0), centroids(0)[:17], 0, [1], [2])
    with pytest.raises(InputError, match=r"\[7\]"):
        diffusion_index(centroids(0)[0], centroids(0)[0], 0, [1], [2])


@pytest.mark.parametrize("reference", REFERENCES)
def test_coinciding_centroids_are_an_error_and_not_infinite(reference: str) -> None:
    low, high = two_students(14)
    low[2] = low[0]
    with pytest.raises(InputError, match="class 0 and class 2 have the same centroid in low"):
        diffusion_index(low, high, 0, [1, 2], [8], reference=reference)


@pytest.mark.parametrize("reference", ["sets", "all"])
def test_a_wholly_collapsed_high_student_is_an_error(reference: str) -> None:
    low = centroids(15)
    with pytest.raises(InputError, match=r"same centroid in high.*collapsed"):
        diffusion_index(low, torch.ones_like(low), 0, [1, 2], [8], reference=reference)


def test_one_class_that_reaches_the_target_is_minus_100_percent() -> None:
    low = np.array([[0.0], [1.0], [5.0]])
    high = np.array([[0.0], [0.0], [5.0]])
    assert diffusion_index(low, high, 0, [1], [2], reference="none")[:2] == (-100.0, 0.0)


def test_infinite_centroids_are_refused() -> None:
    low, high = two_students(16)
    high[8, 0] = math.inf
    with pytest.raises(InputError, match="class 8 has a centroid that is not finite in high"):
        diffusion_index(low, high, 0, [1, 2], [8])


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_table_of_a_thousand_targets_is_complete(reference: str) -> None:
    low = centroids(0, 1000, 512)
    high = low + 0.1 * centroids(1, 1000, 512)
    sets = sets_from_groups([f"group {i // 5}" for i in range(1000)])
    table = eta_table(low, high, sets, reference)
    assert [found.target for found in table] == list(range(1000))
    one = diffusion_index(low, high, 777, sets[777].similar, sets[777].dissimilar, reference=reference)
    assert (table[777].similar, table[777].dissimilar) == pytest.approx((one.similar, one.dissimilar))


def test_t_interval_by_hand() -> None:
    # 1, 2, 3: mean 2, sd 1, t(2 degrees of freedom, 97.5 %) = 4.30265, 4.30265/√3 = 2.48414
    interval = mean_and_t_interval([1.0, 2.0, 3.0])
    assert interval == pytest.approx((2.0, -0.48414, 4.48414), abs=1e-5)
    assert interval.half_width == pytest.approx(2.48414, abs=1e-5)


def test_t_interval_equals_scipy() -> None:
    from scipy import stats

    values = np.random.RandomState(0).randn(7)
    expected = stats.t.interval(0.9, 6, loc=values.mean(), scale=stats.sem(values))
    assert mean_and_t_interval(values, confidence=0.9)[1:] == pytest.approx(expected, rel=1e-12)


def test_bootstrap_of_two_values_by_hand() -> None:
    # The mean of a resample of {0, 1} is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4: 2.5 % cut off nothing.
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], confidence=0.4) == (0.5, 0.5)  # 30 % cut off a quarter on each side


def test_bootstrap_of_many_values_is_near_the_normal_interval() -> None:
    values = np.random.RandomState(1).randn(400) + 3
    half = 1.96 * values.std() / 20
    low, high = bootstrap_interval(values)
    # The quantiles of 2000 resamples are themselves uncertain, by about a tenth of the half width.
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_bootstrap_is_a_pure_function_of_values_and_seed() -> None:
    values = np.random.RandomState(2).randn(50)
    np.random.seed(5)
    following = np.random.rand()
    np.random.seed(5)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values)
    assert np.random.rand() == following  # the global generator is left alone


def test_bootstrap_of_a_table_is_over_seeds_and_over_targets() -> None:
    targets = np.random.RandomState(3).randn(60)
    seeds = np.array([-1.0, 0.0, 1.0])
    over_seeds = bootstrap_interval(seeds[:, None] + np.zeros((1, 60)))
    over_targets = bootstrap_interval(np.zeros((3, 1)) + targets)
    both = bootstrap_interval(seeds[:, None] + targets)
    assert over_seeds == pytest.approx(bootstrap_interval(seeds), abs=1e-12)
    assert over_targets == pytest.approx(bootstrap_interval(targets), abs=0.05)
    assert both[1] - both[0] > over_targets[1] - over_targets[0]


def test_bootstrap_takes_a_test_set_without_the_memory_for_all_resamples() -> None:
    hits = np.random.RandomState(4).rand(20_000) < 0.8  # all 2000 resamples at once would take 320 MB
    low, high = bootstrap_interval(hits, resamples=200)
    assert low < 0.8 < high
    assert high - low == pytest.approx(2 * 1.96 * 0.4 / math.sqrt(20_000), rel=0.3)


@pytest.mark.parametrize("interval", [bootstrap_interval, mean_and_t_interval])
@pytest.mark.parametrize(
    ("values", "message"),
    [([1.0], "at least 2"), ([], "at least 2"), ([1.0, math.nan], "NaN"), (np.ones((1, 5)), "at least 2")],
)
def test_intervals_of_too_little_are_refused(interval, values, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        interval(values)


def test_interval_settings_are_checked() -> None:
    with pytest.raises(InputError, match="confidence = 95"):
        bootstrap_interval([1.0, 2.0], confidence=95)
    with pytest.raises(InputError, match="resamples = 0"):
        bootstrap_interval([1.0, 2.0], resamples=0)
    with pytest.raises(InputError, match=r"\[2, 2\].*\[n\]"):
        mean_and_t_interval(np.ones((2, 2)))

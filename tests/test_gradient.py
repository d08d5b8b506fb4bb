"""g(T), the size of the soft loss's first gradient, and the entropy of the tempered targets."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_lskd.analysis import TargetGradient, equalised_loss_scale, target_entropy, target_gradient
from hf_lskd.errors import InputError
from hf_lskd.losses import distillation_kl
from tests.reference import (
    ONE_GAP_BY_HAND,
    ONE_GAP_TABLE,
    one_gap_gradient,
    one_gap_logits,
    slow_target_entropy,
    slow_target_gradient,
)

TEMPERATURES = (1.0, 2.0, 3.0, 64.0)


def teacher_logits(n: int = 40, classes: int = 11, scale: float = 4.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("key", "expected"), ONE_GAP_BY_HAND.items())
def test_one_gap_teacher_by_hand(key: tuple[int, int], expected: float) -> None:
    classes, temperature = key
    assert target_gradient(torch.tensor(one_gap_logits(classes, 0.1)), temperature) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(("key", "printed"), ONE_GAP_TABLE.items())
def test_one_gap_teacher_equals_the_published_table(key: tuple[int, int], printed: float) -> None:
    classes, temperature = key
    g = target_gradient(torch.tensor(one_gap_logits(classes, 0.1), dtype=torch.float64), temperature)
    assert g == pytest.approx(one_gap_gradient(classes, 0.1, temperature), rel=1e-10)
    assert g == pytest.approx(printed, abs=0.01 if printed >= 0.1 else 0.001)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_equals_the_slow_loops(temperature: float) -> None:
    z = teacher_logits()
    assert target_gradient(z, temperature) == pytest.approx(slow_target_gradient(z.tolist(), temperature), rel=1e-11)
    assert target_entropy(z, temperature) == pytest.approx(slow_target_entropy(z.tolist(), temperature), rel=1e-11)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_is_the_gradient_of_the_loss_for_a_student_that_knows_nothing(temperature: float) -> None:
    z = teacher_logits()
    student = torch.full_like(z, 0.7).requires_grad_()
    targets, log_q = F.softmax(z / temperature, dim=1), F.log_softmax(student / temperature, dim=1)
    (temperature**2 * F.kl_div(log_q, targets, reduction="sum")).backward()
    assert student.grad is not None
    assert target_gradient(z, temperature) == pytest.approx(float(student.grad.norm(dim=1).mean()), rel=1e-10)


@pytest.mark.parametrize("cuts", [[40], [1, 39], [7, 13, 20], [10, 0, 30]])
def test_batches_give_the_whole(cuts: list[int]) -> None:
    z = teacher_logits()
    stream = TargetGradient(TEMPERATURES)
    for batch in z.split(cuts):
        stream.update(batch)
    for t in TEMPERATURES:
        assert stream.value(t) == pytest.approx(target_gradient(z, t), rel=1e-12)
        assert stream.entropy(t) == pytest.approx(target_entropy(z, t), rel=1e-12)


def test_processes_give_the_whole() -> None:
    z = teacher_logits()
    parts = [TargetGradient([1, 3]).update(z[:9]), TargetGradient([3, 1]), TargetGradient([1, 3]).update(z[9:])]
    together = parts[1].merge(parts[0]).merge(parts[2])
    assert together.count == 40
    assert together.value(3) == pytest.approx(target_gradient(z, 3), rel=1e-12)
    with pytest.raises(InputError, match=r"temperatures \(2.0,\)"):
        together.merge(TargetGradient([2]))
    with pytest.raises(InputError, match="5 classes"):
        together.merge(TargetGradient([1, 3]).update(torch.ones(1, 5)))


def test_a_large_batch_is_the_sum_of_its_pieces() -> None:
    z = teacher_logits(n=3000, classes=200)  # more than one piece of the inner loop
    expected = sum(target_gradient(part, 2) * len(part) for part in z.split(100)) / 3000
    assert target_gradient(z, 2) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_lies_between_zero_and_t_and_is_almost_one_for_sharp_targets(temperature: float) -> None:
    for scale in (0.0, 0.1, 10.0, 1e4):
        z = teacher_logits(scale=scale)
        assert 0 <= target_gradient(z, temperature) <= temperature
        assert 0 <= target_entropy(z, temperature) <= math.log(11) * (1 + 1e-12)
    sharp = 1e6 * torch.eye(11)
    assert target_gradient(sharp, 1.0) == pytest.approx(math.sqrt(1 - 1 / 11), rel=1e-12)
    assert target_entropy(sharp, 1.0) == 0.0


def test_uniform_targets_give_zero_gradient_and_full_entropy() -> None:
    assert target_gradient(torch.full((3, 7), 2.5), 3.0) == pytest.approx(0.0, abs=1e-15)
    assert target_entropy(torch.full((3, 7), 2.5), 3.0) == pytest.approx(math.log(7), rel=1e-12)


def test_tends_to_the_centred_logits_over_c_as_t_grows() -> None:
    z = teacher_logits(scale=1.0)
    limit = float((z - z.mean(dim=1, keepdim=True)).norm(dim=1).mean()) / 11
    assert target_gradient(z, 1e5) == pytest.approx(limit, rel=1e-4)


def test_an_offset_of_the_logits_does_not_matter() -> None:
    z = teacher_logits()
    assert target_gradient(z + 1000.0, 2) == pytest.approx(target_gradient(z, 2), rel=1e-9)


def test_smoothing_and_temperature_together_shrink_it() -> None:
    for classes in (10, 141, 1000):
        smoothed = torch.tensor(one_gap_logits(classes, 0.1))
        assert target_gradient(smoothed, 64) < target_gradient(smoothed, 3) < target_gradient(smoothed, 1)
        # the sharper the teacher, the later: α = 0.0001 has hardly lost anything at T = 2
        assert target_gradient(torch.tensor(one_gap_logits(classes, 1e-4)), 2) > 2 * target_gradient(smoothed, 2) * 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_logits_are_upcast_before_the_softmax(dtype: torch.dtype) -> None:
    z = teacher_logits().to(dtype)
    for t in TEMPERATURES:
        # exact for the logits as they are; a softmax in bfloat16 would be off by some 1e-2 at T = 64
        assert target_gradient(z, t) == pytest.approx(slow_target_gradient(z.double().tolist(), t), rel=1e-11)


def test_a_class_ruled_out_by_minus_infinity_is_allowed() -> None:
    z = torch.tensor([[0.0, 0.0, -math.inf]])
    assert target_entropy(z, 2.0) == pytest.approx(math.log(2), rel=1e-12)
    # (1/2, 1/2, 0) − 1/3: √(1/36 + 1/36 + 4/36) = √(1/6)
    assert target_gradient(z, 2.0) == pytest.approx(2 * math.sqrt(1 / 6), rel=1e-12)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.tensor([[0.0, math.nan]]), "softmax"),
        (torch.tensor([[0.0, math.inf]]), "softmax"),
        (torch.tensor([[-math.inf, -math.inf]]), "softmax"),
        (torch.ones(3), r"shape \[3\]"),
        (torch.ones(2, 3, 4), r"\[2, 3, 4\]"),
        (torch.ones(3, 3), r"\[N, 2\]"),
    ],
)
def test_bad_logits_are_refused_and_lose_nothing(logits: Tensor, message: str) -> None:
    stream = TargetGradient([1.0]).update(torch.tensor([[1.0, 0.0]]))
    before = (stream.count, stream.value(1), stream.entropy(1))
    with pytest.raises(InputError, match=message):
        stream.update(logits)
    assert (stream.count, stream.value(1), stream.entropy(1)) == before


def test_one_class_is_refused() -> None:
    with pytest.raises(InputError, match=r"1 classes.*at least 2"):
        target_gradient(torch.ones(4, 1), 1.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_bad_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(InputError, match="finite numbers above 0"):
        target_gradient(teacher_logits(), temperature)


def test_what_was_not_asked_for_is_not_answered() -> None:
    with pytest.raises(InputError, match="no temperatures"):
        TargetGradient([])
    with pytest.raises(InputError, match="no teacher logits"):
        TargetGradient([1]).value(1)
    with pytest.raises(InputError, match="no teacher logits"):
        target_gradient(torch.ones(0, 4), 1)
    with pytest.raises(InputError, match=r"temperature 2.*1, 3"):
        TargetGradient([1, 3]).update(teacher_logits()).value(2)


def test_equalising_makes_the_first_gradient_one() -> None:
    for t in TEMPERATURES:
        g = target_gradient(teacher_logits(), t)
        assert equalised_loss_scale(g) * g == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("g", [0.0, -1.0, math.nan, math.inf])
def test_a_gradient_that_cannot_be_equalised_is_an_error(g: float) -> None:
    with pytest.raises(InputError, match="above 0"):
        equalised_loss_scale(g)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [1, 4, 11, 50])
def test_with_top_k_it_is_the_gradient_of_that_loss(temperature: float, k: int) -> None:
    z = teacher_logits()
    student = torch.zeros_like(z).requires_grad_()
    distillation_kl(student, z, temperature, top_k=k, num_items=1).backward()
    assert student.grad is not None
    found = TargetGradient([1.0, temperature], [None, k]).update(z[:15]).update(z[15:])
    assert found.value(temperature, k) == pytest.approx(float(student.grad.norm(dim=1).mean()), rel=1e-9)
    p = F.softmax(z.topk(min(k, 11), dim=1).values / temperature, dim=1)
    assert found.entropy(temperature, k) == pytest.approx(float(-(p * p.log()).sum(1).mean()), rel=1e-9, abs=1e-12)
    if k >= 11:
        assert found.value(temperature, k) == pytest.approx(found.value(temperature), rel=1e-12)
    assert target_gradient(z, temperature, k) == pytest.approx(found.value(temperature, k), rel=1e-12)


def test_a_k_that_was_not_asked_for_or_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="kd_top_k = 0"):
        TargetGradient([1.0], [0])
    with pytest.raises(InputError, match="top_k 3"):
        TargetGradient([1.0], [2]).update(teacher_logits()).value(1.0, 3)
    with pytest.raises(InputError, match="top_k"):
        TargetGradient([1.0], [2]).merge(TargetGradient([1.0]))

"""The blocked pass against the plain composition, which says what every loss is, and against what its docstrings promise."""

import itertools
import math
from typing import Any

import pytest
import torch

from hf_lskd import distillation_kl, distillation_loss, label_smoothed_cross_entropy, losses_blocked
from hf_lskd.losses import Mixture, distillation_terms, plain_terms
from hf_lskd.losses_blocked import applies
from hf_lskd.losses_rows import MOST_ROWS
from tests.loss_cases import Made, check_each_term_alone_a_factor_and_a_second_backward, far_apart, gradient_of

N, C = 2 * MOST_ROWS + 7, 11  # three blocks
OPTIONS: list[dict[str, Any]] = [
    {},
    {"scale_student": False},
    {"top_k": 3},
    {"loss_scale": 7.5},
    {"smoothing": 0.1},
    {"scale_student": False, "top_k": 4, "smoothing": 0.2},
]


@pytest.fixture(autouse=True)
def no_size_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small cases take the blocked pass, also without a teacher."""
    monkeypatch.setattr(losses_blocked, "SMALL", 1)


def draw(n: int = N, c: int = C, scale: float = 3.0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (scale * torch.randn(n, c, generator=generator, dtype=torch.float64) for _ in range(2))
    return student.to(dtype).requires_grad_(True), teacher.to(dtype), torch.randint(0, c, (n,), generator=generator)


def both(student: Any, teacher: Any, labels: Any, num_items: Any = None, **options: Any) -> tuple[Any, Any]:
    """(terms, readings, gradient) of the public functions, which have to take the blocked pass, and of the plain composition."""
    assert applies(student, teacher, labels)
    mixture = Mixture(**options)
    ours = distillation_terms(student, teacher, labels, num_items=num_items, **mixture._asdict())
    plain = plain_terms(student, teacher, labels, mixture, num_items)
    return tuple((*found, torch.autograd.grad(found[0].total, student)[0]) for found in (ours, plain))  # type: ignore[return-value]


def check(ours: Any, plain: Any, value: float = 1e-10, gradient: float = 1e-10) -> None:
    for one, other in zip((*ours[0], *ours[1]), (*plain[0], *plain[1])):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=value, atol=value)
    assert ours[2].dtype == plain[2].dtype
    error = (ours[2].double() - plain[2].double()).norm() / plain[2].double().norm()
    assert error <= gradient


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0, 64.0])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_trap_04_05_17_the_blocked_pass_is_the_plain_composition(temperature: float, options: dict) -> None:
    student, teacher, labels = draw()
    for kd_weight, num_items in ((0.0, None), (0.3, 99.0), (1.0, torch.tensor(41))):
        check(*both(student, teacher, labels, num_items, temperature=temperature, kd_weight=kd_weight, **options))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0])
def test_in_single_precision_values_agree_to_1e_6_and_gradients_to_1e_5(temperature: float) -> None:
    student, teacher, labels = draw(300, 1000, dtype=torch.float32)
    check(*both(student, teacher, labels, temperature=temperature, kd_weight=0.5, smoothing=0.1), 1e-6, 1e-5)


def test_at_a_high_temperature_the_blocked_value_is_nearer_to_the_exact_one_than_the_plain() -> None:
    """log C is 4,096 times what is left when the two sides are subtracted; the blocked pass subtracts logits first."""
    student, teacher, labels = draw(300, 1000, dtype=torch.float32)
    options = {"temperature": 64.0, "kd_weight": 1.0}
    ours, plain = both(student, teacher, labels, **options)
    exact = plain_terms(student.double(), teacher.double(), labels, Mixture(**options))[0].soft
    assert exact is not None
    assert abs(ours[0].soft.item() / exact.item() - 1) < 1e-5
    assert abs(ours[0].soft.item() - exact.item()) <= abs(plain[0].soft.item() - exact.item()) + 1e-5


@pytest.mark.parametrize("offset", [0.0, 1e2, -1e3, 1e4, -1e5])
def test_logits_that_lie_far_apart_cost_a_value_no_digits(offset: float) -> None:
    """To 1e-6 of the value in float64; 1e-5 where the two sides are so near each other that float32 sums tell no more."""
    cases = [
        (30.0, 1.0, 1e-6),
        (30.0, 4.0, 1e-6),
        (30.0, 64.0, 1e-6),
        (3.0, 1.0, 1e-6),
        (3.0, 4.0, 1e-6),
        (3.0, 64.0, 1e-5),
    ]
    for (scale, temperature, near), scale_student in itertools.product(cases, (True, False)):
        student, teacher, labels = far_apart(offset, 300, 1000, scale)
        assert applies(student, teacher, labels)
        mixture = Mixture(temperature, 0.5, 0.1, scale_student)
        terms, readings = distillation_terms(student, teacher, labels, num_items=None, **mixture._asdict())
        exact, known = plain_terms(student.double(), teacher.double(), labels, mixture)
        assert readings is not None
        assert known is not None
        for one, other in zip((*terms, readings.target_entropy), (*exact, known.target_entropy)):
            assert one.item() == pytest.approx(other.item(), rel=near, abs=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_trap_15_half_precision_is_within_a_percent_of_the_exact_loss(dtype: torch.dtype) -> None:
    student, teacher, labels = draw(300, 1000, dtype=dtype)
    for temperature in (1.0, 2.0, 64.0):
        options: dict[str, Any] = {"temperature": temperature, "kd_weight": 0.5, "smoothing": 0.1}
        check(*both(student, teacher, labels, **options), 1e-4, 0.004)
        exact = plain_terms(student.double(), teacher.double(), labels, Mixture(**options))[0]
        for one, other in zip(distillation_loss(student, teacher, labels, **options), exact):
            torch.testing.assert_close(one.double(), other, rtol=0.01, atol=0)


@pytest.mark.parametrize("junk", [0.0, -math.inf, math.nan, 1e30])
@pytest.mark.parametrize("shape", ["rows", "sequences"])
def test_trap_06_masked_rows_are_the_plain_compositions_whatever_stands_in_them(junk: float, shape: str) -> None:
    student, teacher, labels = (part.detach().clone() for part in draw(336))
    masked = torch.rand(336, generator=torch.Generator().manual_seed(1)) < 0.3
    masked[130:270] = True  # a whole block
    for part, value in ((student, junk), (teacher, junk), (labels, -100)):
        part[masked] = value
    if shape == "sequences":
        student, teacher, labels = student.view(8, 42, C), teacher.view(8, 42, C), labels.view(8, 42)
    ours, plain = both(student.requires_grad_(True), teacher, labels, temperature=2.0, kd_weight=0.4, smoothing=0.1)
    check(ours, plain)
    assert not ours[2].view(336, C)[masked].any()


@pytest.mark.parametrize("offset", [-500.0, 300.0])
def test_logits_whose_exponentials_leave_the_range_are_shifted(offset: float) -> None:
    for dtype, value, gradient in ((torch.float64, 1e-9, 1e-10), (torch.float32, 2e-5, 1e-4)):
        student, teacher, labels = draw(dtype=dtype)
        with torch.no_grad():
            student += offset  # all of them
            teacher[200:] -= offset  # some blocks only
        check(*both(student, teacher, labels, temperature=2.0, kd_weight=0.5, smoothing=0.1), value, gradient)


def test_classes_that_are_ruled_out_are_the_plain_compositions() -> None:
    student, teacher, labels = draw()
    with torch.no_grad():
        teacher[5:140, 0] = -math.inf
        student[100:140, 0] = -math.inf
    labels[labels == 0] = 1
    for temperature, kd_weight in itertools.product((1.0, 2.0), (0.5, 1.0)):
        check(*both(student, teacher, labels, temperature=temperature, kd_weight=kd_weight))


def test_a_model_that_diverged_has_a_nan_as_its_loss_in_both() -> None:
    student, teacher, labels = draw()
    with torch.no_grad():
        student[3, 2] = math.nan
    ours, plain = both(student, teacher, labels, temperature=2.0, kd_weight=0.5)
    assert ours[0].total.isnan()
    assert plain[0].total.isnan()
    assert torch.equal(ours[2].isnan(), plain[2].isnan())


@pytest.mark.parametrize("top_k", [None, 3])
def test_a_teacher_of_another_type_is_taken_in_the_students(top_k: int | None) -> None:
    exact, targets, labels = draw()
    plain = plain_terms(exact, targets, labels, Mixture(2.0, 0.5, top_k=top_k))[0].total
    for student_type, teacher_type in itertools.permutations((torch.float64, torch.float32), 2):
        student = exact.detach().to(student_type).requires_grad_(True)
        loss = distillation_loss(
            student, targets.to(teacher_type), labels, temperature=2.0, kd_weight=0.5, top_k=top_k
        ).total
        assert loss.dtype == student_type
        assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
        torch.testing.assert_close(
            torch.autograd.grad(loss, student)[0].double(), gradient_of(plain, exact), rtol=1e-4, atol=1e-8
        )


def test_a_loss_beyond_the_range_of_its_type_is_infinite_in_both() -> None:
    student, teacher, labels = draw(dtype=torch.float32)
    for loss_scale in (1e39, 1e45):
        ours, plain = both(student, teacher, labels, temperature=2.0, kd_weight=0.5, loss_scale=loss_scale)
        for one, other in zip(ours[0], plain[0]):
            torch.testing.assert_close(one, other)
        assert ours[0].total.isinf()
    assert not ours[2].isfinite().any()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_and_their_derivatives_by_finite_differences(options: dict) -> None:
    student, teacher, labels = draw(5, 6)
    labels[2] = -100

    def terms(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = distillation_loss(logits, teacher, labels, temperature=3.0, kd_weight=0.4, **options)
        return found.total, found.hard, found.soft  # type: ignore[return-value]

    assert torch.autograd.gradcheck(terms, (student,))
    assert torch.autograd.gradgradcheck(terms, (student,))


def test_each_term_alone_a_factor_and_a_second_backward_have_the_right_gradient() -> None:
    student, teacher, labels = draw()
    options: dict[str, Any] = {"temperature": 2.0, "kd_weight": 0.4, "smoothing": 0.1}
    ours = distillation_loss(student, teacher, labels, **options)
    plain = plain_terms(student, teacher, labels, Mixture(**options))[0]
    check_each_term_alone_a_factor_and_a_second_backward(ours, plain, student)


def test_trap_15_what_a_float16_loss_is_scaled_by_meets_its_gradient_before_it_is_rounded() -> None:
    """A gradient scaler's factor is there because most of these numbers are below what float16 can tell from 0."""
    student, teacher, labels = draw(256, 1000, dtype=torch.float16)
    loss = distillation_loss(student, teacher, labels, temperature=2.0, kd_weight=0.5).total
    scaled = torch.autograd.grad(1024 * loss, student)[0].double() / 1024
    exact = student.detach().double().requires_grad_(True)
    plain = plain_terms(exact, teacher.double(), labels, Mixture(2.0, 0.5))[0].total
    right = torch.autograd.grad(plain, exact)[0]
    assert (scaled - right).norm() < 1e-3 * right.norm()
    small = right.abs() < 6e-8  # the least number of float16
    assert small.any()
    assert (scaled - right)[small].norm() < 0.05 * right[small].norm()


def test_a_term_of_weight_zero_is_measured_but_carries_no_gradient() -> None:
    student, teacher, labels = draw()
    for kd_weight, without in ((0.0, "soft"), (1.0, "hard")):
        terms = distillation_loss(student, teacher, labels, temperature=2.0, kd_weight=kd_weight)
        assert not getattr(terms, without).requires_grad
        assert terms.total.requires_grad
    assert not distillation_loss(student.detach(), teacher, labels).total.requires_grad


def test_teacher_training_and_the_kl_alone_take_the_same_pass() -> None:
    student, teacher, labels = draw()
    labels[:140] = -100
    for ours, mixture, taught, given in (
        (label_smoothed_cross_entropy(student, labels, 0.1), Mixture(kd_weight=0.0, smoothing=0.1), None, labels),
        (distillation_kl(student, teacher, 2.0, labels=labels), Mixture(2.0), teacher, labels),
        (distillation_kl(student, teacher, 2.0), Mixture(2.0), teacher, None),
    ):
        plain = plain_terms(student, taught, given, mixture)[0].total
        torch.testing.assert_close(ours, plain)
        torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (ours, plain)))


def test_where_the_pass_does_not_apply_the_plain_composition_does() -> None:
    student, teacher, labels = draw(6)
    mixed = torch.nn.functional.one_hot(labels, C).double()
    assert not applies(student, teacher, mixed)
    torch.testing.assert_close(
        distillation_loss(student, teacher, mixed, kd_weight=0.5), distillation_loss(student, teacher, labels, kd_weight=0.5)
    )  # fmt: skip

    def total(logits: torch.Tensor) -> torch.Tensor:
        return distillation_loss(logits, teacher, labels, temperature=2.0, kd_weight=0.5).total

    torch.testing.assert_close(
        torch.func.grad(total)(student.detach()), torch.autograd.grad(total(student), student)[0]
    )


def test_no_matrix_of_all_rows_but_the_gradient_is_made() -> None:
    student, teacher, labels = draw(4 * MOST_ROWS, 300, dtype=torch.float32)
    inputs = {part.untyped_storage()._cdata for part in (student, teacher)}
    with Made(student.numel()) as made:
        loss = distillation_loss(student, teacher, labels, temperature=2.0, kd_weight=0.5, smoothing=0.1).total
        gradient = torch.autograd.grad(loss, student)[0]
    assert made.storages - inputs == {gradient.untyped_storage()._cdata}


def test_the_same_logits_give_the_same_bits_wherever_they_lie_and_whatever_came_before() -> None:
    def once(shift: int) -> tuple[torch.Tensor, ...]:
        student, teacher, labels = draw(200, 137, dtype=torch.float32)
        home = torch.empty(2, shift + student.numel())
        home[:, shift:] = torch.stack([student.detach().flatten(), teacher.flatten()])
        moved = home[0, shift:].view(200, 137).requires_grad_(True)
        terms, readings = distillation_terms(
            moved, home[1, shift:].view(200, 137), labels, num_items=None, **Mixture(2.0, 0.5, 0.1)._asdict()
        )
        assert readings is not None
        return (*terms, *readings, torch.autograd.grad(terms.total, moved)[0])  # type: ignore[return-value]

    first = once(0)
    distillation_loss(*draw(77, 500))
    for shift in (0, 1, 3, 7):
        for one, other in zip(first, once(shift)):
            assert torch.equal(one, other)


def test_a_call_in_inference_mode_leaves_nothing_behind_that_a_later_one_cannot_write_to() -> None:
    student, teacher, labels = draw(200, 600)  # another test's buffers are smaller
    with torch.inference_mode():
        alone = distillation_loss(student, teacher, labels, kd_weight=0.5).total
    loss = distillation_loss(student, teacher, labels, kd_weight=0.5).total
    assert torch.equal(loss.detach(), alone)
    loss.backward()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_teacher_may_answer_in_inference_mode(temperature: float) -> None:
    student, teacher, labels = draw(200, 600)
    found = []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            answer = teacher * 1.0
        loss = distillation_loss(student, answer, labels, temperature=temperature, kd_weight=0.5).total
        gradient = torch.autograd.grad(loss, student, create_graph=True)[0]
        found.append((loss.detach(), gradient.detach(), torch.autograd.grad(gradient.square().sum(), student)[0]))
    assert answer.is_inference()
    for one, other in zip(*found):
        assert torch.equal(one, other)


def test_each_term_can_be_written_to() -> None:
    """As a trainer does, which multiplies its loss in place."""
    student, teacher, labels = draw()
    for name in ("total", "hard", "soft"):
        terms = [distillation_loss(student, teacher, labels, temperature=2.0, kd_weight=0.5) for _ in range(2)]
        written, left = (getattr(found, name) for found in terms)
        written *= 3
        torch.testing.assert_close(torch.autograd.grad(written, student)[0], 3 * torch.autograd.grad(left, student)[0])


def test_without_a_teacher_small_batches_take_the_plain_composition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for n, blocked in ((losses_blocked.SMALL // C, False), (losses_blocked.SMALL // C + 1, True)):
        student, teacher, labels = draw(n)
        assert applies(student, None, labels) is blocked
        assert applies(student, teacher, labels)
    student, _, labels = draw(64, dtype=torch.float32)
    plain, _ = plain_terms(student, None, labels, Mixture(kd_weight=0.0))
    assert torch.equal(label_smoothed_cross_entropy(student, labels), plain.total)

"""The Triton kernel beside the plain composition; run by `test_losses_triton.py` in a process whose Triton interprets."""

import itertools
import logging
import math
from typing import Any

import pytest
import torch

from hf_lskd import distillation_kl, distillation_loss, label_smoothed_cross_entropy, losses_triton
from hf_lskd.losses import Mixture, distillation_terms, plain_terms
from tests.loss_cases import Made, check_each_term_alone_a_factor_and_a_second_backward, far_apart, gradient_of

OPTIONS: list[dict[str, Any]] = [{}, {"scale_student": False, "loss_scale": 7.5}, {"smoothing": 0.1}]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of −inf − −inf in lanes that are not used


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each case checks its own kernels, and a kernel that one case breaks is whole in the next."""
    monkeypatch.setattr(losses_triton, "_trusted", set())
    monkeypatch.setattr(losses_triton, "_distrusted", [])


def draw(n: int, c: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(n, c, generator=generator) for _ in range(2))
    return student.to(dtype).requires_grad_(True), teacher.to(dtype), torch.randint(0, c, (n,), generator=generator)


def both(student: Any, teacher: Any, labels: Any, num_items: Any = None, exact: bool = True, **options: Any) -> Any:
    """(terms and readings, gradient) of the public function, which has to take the kernel, and of the plain composition."""
    mixture = Mixture(**options)
    assert losses_triton.applies(student, teacher, labels, mixture)
    terms, readings = distillation_terms(student, teacher, labels, num_items=num_items, **mixture._asdict())
    assert losses_triton._trusted
    assert not losses_triton._distrusted
    assert readings is not None
    ours = torch.stack([part.detach() for part in (*terms, *readings)]), torch.autograd.grad(terms.total, student)[0]
    if exact:
        student, teacher = student.detach().double().requires_grad_(True), teacher.double()
    terms, readings = plain_terms(student, teacher, labels, mixture, num_items)
    assert readings is not None
    plain = torch.stack([part.detach() for part in (*terms, *readings)]), torch.autograd.grad(terms.total, student)[0]
    return ours, plain


def check(ours: Any, plain: Any, value: float, gradient: float) -> None:
    torch.testing.assert_close(ours[0].double(), plain[0].double(), rtol=value, atol=value)
    assert (ours[1].double() - plain[1].double()).norm() <= gradient * plain[1].double().norm()


@pytest.mark.parametrize("classes", [2, 141, 1000, losses_triton.ONE_BLOCK, 10_000, 32_003])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_values_agree_to_1e_6_and_gradients_to_1e_5(classes: int, options: dict) -> None:
    student, teacher, labels = draw(3, classes)
    cases = [(2.0, 0.3, None), (3.0, 1.0, 99.0), (1.0, 0.0, torch.tensor(41))]
    for temperature, kd_weight, num_items in cases if classes < 5_000 else cases[:1]:
        found = both(student, teacher, labels, num_items, temperature=temperature, kd_weight=kd_weight, **options)
        check(*found, 1e-6, 1e-5)


def test_at_a_high_temperature_the_kernel_is_near_the_exact_value() -> None:
    """log C is 4,096 times what is left when the two sides are subtracted."""
    student, teacher, labels = draw(40, 1000)
    check(*both(student, teacher, labels, temperature=64.0), 3e-5, 1e-5)


@pytest.mark.parametrize("blocks", ["one block", "many"])
def test_logits_that_lie_far_apart_cost_a_value_no_digits(blocks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if blocks == "many":
        monkeypatch.setattr(losses_triton, "ONE_BLOCK", 256)
        monkeypatch.setattr(losses_triton, "BLOCK", 256)
    for offset, temperature in itertools.product((0.0, 1e2, -1e3, 1e4, -1e5), (1.0, 4.0, 64.0)):
        ours, plain = both(*far_apart(offset, 5, 1000), temperature=temperature, kd_weight=0.5, smoothing=0.1)
        torch.testing.assert_close(ours[0].double(), plain[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_within_a_percent_of_the_exact_loss(dtype: torch.dtype) -> None:
    for temperature, classes in ((1.0, 1000), (2.0, 141), (64.0, 1000)):
        student, teacher, labels = draw(6, classes, dtype)
        ours, plain = both(student, teacher, labels, temperature=temperature, kd_weight=0.5, smoothing=0.1)
        assert ours[1].dtype == dtype
        check(ours, plain, 1e-4, 0.01)


def test_a_teacher_of_another_type_and_rows_that_do_not_lie_side_by_side() -> None:
    student, teacher, labels = draw(6, 150)
    wide = student.detach().clone().requires_grad_(True)
    for given in (wide[:, :141], wide[:, 9:], wide.t().contiguous().t()[:, :141]):
        width = given.shape[1]
        targets, marks = teacher[:, :width].bfloat16(), labels.clamp(max=width - 1).int()
        loss = distillation_loss(given, targets, marks, temperature=2.0, kd_weight=0.4).total
        plain = plain_terms(given, targets, marks.long(), Mixture(2.0, 0.4))[0].total
        torch.testing.assert_close(loss, plain, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(*(torch.autograd.grad(one, wide)[0] for one in (loss, plain)), rtol=1e-5, atol=1e-7)


def test_labels_that_do_not_lie_side_by_side() -> None:
    student, teacher, labels = draw(6, 141)
    table = torch.stack([labels, (labels + 70) % 141], 1)  # of two tasks, say
    for marks in (table[:, 0], labels[:1].expand(6)):
        check(*both(student, teacher, marks, temperature=2.0, kd_weight=0.4, smoothing=0.1), 1e-6, 1e-5)


@pytest.mark.parametrize("junk", [-math.inf, math.nan, 1e30])
@pytest.mark.parametrize("shape", ["rows", "sequences"])
def test_masked_rows_are_the_plain_compositions_whatever_stands_in_them(junk: float, shape: str) -> None:
    student, teacher, labels = (part.detach().clone() for part in draw(12, 141))
    masked = torch.tensor([True, False, False, True] * 3)
    for part, value in ((student, junk), (teacher, junk), (labels, -100)):
        part[masked] = value
    if shape == "sequences":
        student, teacher, labels = student.view(3, 4, 141), teacher.view(3, 4, 141), labels.view(3, 4)
    found = both(student.requires_grad_(True), teacher, labels, temperature=2.0, kd_weight=0.4, smoothing=0.1)
    check(*found, 1e-6, 1e-5)
    assert not found[0][1].view(12, 141)[masked].any()


def test_a_batch_that_is_all_masked_is_zero() -> None:
    student, teacher, labels = draw(3, 141)
    loss = distillation_loss(student, teacher, torch.full_like(labels, -100), kd_weight=0.5).total
    assert loss == 0
    assert not torch.autograd.grad(loss, student)[0].any()


SPOILT = {
    "classes that the teacher rules out": lambda x, t: t[:, :70].fill_(-math.inf),
    "classes that both rule out": lambda x, t: (t[:, 3].fill_(-math.inf), x[:, 3].fill_(-math.inf)),
    "a class that the student alone rules out": lambda x, t: x[1, 3].fill_(-math.inf),
    "a NaN of the student": lambda x, t: x[1, 3].fill_(math.nan),
    "a NaN of the teacher": lambda x, t: t[1, 3].fill_(math.nan),
    "an infinity of the student": lambda x, t: x[1, 3].fill_(math.inf),
    "an infinity of the teacher": lambda x, t: t[1, 3].fill_(math.inf),
    "nothing left of the student": lambda x, t: x[1].fill_(-math.inf),
    "nothing left of the teacher": lambda x, t: t[1].fill_(-math.inf),
}


@pytest.mark.parametrize("spoilt", SPOILT)
@pytest.mark.parametrize("blocks", ["one block", "many"])
def test_logits_that_are_not_finite_give_what_the_plain_composition_gives(
    spoilt: str, blocks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if blocks == "many":
        monkeypatch.setattr(losses_triton, "ONE_BLOCK", 64)
        monkeypatch.setattr(losses_triton, "BLOCK", 64)
    student, teacher, labels = draw(3, 141)
    labels[labels == 3] = 4
    with torch.no_grad():
        SPOILT[spoilt](student, teacher)
    for options in ({"kd_weight": 0.5}, {"kd_weight": 0.7, "smoothing": 0.1, "scale_student": False}):
        ours, plain = both(student, teacher, labels, exact=False, temperature=2.0, **options)
        torch.testing.assert_close(ours[0], plain[0], rtol=1e-5, atol=1e-5, equal_nan=True)
        torch.testing.assert_close(ours[1], plain[1], rtol=1e-5, atol=1e-6, equal_nan=True)


def test_large_logits_are_shifted_by_their_maximum() -> None:
    student, teacher, labels = draw(3, 10_000)
    with torch.no_grad():
        student += 400.0
        teacher -= 700.0
        student[:, 9_000:] += 90.0  # the last block has the maximum
    check(*both(student, teacher, labels, temperature=2.0, kd_weight=0.5, smoothing=0.1), 1e-4, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_each_term_alone_a_factor_a_second_backward_and_a_derivative_of_the_gradient(dtype: torch.dtype) -> None:
    student, teacher, labels = draw(3, 40, dtype)
    options: dict[str, Any] = {"temperature": 2.0, "kd_weight": 0.4, "smoothing": 0.1}
    ours = distillation_loss(student, teacher, labels, **options)
    plain = plain_terms(student, teacher, labels, Mixture(**options))[0]
    near: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 0.01, "atol": 1e-4}

    check_each_term_alone_a_factor_and_a_second_backward(ours, plain, student, **near)
    derivatives = [torch.autograd.grad(gradient_of(terms.total, student, create_graph=True).float().square().sum(), student)
                   for terms in (distillation_loss(student, teacher, labels, **options), plain)]  # fmt: skip
    torch.testing.assert_close(*derivatives, **near)


def test_a_term_of_weight_zero_is_measured_but_carries_no_gradient_nor_infinity() -> None:
    student, teacher, labels = draw(3, 141)
    for kd_weight, without in ((0.0, "soft"), (1.0, "hard")):
        terms = distillation_loss(student, teacher, labels, temperature=2.0, kd_weight=kd_weight)
        assert not getattr(terms, without).requires_grad
        assert terms.total.requires_grad
    assert not distillation_loss(student.detach(), teacher, labels).total.requires_grad
    with torch.no_grad():
        student[0, labels[0]] = -math.inf
        teacher[0, labels[0]] = -math.inf
    terms = distillation_loss(student, teacher, labels, kd_weight=1.0)
    assert terms.hard.isinf()
    assert torch.autograd.grad(terms.total, student)[0].isfinite().all()


def test_teacher_training_and_the_kl_alone_take_the_kernel() -> None:
    student, teacher, labels = draw(5, 141)
    labels[2] = -100
    for ours, mixture, taught, given in (
        (label_smoothed_cross_entropy(student, labels, 0.1), Mixture(kd_weight=0.0, smoothing=0.1), None, labels),
        (distillation_kl(student, teacher, 2.0, labels=labels), Mixture(2.0), teacher, labels),
        (distillation_kl(student, teacher, 2.0), Mixture(2.0), teacher, None),
    ):
        plain = plain_terms(student, taught, given, mixture)[0].total
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            *(torch.autograd.grad(loss, student)[0] for loss in (ours, plain)), rtol=1e-5, atol=1e-7
        )
    assert len(losses_triton._trusted) == 3


def test_the_top_classes_agree_as_torch_counts_them() -> None:
    """The first among equals, over blocks too."""
    student, teacher = torch.zeros(3, 10_000), torch.zeros(3, 10_000)
    student[0, [7, 9_000]] = 1.0
    teacher[0, 7] = 1.0
    student[1, 9_000] = teacher[1, 5_000] = 2.0
    labels = torch.zeros(3, dtype=torch.long)
    _, readings = distillation_terms(student, teacher, labels, num_items=None, **Mixture(2.0)._asdict())
    assert readings is not None
    assert readings.agreement.item() == pytest.approx(2 / 3)


def test_a_label_that_is_no_class_is_a_nan() -> None:
    student, _, labels = draw(3, 141)
    labels[1] = 141
    loss = label_smoothed_cross_entropy(student, labels)
    assert loss.isnan()
    assert torch.equal(torch.autograd.grad(loss, student)[0].isnan().all(1), torch.tensor([False, True, False]))


def test_what_the_kernel_does_not_know_takes_the_plain_composition(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, labels = draw(3, 141)
    mixed = torch.nn.functional.one_hot(labels, 141).float()
    assert losses_triton.applies(student, teacher, labels, Mixture())
    assert not losses_triton.applies(student, teacher, mixed, Mixture())
    assert not losses_triton.applies(student, teacher, labels, Mixture(top_k=8))
    assert not losses_triton.applies(student.double(), teacher, labels, Mixture())
    assert not losses_triton.applies(student, teacher.double(), labels, Mixture())
    plain = plain_terms(student, teacher, mixed, Mixture(kd_weight=0.5))[0].total
    assert torch.equal(distillation_loss(student, teacher, mixed, kd_weight=0.5).total, plain)
    assert not losses_triton._trusted
    for off in ("0", ""):  # without a word, a GPU's tensors alone
        monkeypatch.setenv(losses_triton.SWITCH, off)
        assert not losses_triton.applies(student, teacher, labels, Mixture())


def test_no_matrix_of_all_rows_but_the_gradient_is_made() -> None:
    student, teacher, labels = draw(32, 300)
    distillation_loss(student, teacher, labels, temperature=2.0, kd_weight=0.5)  # its check
    inputs = {part.untyped_storage()._cdata for part in (student, teacher)}
    with Made(student.numel()) as made:
        loss = distillation_loss(student, teacher, labels, temperature=2.0, kd_weight=0.5).total
        gradient = torch.autograd.grad(loss, student)[0]
    assert made.storages - inputs == {gradient.untyped_storage()._cdata}


# ---- Trust


def test_a_kernel_is_checked_once_for_each_kind_and_draws_from_nobodys_chance() -> None:
    state = torch.get_rng_state()
    student, teacher, labels = draw(3, 141)
    for temperature, kinds in ((2.0, 1), (3.0, 1), (1.0, 2)):
        distillation_loss(student, teacher, labels, temperature=temperature, kd_weight=0.5)
        assert len(losses_triton._trusted) == kinds
    assert torch.equal(torch.get_rng_state(), state)


def wrong_factor(real: Any) -> Any:
    return lambda batch, mixture, *rest: real(batch, mixture._replace(loss_scale=1.02 * mixture.loss_scale), *rest)


def wrong_gradient(real: Any) -> Any:
    def launch(batch: Any, mixture: Any, weights: Any, readings: Any, values: Any, gradient: Any) -> None:
        real(batch, mixture, weights, readings, values, gradient)
        if gradient is not None:
            gradient[:, -1] = 0

    return launch


def unmasked(real: Any) -> Any:
    return lambda batch, *rest: real(batch._replace(keep=torch.ones_like(batch.keep)), *rest)


def broken(real: Any) -> Any:
    def launch(*_: Any) -> None:
        raise RuntimeError("PassManager::run failed")

    return launch


@pytest.mark.parametrize(
    ("fault", "dtype"),
    [
        *itertools.product([wrong_gradient, broken], [torch.float32, torch.bfloat16, torch.float16]),
        (wrong_factor, torch.bfloat16),
        (unmasked, torch.float32),
    ],
)
def test_a_wrong_kernel_is_found_said_once_and_never_used(
    fault: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    student, teacher, labels = draw(4, 141, dtype)
    labels[1] = -100
    monkeypatch.setattr(losses_triton, "launch", fault(losses_triton.launch))
    with caplog.at_level(logging.WARNING):
        for temperature, kd_weight in itertools.product((2.0, 1.0), (0.5, 1.0)):
            terms = distillation_loss(student, teacher, labels, temperature=temperature, kd_weight=kd_weight)
            plain = plain_terms(student, teacher, labels, Mixture(temperature, kd_weight))[0]
            torch.testing.assert_close(terms.total, plain.total, rtol=1e-5, atol=1e-5)
    assert len(caplog.messages) == 1
    assert "the plain composition is" in caplog.text
    assert "HF_LSKD_TRITON=0" in caplog.text
    assert not losses_triton._trusted

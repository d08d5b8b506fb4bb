"""The losses against slow float64 loops, against torch's own, and against what their docstrings promise."""

import math

import pytest
import torch
import torch.nn.functional as F

from hf_lskd.errors import InputError
from hf_lskd.losses import (
    LossTerms,
    Mixture,
    count_items,
    distillation_kl,
    distillation_loss,
    distillation_terms,
    label_smoothed_cross_entropy,
    nll_rows,
    plain_terms,
)
from tests.reference import slow_kl, slow_smoothed_cross_entropy

TEMPERATURES = (1.0, 2.0, 3.0, 64.0)


def draw(n: int, c: int, seed: int = 0, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(n, c, generator=generator, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.randint(0, c, (n,), generator=generator)


@pytest.mark.parametrize("classes", [2, 7, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_smoothed_cross_entropy_is_the_loop(classes: int, smoothing: float) -> None:
    student, _, labels = draw(5, classes)
    labels[2] = -100
    ours = label_smoothed_cross_entropy(student, labels, smoothing)
    assert ours.item() == pytest.approx(
        slow_smoothed_cross_entropy(student.tolist(), labels.tolist(), smoothing), rel=1e-12
    )


@pytest.mark.parametrize("classes", [2, 7, 1000])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("options", [{}, {"scale_student": False}, {"top_k": 2}, {"num_items": 11.0}], ids=str)
def test_kl_is_the_loop(classes: int, temperature: float, options: dict) -> None:
    student, teacher, labels = draw(5, classes)
    labels[0] = -100
    ours = distillation_kl(student, teacher, temperature, labels=labels, **options)
    assert ours.item() == pytest.approx(
        slow_kl(student.tolist(), teacher.tolist(), temperature, labels=labels.tolist(), **options), rel=1e-10
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("options", [{}, {"scale_student": False}, {"top_k": 2}, {"num_items": 11.0}], ids=str)
def test_trap_04_05_06_17_the_plain_composition_is_the_loop(temperature: float, options: dict) -> None:
    """What runs on a GPU. With a teacher, a CPU takes the blocked pass: the tests beside this one do not come here."""
    student, teacher, labels = draw(5, 7)
    labels[0] = -100
    mixture = Mixture(temperature, 0.3, 0.1, options.get("scale_student", True), options.get("top_k"))
    terms, _ = plain_terms(student, teacher, labels, mixture, num_items := options.get("num_items"))
    rows = student.tolist(), teacher.tolist(), labels.tolist()
    hard = slow_smoothed_cross_entropy(rows[0], rows[2], 0.1, num_items)
    soft = slow_kl(rows[0], rows[1], temperature, labels=rows[2], **options)
    assert [term.item() for term in terms] == pytest.approx([0.7 * hard + 0.3 * soft, hard, soft], rel=1e-10)


def test_at_smoothing_zero_it_is_torchs_cross_entropy() -> None:
    student, _, labels = draw(6, 9)
    for smoothing in (0.0, 0.1):  # torch's own smoothing has the same alpha/C
        expected = F.cross_entropy(student, labels, label_smoothing=smoothing)
        torch.testing.assert_close(label_smoothed_cross_entropy(student, labels, smoothing), expected)


def test_at_temperature_one_it_is_torchs_kl_divergence() -> None:
    student, teacher, _ = draw(6, 9)
    expected = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean")
    torch.testing.assert_close(distillation_kl(student, teacher), expected)


def test_kl_is_zero_at_equality_and_positive_elsewhere() -> None:
    student, teacher, _ = draw(6, 9)
    for temperature in TEMPERATURES:
        assert abs(distillation_kl(teacher, teacher, temperature).item()) < 1e-9
        assert distillation_kl(student, teacher, temperature).item() > 0


def test_top_k_of_all_classes_is_the_full_loss() -> None:
    student, teacher, _ = draw(6, 9)
    full = distillation_kl(student, teacher, 2.0)
    torch.testing.assert_close(distillation_kl(student, teacher, 2.0, top_k=9), full)
    torch.testing.assert_close(distillation_kl(student, teacher, 2.0, top_k=99), full)


def test_weight_zero_is_the_hard_loss_weight_one_the_soft_loss_and_no_teacher_the_hard_loss() -> None:
    student, teacher, labels = draw(6, 9)
    student.requires_grad_(True)
    hard, soft = label_smoothed_cross_entropy(student, labels, 0.1), distillation_kl(student, teacher, 3.0)
    for weight in (0.0, 0.3, 1.0):
        terms = distillation_loss(student, teacher, labels, temperature=3.0, kd_weight=weight, smoothing=0.1)
        torch.testing.assert_close(terms.total, (1 - weight) * hard + weight * soft)
        torch.testing.assert_close(terms.hard, hard)
        torch.testing.assert_close(terms.soft, soft)
        gradient = torch.autograd.grad(terms.total, student, retain_graph=True)[0]
        by_hand = torch.autograd.grad((1 - weight) * hard + weight * soft, student, retain_graph=True)[0]
        torch.testing.assert_close(gradient, by_hand)
    alone = distillation_loss(student, None, labels, temperature=3.0, kd_weight=1.0, smoothing=0.1)
    assert alone.soft is None
    torch.testing.assert_close(alone.total, hard)


def test_entropy_and_agreement_are_read_from_the_batch() -> None:
    student, teacher, labels = draw(8, 5)
    terms, readings = distillation_terms(
        student,
        teacher,
        labels,
        temperature=2.0,
        kd_weight=1.0,
        smoothing=0.0,
        num_items=None,
        scale_student=True,
        top_k=None,
        loss_scale=1.0,
    )
    assert readings is not None
    p = (teacher / 2).softmax(-1)
    torch.testing.assert_close(readings.target_entropy, -(p * p.log()).sum(-1).mean())
    torch.testing.assert_close(readings.agreement, (student.argmax(-1) == teacher.argmax(-1)).double().mean())
    # KL = cross-entropy - entropy, which trap 4's wrong divisors break
    cross = -(p * (student / 2).log_softmax(-1)).sum(-1).mean()
    assert terms.soft is not None
    torch.testing.assert_close(terms.soft, 4 * (cross - readings.target_entropy))


def test_loss_scale_is_a_factor_on_the_soft_term_alone() -> None:
    student, teacher, labels = draw(6, 9)
    plain = distillation_loss(student, teacher, labels, temperature=2.0, kd_weight=0.5)
    scaled = distillation_loss(student, teacher, labels, temperature=2.0, kd_weight=0.5, loss_scale=8.47)
    assert plain.soft is not None
    torch.testing.assert_close(scaled.total, plain.total + 0.5 * 7.47 * plain.soft)


def test_probabilities_as_labels() -> None:
    student, teacher, labels = draw(6, 9)
    soft = F.one_hot(labels, 9).double()
    torch.testing.assert_close(
        label_smoothed_cross_entropy(student, soft, 0.1), label_smoothed_cross_entropy(student, labels, 0.1)
    )
    mixed = 0.3 * soft + 0.7 * soft.flip(0)
    torch.testing.assert_close(
        label_smoothed_cross_entropy(student, mixed, 0.1), F.cross_entropy(student, mixed, label_smoothing=0.1)
    )
    terms = distillation_loss(student, teacher, mixed, kd_weight=0.5)
    torch.testing.assert_close(terms.hard, F.cross_entropy(student, mixed))
    assert count_items(mixed).item() == 6


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("options", [{}, {"scale_student": False}, {"top_k": 3}], ids=str)
def test_gradients_by_finite_differences(temperature: float, options: dict) -> None:
    student, teacher, labels = draw(4, 6)
    labels[1] = -100
    student.requires_grad_(True)

    def total(logits: torch.Tensor) -> torch.Tensor:
        return distillation_loss(
            logits, teacher, labels, temperature=temperature, kd_weight=0.6, smoothing=0.1, **options
        ).total

    assert torch.autograd.gradcheck(total, (student,))


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher, labels = draw(4, 6)
    student.requires_grad_(True)
    teacher.requires_grad_(True)
    distillation_loss(student, teacher, labels, temperature=2.0, kd_weight=0.5).total.backward()
    assert teacher.grad is None


def test_trap_04_kl_is_divided_by_items_not_by_classes_nor_by_length() -> None:
    student, teacher, labels = draw(12, 50)
    per_row = [distillation_kl(student[i : i + 1], teacher[i : i + 1], 2.0).item() for i in range(12)]
    torchs = 4 * F.kl_div((student / 2).log_softmax(-1), (teacher / 2).softmax(-1), reduction="batchmean").item()
    assert distillation_kl(student, teacher, 2.0).item() == pytest.approx(sum(per_row) / 12, rel=1e-12)
    assert distillation_kl(student, teacher, 2.0).item() == pytest.approx(torchs, rel=1e-9)
    as_sequences = distillation_kl(student.view(3, 4, 50), teacher.view(3, 4, 50), 2.0, labels=labels.view(3, 4))
    assert as_sequences.item() == pytest.approx(sum(per_row) / 12, rel=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_trap_05_every_path_carries_the_square_of_t(temperature: float) -> None:
    student, teacher, labels = draw(6, 9)
    expected = temperature**2 * F.kl_div(
        (student / temperature).log_softmax(-1),
        (teacher / temperature).log_softmax(-1),
        log_target=True,
        reduction="batchmean",
    )
    soft = distillation_loss(student, teacher, labels, temperature=temperature).soft
    halves = [distillation_kl(student[i : i + 3], teacher[i : i + 3], temperature, num_items=6) for i in (0, 3)]
    for found in (soft, distillation_kl(student, teacher, temperature, top_k=9), sum(halves)):
        torch.testing.assert_close(found, expected)


def test_trap_06_padding_changes_neither_loss_nor_gradient() -> None:
    student, teacher, labels = draw(6, 9)
    student, teacher, labels = student.view(2, 3, 9), teacher.view(2, 3, 9), labels.view(2, 3)

    def loss_and_gradient(s: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> tuple[LossTerms, torch.Tensor]:
        s = s.clone().requires_grad_(True)
        terms = distillation_loss(s, t, y, temperature=2.0, kd_weight=0.5, smoothing=0.1)
        return terms, torch.autograd.grad(terms.total, s)[0]

    plain, gradient = loss_and_gradient(student, teacher, labels)
    for junk in (0.0, -math.inf, math.nan, 1e30):
        pad = torch.full((2, 2, 9), junk, dtype=torch.float64)
        padded, padded_gradient = loss_and_gradient(
            torch.cat([student, pad], 1), torch.cat([teacher, pad], 1), torch.cat([labels, torch.full((2, 2), -100)], 1)
        )
        for one, other in zip(plain, padded):
            torch.testing.assert_close(one, other)
        torch.testing.assert_close(padded_gradient[:, :3], gradient)
        assert not padded_gradient[:, 3:].any()


@pytest.mark.parametrize("shape", [(3, 9), (2, 3, 9)], ids=["classes", "tokens"])
def test_trap_06_a_fully_masked_batch_is_a_zero_with_a_zero_gradient(shape: tuple[int, ...]) -> None:
    student = torch.full(shape, -math.inf).requires_grad_(True)
    terms = distillation_loss(
        student, torch.full(shape, math.nan), torch.full(shape[:-1], -100), temperature=2.0, kd_weight=0.5
    )
    terms.total.backward()
    assert terms.total.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_masked_rows_of_a_flat_batch_count_for_nothing() -> None:
    student, teacher, labels = draw(6, 9)
    expected = distillation_loss(student[2:], teacher[2:], labels[2:], temperature=2.0, kd_weight=0.5)
    student[:2], teacher[0], labels = math.nan, -math.inf, labels.clone()
    labels[:2] = -100
    for one, other in zip(expected, distillation_loss(student, teacher, labels, temperature=2.0, kd_weight=0.5)):
        torch.testing.assert_close(one, other)


def test_a_class_that_both_sides_exclude_adds_nothing() -> None:
    student, teacher, _ = draw(6, 9)
    wide = [torch.cat([z, torch.full((6, 1), -math.inf, dtype=z.dtype)], 1) for z in (student, teacher)]
    wide[0].requires_grad_(True)
    loss = distillation_kl(*wide, 2.0)
    torch.testing.assert_close(loss, distillation_kl(student, teacher, 2.0))
    loss.backward()
    assert wide[0].grad is not None
    assert wide[0].grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_trap_15_half_precision_logits_are_upcast_before_the_softmax(dtype: torch.dtype, temperature: float) -> None:
    student, teacher, labels = draw(64, 1000, scale=5.0)
    student, teacher = student.to(dtype), teacher.to(dtype)
    found = student.clone().requires_grad_(True)
    exact = student.double().requires_grad_(True)
    for logits, others in ((found, teacher), (exact, teacher.double())):
        distillation_loss(logits, others, labels, temperature=temperature, kd_weight=0.5).total.backward()
    assert found.grad is not None
    assert exact.grad is not None
    error = (found.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert (
        error < 0.004
    )  # what rounding the gradient itself to bfloat16 costs; in half precision inside it is 3 to 23 %


def test_trap_17_smoothing_spreads_alpha_over_all_classes_and_is_applied_once() -> None:
    # Two classes, logits (0, log 3): q = (1/4, 3/4). With alpha = 0.2 the target of class 1 is (0.1, 0.9).
    logits, labels = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([1])
    expected = 0.1 * math.log(4) + 0.9 * math.log(4 / 3)
    assert label_smoothed_cross_entropy(logits, labels, 0.2).item() == pytest.approx(expected, rel=1e-6)


def test_trap_32_targets_can_be_saved_for_a_backward() -> None:
    student, teacher, labels = draw(4, 6)
    with torch.no_grad():
        targets = teacher * 2
    distillation_loss(student.requires_grad_(True), targets, labels, kd_weight=0.5).total.backward()


def test_rows_of_nll_are_the_loss_at_no_smoothing() -> None:
    student, _, labels = draw(6, 9)
    labels[0] = -100
    rows = nll_rows(student.view(2, 3, 9), labels.view(2, 3))
    assert rows[:, 1].tolist() == [2, 3]
    assert (rows[:, 0].sum() / rows[:, 1].sum()).item() == pytest.approx(
        label_smoothed_cross_entropy(student, labels).item()
    )


@pytest.mark.parametrize(
    ("call", "received", "allowed"),
    [
        (lambda s, t, y: label_smoothed_cross_entropy(s, y, 1.0), "α = 1.0", "0 ≤ α < 1"),
        (lambda s, t, y: label_smoothed_cross_entropy(s, y, -0.1), "α = -0.1", "0 ≤ α < 1"),
        (lambda s, t, y: distillation_kl(s, t, 0.0), "T = 0.0", "above 0"),
        (lambda s, t, y: distillation_kl(s, t, math.nan), "T = nan", "above 0"),
        (lambda s, t, y: distillation_kl(s, t, math.inf), "T = inf", "above 0"),
        (lambda s, t, y: distillation_kl(s, t, top_k=0), "kd_top_k = 0", "from 1"),
        (lambda s, t, y: distillation_kl(s, t[:, :5]), "(4, 5)", "equal shapes"),
        (lambda s, t, y: distillation_kl(s, t, labels=y[:2]), "(2,)", "(4,)"),
        (lambda s, t, y: distillation_loss(s, t, y, kd_weight=1.5), "kd_weight = 1.5", "≤ 1"),
        (lambda s, t, y: distillation_loss(s, t, y, loss_scale=-1.0), "kd_loss_scale = -1.0", "above 0"),
        (lambda s, t, y: label_smoothed_cross_entropy(s, y.float()), "float32", "probabilities"),
    ],
)
def test_bad_input_says_what_it_got_and_what_is_allowed(call, received: str, allowed: str) -> None:
    student, teacher, labels = draw(4, 6)
    with pytest.raises(InputError) as caught:
        call(student, teacher, labels)
    assert received in str(caught.value)
    assert allowed in str(caught.value)

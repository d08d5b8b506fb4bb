"""The mathematics of label smoothing α and distillation temperature T: their only home.

Chandrasegaran et al., "Revisiting Label Smoothing and Knowledge Distillation Compatibility: What was Missing?", ICML 2022,
PMLR 162:2890-2916; temperature and T² from Hinton et al. 2015; smoothing from Szegedy et al. 2016.

Logits are `[N, C]` or `[B, L, C]`, labels `[N]` or `[B, L]`. *Items* are the labels that differ from `ignore_index`.
Every loss is a **sum over items divided by `num_items`**: by default the items of this call; a trainer passes the items of
the whole accumulated, all-process batch, so that the gradient does not depend on how the batch was cut.
Masked rows are taken out or blanked before any softmax, and every softmax is computed in float32 (float64 for float64 logits), so
what stands in a masked row (padding, infinities) never reaches the loss or its gradient.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_lskd.errors import InputError

IGNORE_INDEX = -100


class LossTerms(NamedTuple):
    """`total = (1 − kd_weight)·hard + kd_weight·soft`. `soft` is None without a teacher."""

    total: Tensor
    hard: Tensor
    soft: Tensor | None = None


class Mixture(NamedTuple):
    """The loss of a row in numbers: what `distillation_loss` takes beside logits, labels and items."""

    temperature: float = 1.0
    kd_weight: float = 1.0
    smoothing: float = 0.0
    scale_student: bool = True
    top_k: int | None = None
    loss_scale: float = 1.0

    @property
    def soft_factor(self) -> float:
        """What the KL divergence is multiplied by: loss_scale · T² (Hinton et al. 2015, section 2.1)."""
        return self.loss_scale * self.temperature**2

    @property
    def student_temperature(self) -> float:
        """What the student's logits are divided by: T, or 1 (Müller et al. 2019)."""
        return self.temperature if self.scale_student else 1.0

    def check(self) -> None:
        """Raise InputError for a number outside its range."""
        check_smoothing(self.smoothing)
        check_kd_weight(self.kd_weight)
        check_temperature(self.temperature)
        check_loss_scale(self.loss_scale)
        check_top_k(self.top_k)


class Asked(NamedTuple):
    """A loss that is asked for. `hard` False: labels only say which rows are masked. `readings`: whether `Readings` are wanted."""

    student_logits: Tensor
    teacher_logits: Tensor | None
    labels: Tensor | None
    mixture: Mixture
    num_items: Tensor | float | None
    ignore_index: int
    hard: bool = True
    readings: bool = False


class Readings(NamedTuple):
    """What a batch says of its targets at no further pass: sums over items divided by `num_items`, as the losses are.

    `target_entropy`: mean entropy of the tempered targets, nats. `agreement`: share of items whose top class is the
    teacher's.
    """

    target_entropy: Tensor
    agreement: Tensor


def label_smoothed_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    smoothing: float = 0.0,
    *,
    num_items: Tensor | float | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Cross-entropy with the target (1 − α)·onehot + α/C (the paper's y_LS; Szegedy et al. 2016, section 7).

    `labels` may be probabilities of the logits' shape (mixup, cutmix); they are smoothed the same way.
    At `smoothing` 0 it equals `F.cross_entropy` averaged over the items. Returns a scalar.
    Raises InputError for α outside [0, 1) and for shapes that do not fit.
    """
    mixture = Mixture(kd_weight=0.0, smoothing=smoothing)
    return terms_of(Asked(logits, None, labels, mixture, num_items, ignore_index))[0].hard


def distillation_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    *,
    labels: Tensor | None = None,
    num_items: Tensor | float | None = None,
    ignore_index: int = IGNORE_INDEX,
    scale_student: bool = True,
    top_k: int | None = None,
    loss_scale: float = 1.0,
) -> Tensor:
    """loss_scale · T² · KL(softmax(z_teacher/T) ‖ softmax(z_student/T)), the paper's distillation loss. Returns a scalar.

    Zero when both sides are equal. At T = 1 a plain KL divergence. `scale_student=False` leaves the student's logits
    undivided (Müller et al. 2019). `top_k` keeps the teacher's k most probable classes, renormalised over those k, while
    the student's log-softmax runs over all classes (Tan et al. 2019); at k = C it equals the full loss.
    `labels` only says which rows are masked; without it every row counts. No gradient reaches the teacher.
    The value of float32 logits loses digits as T grows, as any in float32 does, since the two distributions grow alike: of few
    classes some 1e-4 of it at T = 64, and at T = 1e4 all; the gradient is off by 3e-6 and 1e-3 there. float64 logits keep both.
    Raises InputError for T that is not finite and positive, `top_k` < 1, and shapes that do not fit.
    """
    mixture = Mixture(temperature, 1.0, 0.0, scale_student, top_k, loss_scale)
    asked = Asked(student_logits, teacher_logits, labels, mixture, num_items, ignore_index, hard=False)
    return terms_of(asked)[0].total


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    kd_weight: float = 1.0,
    smoothing: float = 0.0,
    num_items: Tensor | float | None = None,
    ignore_index: int = IGNORE_INDEX,
    scale_student: bool = True,
    top_k: int | None = None,
    loss_scale: float = 1.0,
) -> LossTerms:
    """(1 − kd_weight)·hard + kd_weight·soft over one batch, with both terms beside the total.

    `hard` is `label_smoothed_cross_entropy(student, labels, smoothing)`, `soft` is `distillation_kl(student, teacher, T)`.
    At `kd_weight` 1 the total is the soft term alone (the paper), at 0 the hard term alone; with `teacher_logits=None`
    the total is the hard term. A term of weight 0 is measured but carries no gradient.
    Raises InputError as its two parts do, and for `kd_weight` outside [0, 1].
    """
    mixture = Mixture(temperature, kd_weight, smoothing, scale_student, top_k, loss_scale)
    return terms_of(Asked(student_logits, teacher_logits, labels, mixture, num_items, ignore_index))[0]


def distillation_terms(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    *,
    temperature: float,
    kd_weight: float,
    smoothing: float,
    num_items: Tensor | float | None,
    ignore_index: int = IGNORE_INDEX,
    scale_student: bool,
    top_k: int | None,
    loss_scale: float,
) -> tuple[LossTerms, Readings | None]:
    """`distillation_loss`, and what else the same pass tells of the batch (None without a teacher)."""
    mixture = Mixture(temperature, kd_weight, smoothing, scale_student, top_k, loss_scale)
    return terms_of(Asked(student_logits, teacher_logits, labels, mixture, num_items, ignore_index, readings=True))


def terms_of(asked: Asked) -> tuple[LossTerms, Readings | None]:
    """`plain_terms` after checks, in one pass where that can be done."""
    from hf_lskd import losses_blocked, losses_triton

    student, teacher, labels, mixture = asked[:4]
    mixture.check()
    if teacher is None:
        asked = asked._replace(mixture=mixture._replace(kd_weight=0.0))
    else:
        check_same_shape(student, teacher)
    if labels is not None:
        check_labels(student, labels)
    if losses_triton.applies(student, teacher, labels, asked.mixture):
        found = losses_triton.kernel_terms(asked)
        if found is not None:
            return found
    if losses_blocked.applies(student, teacher, labels):
        return losses_blocked.blocked_terms(asked)
    return plain_terms(*asked[:6])


def plain_terms(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor | None,
    mixture: Mixture,
    num_items: Tensor | float | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> tuple[LossTerms, Readings | None]:
    """The definition of every loss here, as a composition of torch's functions. Without labels the hard term is 0."""
    given = (student_logits,) if teacher_logits is None else (student_logits, teacher_logits)
    rows = item_rows(labels, ignore_index, *given)
    student = rows.logits[0]
    hard = upcast(student).new_zeros(())
    with torch.set_grad_enabled(torch.is_grad_enabled() and mixture.kd_weight < 1):
        if labels is not None:
            hard = rows.mean(smoothed_nll(log_probabilities(student), rows.labels, mixture.smoothing), num_items)
    if teacher_logits is None:
        return LossTerms(hard, hard), None
    teacher = rows.logits[1]
    with torch.set_grad_enabled(torch.is_grad_enabled() and mixture.kd_weight > 0):
        cross, entropy = tempered_terms(student, teacher, mixture.temperature, mixture.scale_student, mixture.top_k)
        soft = mixture.soft_factor * rows.mean(cross - entropy, num_items)
    with torch.no_grad():
        target_entropy = rows.mean(entropy, num_items)
        agreement = rows.mean((student.argmax(-1) == teacher.argmax(-1)).to(entropy.dtype), num_items)
    return LossTerms(weighted(hard, soft, mixture.kd_weight), hard, soft), Readings(target_entropy, agreement)


def weighted(hard: Any, soft: Any, kd_weight: float) -> Any:
    """The mixture of two tensors or numbers; a term of weight 0 stays out, so that its infinity cannot make the total NaN."""
    if kd_weight == 0:
        return hard
    if kd_weight == 1:
        return soft
    return (1 - kd_weight) * hard + kd_weight * soft


def tempered_terms(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, scale_student: bool, top_k: int | None
) -> tuple[Tensor, Tensor]:
    """Per row of `[N, C]` logits: cross-entropy `[N]` of the tempered student under the tempered teacher, and the entropy `[N]`
    of the latter. Their difference is the KL divergence; both sides stay in log space, so no probability underflows into a log.
    """
    with torch.no_grad():
        teacher_logits = upcast(teacher_logits)
        if top_k is not None:
            teacher_logits, kept = teacher_logits.topk(min(top_k, teacher_logits.shape[-1]), dim=-1)
        log_p = F.log_softmax(teacher_logits / temperature, dim=-1)
        p = log_p.exp()
        entropy = -(p * finite(log_p)).sum(-1)
    log_q = F.log_softmax(upcast(student_logits) / (temperature if scale_student else 1.0), dim=-1)
    if top_k is not None:
        log_q = log_q.gather(-1, kept)
    return -(p * finite(log_q)).sum(-1), entropy


def finite(log_probs: Tensor) -> Tensor:
    """log 0 as the lowest finite number, so that 0 · log 0 is 0: a class that both sides exclude adds nothing, nor a gradient."""
    return log_probs.clamp(min=torch.finfo(log_probs.dtype).min)


def smoothed_nll(log_probs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Per row `[N]`: −Σ_c y_LS(c)·log q(c), from log-probabilities `[N, C]` and labels `[N]` or probabilities `[N, C]`."""
    if labels.is_floating_point():
        nll = -(labels.to(log_probs.dtype) * finite(log_probs)).sum(-1)
    else:
        nll = -log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    if smoothing == 0:
        return nll
    return smoothed(nll, log_probs.mean(-1), smoothing)


def smoothed(nll: Any, mean_log_prob: Any, smoothing: float) -> Any:
    """−Σ_c y_LS(c)·log q(c) from −log q of the label and the mean of log q over the classes, tensors or numpy's."""
    return nll if smoothing == 0 else (1 - smoothing) * nll - smoothing * mean_log_prob


def smoothed_target(smoothing: float, classes: int) -> tuple[float, float]:
    """(what y_LS adds at the label, what it is at every class): 1 − α and α/C."""
    return 1 - smoothing, smoothing / classes


def log_probabilities(logits: Tensor) -> Tensor:
    return F.log_softmax(upcast(logits), dim=-1)


def upcast(logits: Tensor) -> Tensor:
    """float32 for half-precision logits; float32 and float64 stay as they are."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def upcast_type(logits: Tensor) -> torch.dtype:
    return logits.dtype if logits.dtype in (torch.float32, torch.float64) else torch.float32


def is_probabilities(logits: Tensor, labels: Tensor) -> bool:
    """Whether the labels are one distribution over the classes a row rather than one class index."""
    return labels.is_floating_point() and labels.shape == logits.shape


def count_items(labels: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Number of items, as a 0-d integer tensor on the labels' device: rows of probabilities, or labels that are not ignored."""
    if labels.is_floating_point():
        return torch.full(
            (), labels.shape[:-1].numel(), device=labels.device
        )  # filled there: a copy would be waited for
    return labels.ne(ignore_index).sum()


def nll_rows(logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """`[B, 2]`: for each example the sum of −log q(label) over its items, and the number of its items (α = 0)."""
    log_probs = log_probabilities(logits)
    if is_probabilities(logits, labels):
        nll, items = smoothed_nll(log_probs, labels, 0.0), labels.new_ones(labels.shape[:-1])
    else:
        items = labels.ne(ignore_index)
        nll = -log_probs.gather(-1, labels.masked_fill(~items, 0).unsqueeze(-1)).squeeze(-1).masked_fill(~items, 0.0)
    return torch.stack([part.reshape(part.shape[0], -1).sum(-1).to(nll.dtype) for part in (nll, items)], dim=-1)


class ItemRows(NamedTuple):
    """A batch as rows: each of `logits` `[N, C]`, `labels` `[N]` (or probabilities `[N, C]`, or None), and which rows are items.

    `keep` None: all of them.
    """

    logits: tuple[Tensor, ...]
    labels: Tensor
    keep: Tensor | None

    def mean(self, values: Tensor, num_items: Tensor | float | None) -> Tensor:
        """Σ over items of `values` `[N]`, divided by `num_items` (at least 1, so that a fully masked batch gives 0)."""
        total = values.sum() if self.keep is None else values.masked_fill(~self.keep, 0.0).sum()
        if num_items is None:
            num_items = values.shape[0] if self.keep is None else self.keep.sum()
        if isinstance(num_items, Tensor):
            return total / num_items.to(total).clamp(min=1)
        return total / max(num_items, 1)


def item_rows(labels: Tensor | None, ignore_index: int, *logits: Tensor) -> ItemRows:
    """The rows that count of each `[..., C]` tensor of logits.

    Sequences are mostly padding, so on a CPU their masked rows are dropped. A masked row of an `[N]` batch is rare: it is blanked
    and weighs nothing. So are all on an accelerator, which is spared the synchronisation that a data-dependent shape costs.
    """
    shape = logits[0].shape
    flat = tuple(part.reshape(-1, part.shape[-1]) for part in logits)
    if labels is None:
        return ItemRows(flat, flat[0].new_empty(0), None)
    if is_probabilities(logits[0], labels):
        return ItemRows(flat, labels.reshape(-1, labels.shape[-1]), None)
    labels = labels.reshape(-1)
    keep = labels.ne(ignore_index)
    if len(shape) > 2 and labels.device.type == "cpu":
        return ItemRows(tuple(part[keep] for part in flat), labels[keep], None)
    blanked = tuple(part.masked_fill(~keep.unsqueeze(-1), 0.0) for part in flat)
    return ItemRows(blanked, labels.masked_fill(~keep, 0), keep)


def check_labels(logits: Tensor, labels: Tensor) -> None:
    shape = logits.shape
    if not is_probabilities(logits, labels) and (labels.is_floating_point() or labels.shape != shape[:-1]):
        raise InputError(
            f"labels {tuple(labels.shape)} of type {labels.dtype} with logits {tuple(shape)}",
            f"integer labels of shape {tuple(shape[:-1])} or probabilities of shape {tuple(shape)}",
        )


def check_smoothing(smoothing: float) -> None:
    if not 0 <= smoothing < 1:
        raise InputError(f"label smoothing α = {smoothing}", "0 ≤ α < 1", "The paper uses 0.0 and 0.1.")


def check_temperature(temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise InputError(f"temperature T = {temperature}", "a finite number above 0", "The paper uses 1, 2, 3 and 64.")


def check_kd_weight(kd_weight: float) -> None:
    if not 0 <= kd_weight <= 1:
        raise InputError(f"kd_weight = {kd_weight}", "0 ≤ kd_weight ≤ 1", "1 is the paper's loss: soft targets only.")


def check_loss_scale(loss_scale: float) -> None:
    if isinstance(loss_scale, str) or not (math.isfinite(loss_scale) and loss_scale > 0):
        hint = "1 is the paper's loss. (`equalised` is a recipe's: the study makes it 1/g.)"
        raise InputError(f"kd_loss_scale = {loss_scale}", "a finite number above 0", hint)


def check_top_k(top_k: int | None) -> None:
    if top_k is not None and (top_k < 1 or top_k != int(top_k)):
        raise InputError(f"kd_top_k = {top_k}", "a whole number from 1, or none", "Tan et al. 2019 use 8.")


def check_same_shape(student_logits: Tensor, teacher_logits: Tensor) -> None:
    if student_logits.shape != teacher_logits.shape:
        raise InputError(
            f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)}",
            "equal shapes",
            "Teacher and student must have the same classes in the same order.",
        )

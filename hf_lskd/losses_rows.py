"""Value and gradient of the losses over blocks of rows that fit the cache; `losses` says what they are.

The plain composition of `losses` writes some ten `[N, C]` tensors and reads each back from main memory. Here a block of rows of
both logits is read once, its softmaxes stay in the cache, and what leaves it is a few numbers a row and the gradient, written by
hand. With q = softmax(z), q_τ = softmax(z/τ) where τ = T (Müller et al. 2019: τ = 1), p = softmax(z_teacher/T) and n items:

    ∂hard/∂z = (q − y_LS)/n        ∂soft/∂z = loss_scale · T²/τ · (q_τ − p)/n

float32 inside for half-precision logits; what a row comes to is put together in float64. Exponentials are taken of the logits as they
are, which no float32 softmax of logits within ±60 minds; where their sums leave that range, the pass is done again with each row's
maximum taken off. Rows that still are not finite (a class ruled out by −inf, a model that diverged) get their numbers from the plain
composition. The same input gives the same bits on the same number of threads.
"""

import math
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_lskd import losses
from hf_lskd.losses import LossTerms, Mixture, Readings

ELEMENTS = 2**17  # of a block; two buffers and a piece of the gradient are three times so many numbers, 1.5 MB
MOST_ROWS = 128
LEAST, MOST = 1e-12, 1e30  # sums of exponentials in between lose nothing that float32 would keep


# What rows came to, by name. `total`: the sum of the student's exponentials at temperature 1, `heated`: at its own in the soft loss;
# `top`, `teacher_top`: what was taken off the logits; `gold`: the label's logit; `logits`: the sum of all. With the teacher's
# exponentials as weights, `apart`: Σ (teacher's logit − student's logit · T/τ), `energy`: Σ teacher's logit. `agrees`: 0 or 1.
Table = dict[str, Tensor]
TOTALS = ("total", "heated", "teacher_total")


class Batch(NamedTuple):
    """`[N, C]` logits, labels `[N]`, which rows are items (None: all), and what the sums over them are divided by."""

    student: Tensor
    teacher: Tensor | None
    labels: Tensor | None
    keep: Tensor | None
    divisor: float | Tensor

    def rows(self, which: slice | Tensor) -> "Batch":
        """Some rows, all of them items."""
        teacher, labels = (None if part is None else part[which] for part in (self.teacher, self.labels))
        return Batch(self.student[which], teacher, labels, None, self.divisor)


class Weights(NamedTuple):
    """What the gradient of each term is multiplied by; 0-d tensors where reading a number would wait for a GPU."""

    hard: Any
    soft: Any


class Factors(NamedTuple):
    """What stands before (q − y_LS) and before (q_τ − p) in the gradient, not yet divided by the items."""

    hard: Any
    soft: Any

    @classmethod
    def of(cls, mixture: Mixture, weights: Weights, batch: Batch) -> "Factors":
        soft = 0.0 if batch.teacher is None else weights.soft * mixture.soft_factor / mixture.student_temperature
        return cls(0.0 if batch.labels is None else weights.hard, soft)


def plain(batch: Batch, mixture: Mixture) -> tuple[LossTerms, Readings | None]:
    """The plain composition over the items of a batch."""
    items = batch if batch.keep is None else batch.rows(batch.keep)
    return losses.plain_terms(items.student, items.teacher, items.labels, mixture, items.divisor)


def blocked_pass(
    batch: Batch, mixture: Mixture, weights: Weights | None, readings: bool
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Means over items of hard and soft loss, entropy and agreement, and `[N, C]` the gradient (None without `weights`)."""
    teacher = None if batch.teacher is None else batch.teacher.detach()
    batch = batch._replace(student=batch.student.detach(), teacher=teacher)
    kind = losses.upcast(batch.student[:0]).dtype
    gradient = None
    if weights is not None:
        gradient = torch.empty_like(batch.student, memory_format=torch.contiguous_format)
        if batch.keep is not None:
            gradient.masked_fill_(~batch.keep.unsqueeze(1), 0.0)
    slopes = None if weights is None else slopes_of(mixture, weights, batch, kind)
    table = over_blocks(batch, mixture, slopes, gradient, readings, shifted=False)
    if table is None:
        table = over_blocks(batch, mixture, slopes, gradient, readings, shifted=True)
    assert table is not None
    values = row_values(table, mixture, batch.student.shape[1])
    sums = values.sum(1)
    if not math.isfinite(sum(sums.tolist())):
        repair(values, gradient, batch, mixture, weights)
        sums = values.sum(1)
    return (sums / batch.divisor).to(kind).unbind(), gradient


class Slopes(NamedTuple):
    """Factors of the gradient's parts: of each matrix of exponentials over their sums, of the label's, of all classes'."""

    soft: bool  # whether the parts of either loss are there at all
    hard: bool
    of_student: Tensor  # 0-d, as the next two
    of_teacher: Tensor
    of_hard: Tensor
    of_label: Tensor  # [1, 1]
    everywhere: float


def slopes_of(mixture: Mixture, weights: Weights, batch: Batch, kind: torch.dtype) -> Slopes:
    hard, soft = Factors.of(mixture, weights, batch)
    label, everywhere = losses.smoothed_target(mixture.smoothing, batch.student.shape[1])
    numbers = torch.tensor([soft, -soft, hard, -hard * label], dtype=torch.float64).div_(batch.divisor).to(kind)
    of_student, of_teacher, of_hard, of_label = numbers.unbind()
    all_classes = -hard * everywhere / batch.divisor
    return Slopes(soft != 0, hard != 0, of_student, of_teacher, of_hard, of_label.view(1, 1), all_classes)


_kept = threading.local()


def scratch(rows: int, classes: int, kind: torch.dtype) -> Tensor:
    """Three buffers `[rows, C]`, kept by each thread from call to call: new memory costs more than what is computed in it."""
    known = getattr(_kept, "buffers", None)
    if known is None or known.dtype != kind or known.numel() < 3 * rows * classes:
        known = _kept.buffers = torch.empty(3 * rows * classes, dtype=kind)
    return known[: 3 * rows * classes].view(3, rows, classes)


def blocks(keep: Tensor | None, count: int, rows: int) -> Iterator[slice | Tensor]:
    """Which rows make a block: a slice where they stand side by side, else their indices."""
    if keep is None:
        yield from (slice(start, min(start + rows, count)) for start in range(0, count, rows))
        return
    for indices in keep.nonzero().squeeze(1).split(rows) if bool(keep.any()) else ():
        first, last = int(indices[0]), int(indices[-1])
        yield slice(first, last + 1) if last - first == len(indices) - 1 else indices


def over_blocks(
    batch: Batch, mixture: Mixture, slopes: Slopes | None, gradient: Tensor | None, readings: bool, *, shifted: bool
) -> Table | None:
    """The numbers of all rows, block by block, and the gradient. None when exponentials of unshifted logits left their range."""
    count, classes = batch.student.shape
    kind = losses.upcast(batch.student[:0]).dtype
    rows = min(max(ELEMENTS // classes, 1), MOST_ROWS, count)
    buffers = scratch(rows, classes, kind)
    found: list[Tensor] = []
    names: tuple[str, ...] = ()
    for which in blocks(batch.keep, count, rows):
        block = batch.rows(which)
        own = buffers[:, : len(block.student)]
        direct = gradient is not None and isinstance(which, slice) and gradient.dtype == kind
        out = gradient[which] if direct and gradient is not None else own[2]
        seen = one_block(block, mixture, slopes, out, own, readings, shifted)
        if gradient is not None and not direct:
            gradient[which] = out.to(gradient.dtype)
        if not shifted and not found and not in_range(seen):
            return None  # such logits come in herds: one block tells
        found.append(torch.cat([*seen.values()], 1))
        names = tuple(seen)
    table: Table = dict(zip(names, torch.cat(found).double().unbind(1))) if found else {}
    return table if shifted or len(found) < 2 or in_range(table) else None


def in_range(table: Table) -> bool:
    least, most = torch.stack([table[name] for name in TOTALS if name in table]).aminmax()
    return bool(least > LEAST) and bool(most < MOST)


class Exps(NamedTuple):
    """exp((z − top)/T) of logits `[b, C]`; of each row the sum of these and top (None: 0), `[b, 1]`."""

    values: Tensor
    total: Tensor
    top: Tensor | None


def exps(z: Tensor, temperature: float, out: Tensor, shifted: bool) -> Exps:
    top = z.amax(1, keepdim=True) if shifted else None
    if top is not None:
        z = torch.sub(z, top, out=out)
    if temperature != 1:
        z = torch.mul(z, 1 / temperature, out=out)
    torch.exp(z, out=out)
    return Exps(out, out.sum(1, keepdim=True), top)


def one_block(
    block: Batch, mixture: Mixture, slopes: Slopes | None, out: Tensor, buffers: Tensor, readings: bool, shifted: bool
) -> Table:
    """The numbers of a block's rows, each `[b, 1]`; `out` `[b, C]` becomes the gradient, where `slopes` say what of."""
    x = losses.upcast(block.student)
    seen: Table = {}
    student = teacher = kept = hard = None
    if block.teacher is not None:
        t = losses.upcast(block.teacher)
        student = exps(x, mixture.student_temperature, out, shifted)
        seen["heated"] = student.total
        teacher, kept = teacher_part(x, t, mixture, buffers, readings, shifted, seen)
        if readings:
            seen["agrees"] = torch.from_numpy(first_best(x) == first_best(t)).unsqueeze(1).to(x.dtype)
    if block.labels is not None:
        if student is not None and mixture.student_temperature == 1:
            hard = student
        else:
            hard = exps(x, 1.0, out if student is None else buffers[1], shifted)
        seen["total"], seen["gold"] = hard.total, x.gather(1, block.labels.unsqueeze(1))
        if mixture.smoothing:
            seen["logits"] = x.sum(1, keepdim=True)
    own = student or hard
    if own is not None and own.top is not None:
        seen["top"] = own.top
    if slopes is not None:
        write_gradient(out, student, teacher, kept, hard, block.labels, slopes)
    return seen


def teacher_part(
    x: Tensor, t: Tensor, mixture: Mixture, buffers: Tensor, readings: bool, shifted: bool, seen: Table
) -> tuple[Exps, Tensor | None]:
    """The teacher's exponentials and its classes (None: all); what they come to is noted in `seen`."""
    kept, (out, scratch) = None, buffers[:2]
    if mixture.top_k is not None:
        t, kept = t.topk(min(mixture.top_k, t.shape[1]), dim=1)
        x, out, scratch = x.gather(1, kept), torch.empty_like(t), torch.empty_like(t)
    teacher = exps(t, mixture.temperature, out, shifted)
    # The logits are subtracted before anything is summed: at a high T both sides are log C to many digits.
    torch.sub(t, x, alpha=mixture.temperature / mixture.student_temperature, out=scratch).mul_(out)
    seen["teacher_total"], seen["apart"] = teacher.total, scratch.sum(1, keepdim=True)
    if readings:
        seen["energy"] = torch.mul(t, out, out=scratch).sum(1, keepdim=True)
    if teacher.top is not None:
        seen["teacher_top"] = teacher.top
    return teacher, kept


def first_best(z: Tensor) -> Any:
    """The top class of each row, `[b]`: numpy's is the first among equals, as torch's, and found twenty times as fast."""
    return z.numpy().argmax(1)


def write_gradient(
    out: Tensor, student: Exps | None, teacher: Exps | None, kept: Tensor | None, hard: Exps | None, labels: Tensor | None,
    slopes: Slopes,
) -> None:  # fmt: skip
    """`out`, which holds the student's exponentials, becomes the gradient."""
    factor = torch.div(slopes.of_student, student.total) if student is not None and slopes.soft else None
    own = hard is not None and slopes.hard
    by_hard = torch.div(slopes.of_hard, hard.total) if hard is not None and own else None
    if hard is not None and by_hard is not None and hard.values is out:
        factor, by_hard = by_hard if factor is None else factor.add_(by_hard), None
    out.zero_() if factor is None else out.mul_(factor)
    if teacher is not None and slopes.soft:
        by_teacher = torch.div(slopes.of_teacher, teacher.total)
        if kept is None:
            out.addcmul_(teacher.values, by_teacher)
        else:
            out.scatter_add_(1, kept, teacher.values * by_teacher)
    if hard is not None and by_hard is not None:
        out.addcmul_(hard.values, by_hard)
    if labels is not None and own:
        if slopes.everywhere:
            out.add_(slopes.everywhere)
        out.scatter_add_(1, labels.unsqueeze(1), slopes.of_label.expand(len(labels), 1))


def row_values(s: Table, mixture: Mixture, classes: int) -> Tensor:
    """`[4, items]` in float64: hard and soft loss, entropy and agreement of each row; 0 where not measured."""
    hard = soft = entropy = agrees = zero = torch.zeros_like(next(iter(s.values()))) if s else torch.zeros(0)
    if "gold" in s:
        log_total = log_sum(s["total"], s.get("top"), 1.0)
        mean = s["logits"] / classes - log_total if mixture.smoothing else zero
        hard = losses.smoothed(log_total - s["gold"], mean, mixture.smoothing)
    if "apart" in s:
        temperature = mixture.temperature
        student = log_sum(s["heated"], s.get("top"), mixture.student_temperature)
        teacher = log_sum(s["teacher_total"], s.get("teacher_top"), temperature)
        soft = mixture.soft_factor * (s["apart"] / s["teacher_total"] / temperature - teacher + student)
        if "energy" in s:
            entropy, agrees = teacher - s["energy"] / s["teacher_total"] / temperature, s["agrees"]
    return torch.stack([hard, soft, entropy, agrees])


def log_sum(total: Tensor, top: Tensor | None, temperature: float) -> Tensor:
    """log Σ exp(z/T)."""
    return total.log() if top is None else total.log() + top / temperature


def repair(values: Tensor, gradient: Tensor | None, batch: Batch, mixture: Mixture, weights: Weights | None) -> None:
    """Rows whose numbers are not finite once more, by the plain composition, which knows what 0 · log 0 is."""
    bad = (~values.isfinite()).any(0).nonzero().squeeze(1)
    where = bad if batch.keep is None else batch.keep.nonzero().squeeze(1)[bad]
    for some, which in zip(bad.split(MOST_ROWS), where.split(MOST_ROWS)):
        block = batch.rows(which)._replace(divisor=1.0)
        student = block.student.requires_grad_(weights is not None)
        with torch.set_grad_enabled(weights is not None):
            terms, readings = plain(block, mixture)
        found = (terms.hard, terms.soft, *(readings or (None, None)))
        values[:, some] = 0.0  # the sum of these rows stands in the first
        values[:, some[0]] = torch.stack([torch.zeros(()) if v is None else v.detach() for v in found]).double()
        if weights is None or gradient is None:
            continue
        asked = [(term, weight) for term, weight in zip(found, weights) if term is not None and term.requires_grad]
        outputs, by = [term for term, _ in asked], [torch.full_like(*pair) for pair in asked]
        gradient[which] = torch.autograd.grad(outputs, student, by)[0] / batch.divisor

"""Value and gradient of the losses over blocks of rows that fit the cache; `losses` says what they are.

The plain composition of `losses` writes some ten `[N, C]` tensors and reads each back from main memory. Here a block of rows of
both logits is read once, its softmaxes stay in the cache, and what leaves it is a few numbers a row and the gradient, written by
hand. With q = softmax(z), q_τ = softmax(z/τ) where τ = T (Müller et al. 2019: τ = 1), p = softmax(z_teacher/T) and n items:

    ∂hard/∂z = (q − y_LS)/n        ∂soft/∂z = loss_scale · T²/τ · (q_τ − p)/n

float32 inside for half-precision logits; what a row comes to is put together in float64. Exponentials are powers of two of
factor·z + shift with factor = log2(e)/T, rounded once, and a row's shift such that its largest is 1: no sum of them leaves
its range, and the same factor and shift are taken off again in float64. Rows that are not finite (a class ruled out by −inf, a
model that diverged) get their numbers from the plain composition. The same input gives the same bits on the same number of threads.
"""

import math
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_lskd import losses
from hf_lskd.losses import LossTerms, Mixture, Readings

ELEMENTS = 2**18  # of a block; two buffers and a piece of the gradient are three times so many numbers, 3 MB
MOST_ROWS = 256
LOG2E = 1 / math.log(2)


# What rows came to, by name. `total`: the sum of the student's exponentials at temperature 1, `heated`: at its own in the soft loss,
# `taught`: the teacher's; each with the shift of its exponents. `gold`: the label's logit; `logits`: the sum of all. `agrees`: 0 or 1.
# With the teacher's exponentials as weights, `apart`: Σ (teacher's logit − student's logit · T/τ), `energy`: Σ teacher's logit.
Table = dict[str, Tensor]


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
    table = over_blocks(batch, mixture, slopes, gradient, readings)
    values = row_values(table, mixture, kind, batch.student.shape[1])
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


def names_of(batch: Batch, mixture: Mixture, readings: bool) -> list[str]:
    """Which numbers of a row are asked for."""
    names = [] if batch.teacher is None else ["heated", "heated_shift", "taught", "taught_shift", "apart"]
    names += ["energy", "agrees"] if readings and batch.teacher is not None else []
    names += [] if batch.labels is None else ["total", "total_shift", "gold"]
    return names + (["logits"] if mixture.smoothing and batch.labels is not None else [])


def over_blocks(
    batch: Batch, mixture: Mixture, slopes: Slopes | None, gradient: Tensor | None, readings: bool
) -> Table:
    """The numbers of all items, `[items]` in float64, and the gradient, block by block."""
    count, classes = batch.student.shape
    kind = losses.upcast(batch.student[:0]).dtype
    rows = min(max(ELEMENTS // classes, 1), MOST_ROWS, count)
    buffers = scratch(rows, classes, kind)
    names = names_of(batch, mixture, readings)
    numbers = torch.empty(len(names), count if batch.keep is None else int(batch.keep.sum()), 1, dtype=kind)
    done = 0
    for which in blocks(batch.keep, count, rows):
        block = batch.rows(which)
        own = buffers[:, : len(block.student)]
        direct = gradient is not None and isinstance(which, slice) and gradient.dtype == kind
        out = gradient[which] if direct and gradient is not None else own[2]
        seen = dict(zip(names, numbers[:, done : done + len(block.student)].unbind()))
        one_block(block, mixture, slopes, out, own, seen)
        done += len(block.student)
        if gradient is not None and not direct:
            gradient[which] = out.to(gradient.dtype)
    return dict(zip(names, numbers.squeeze(2).double().unbind()))


class Exps(NamedTuple):
    """2^(factor·z + shift) of logits z `[b, C]`; of each row the sum of these and the shift, `[b, 1]`."""

    values: Tensor
    total: Tensor
    shift: Tensor


@lru_cache(64)
def factor_of(temperature: float, kind: torch.dtype) -> float:
    """log2(e)/T as a number of this kind."""
    return float(torch.tensor(LOG2E / temperature, dtype=kind))


def exps(z: Tensor, temperature: float, out: Tensor, seen: Table, name: str) -> Exps:
    """A block's exponentials; what they come to is noted in `seen`."""
    factor = factor_of(temperature, z.dtype)
    total, shift = seen[name], seen[f"{name}_shift"]
    torch.amax(z, 1, keepdim=True, out=shift).mul_(-factor)
    torch.add(shift, z, alpha=factor, out=out).exp2_()
    return Exps(out, torch.sum(out, 1, keepdim=True, out=total), shift)


def squares(heated: Exps, out: Tensor, seen: Table) -> Exps:
    """The exponentials at temperature 1 from those at 2."""
    torch.mul(heated.shift, 2, out=seen["total_shift"])
    torch.mul(heated.values, heated.values, out=out)
    return Exps(out, torch.sum(out, 1, keepdim=True, out=seen["total"]), seen["total_shift"])


def one_block(block: Batch, mixture: Mixture, slopes: Slopes | None, out: Tensor, buffers: Tensor, seen: Table) -> None:
    """The numbers of a block's rows, into the tensors `[b, 1]` of `seen`; `out` `[b, C]` becomes the gradient of what `slopes` say."""
    x = losses.upcast(block.student)
    student = teacher = kept = hard = None
    if block.teacher is not None:
        t = losses.upcast(block.teacher)
        student = exps(x, mixture.student_temperature, out, seen, "heated")
        teacher, kept = teacher_part(x, t, mixture, buffers, seen)
        if "agrees" in seen:
            seen["agrees"].copy_(torch.from_numpy(first_best(x) == first_best(t)).unsqueeze(1))
    if block.labels is not None:
        hard = hard_part(x, student, mixture, out if student is None else buffers[1], seen)
        torch.gather(x, 1, block.labels.unsqueeze(1), out=seen["gold"])
        if "logits" in seen:
            torch.sum(x, 1, keepdim=True, out=seen["logits"])
    if slopes is not None:
        write_gradient(out, student, teacher, kept, hard, block.labels, slopes)


def hard_part(x: Tensor, heated: Exps | None, mixture: Mixture, out: Tensor, seen: Table) -> Exps:
    """The student's exponentials at temperature 1, without taking them again where those of the soft loss tell them."""
    if heated is None or mixture.student_temperature not in (1, 2):
        return exps(x, 1.0, out, seen, "total")
    if mixture.student_temperature == 2:
        return squares(heated, out, seen)
    seen["total"].copy_(heated.total)
    seen["total_shift"].copy_(heated.shift)
    return heated


def teacher_part(x: Tensor, t: Tensor, mixture: Mixture, buffers: Tensor, seen: Table) -> tuple[Exps, Tensor | None]:
    """The teacher's exponentials and its classes (None: all); what they come to is noted in `seen`."""
    kept, (out, scratch) = None, buffers[:2]
    if mixture.top_k is not None:
        t, kept = t.topk(min(mixture.top_k, t.shape[1]), dim=1)
        x, out, scratch = x.gather(1, kept), torch.empty_like(t), torch.empty_like(t)
    teacher = exps(t, mixture.temperature, out, seen, "taught")
    # The logits are subtracted before anything is summed: at a high T both sides are log C to many digits.
    torch.sub(t, x, alpha=mixture.temperature / mixture.student_temperature, out=scratch).mul_(out)
    torch.sum(scratch, 1, keepdim=True, out=seen["apart"])
    if "energy" in seen:
        torch.sum(torch.mul(t, out, out=scratch), 1, keepdim=True, out=seen["energy"])
    return teacher, kept


def first_best(z: Tensor) -> Any:
    """The top class of each row, `[b]`: numpy's is the first among equals, as torch's, and found twenty times as fast."""
    return z.numpy().argmax(1)


def write_gradient(
    out: Tensor, student: Exps | None, teacher: Exps | None, kept: Tensor | None, hard: Exps | None, labels: Tensor | None,
    slopes: Slopes,
) -> None:  # fmt: skip
    """`out`, which holds the student's exponentials, becomes the gradient."""
    factor = slopes.of_student.div(student.total) if student is not None and slopes.soft else None
    own = hard is not None and slopes.hard
    by_hard = slopes.of_hard.div(hard.total) if hard is not None and own else None
    if hard is not None and by_hard is not None and hard.values is out:
        factor, by_hard = by_hard if factor is None else factor.add_(by_hard), None
    out.zero_() if factor is None else out.mul_(factor)
    if teacher is not None and slopes.soft:
        by_teacher = slopes.of_teacher.div(teacher.total)
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


def row_values(s: Table, mixture: Mixture, kind: torch.dtype, classes: int) -> Tensor:
    """`[4, items]` in float64: hard and soft loss, entropy and agreement of each row; 0 where not measured."""
    hard = soft = entropy = agrees = zero = torch.zeros_like(next(iter(s.values()))) if s else torch.zeros(0)
    if "gold" in s:
        log_total, nats = log_sum(s, "total"), factor_of(1.0, kind) / LOG2E
        mean = s["logits"] * (nats / classes) - log_total if mixture.smoothing else zero
        hard = losses.smoothed(log_total - s["gold"] * nats, mean, mixture.smoothing)
    if "apart" in s:
        student, teacher = log_sum(s, "heated"), log_sum(s, "taught")
        nats = factor_of(mixture.temperature, kind) / LOG2E
        soft = mixture.soft_factor * (s["apart"] / s["taught"] * nats - teacher + student)
        if "energy" in s:
            entropy, agrees = teacher - s["energy"] / s["taught"] * nats, s["agrees"]
    return torch.stack([hard, soft, entropy, agrees])


def log_sum(s: Table, name: str) -> Tensor:
    """log Σ exp(z/T), of exponents as they were rounded."""
    return s[name].log() - s[f"{name}_shift"] / LOG2E


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

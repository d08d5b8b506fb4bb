"""Value and gradient of the losses over blocks of rows that fit the cache; `losses` says what they are.

The plain composition of `losses` writes some ten `[N, C]` tensors and reads each back from main memory. Here a block of rows of
both logits is read once, its softmaxes stay in the cache, and what leaves it is a few numbers a row and the gradient, written by
hand. With q = softmax(z), q_τ = softmax(z/τ) where τ = T (Müller et al. 2019: τ = 1), p = softmax(z_teacher/T) and n items:

    ∂hard/∂z = (q − y_LS)/n        ∂soft/∂z = loss_scale · T²/τ · (q_τ − p)/n

float32 inside for half-precision logits; what a row comes to is put together in float64. Exponentials are powers of two of
factor·z + shift with factor = log2(e)/T, rounded once, and a row's shift such that its largest is 1: no sum of them leaves
its range. Values are made of these exponents, never of logits: where a row of logits lies does not cost them digits. Rows that are
not finite (a class ruled out by −inf, a model that diverged) get their numbers from the plain composition. The same input gives the
same bits on the same number of threads.
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
EVERY = slice(None)


# What rows came to, by name, each `[b, 1]`. Sums of exponentials: `total` of the student's at temperature 1, `heated` at its own in
# the soft loss, `taught` of the teacher's. Exponents at temperature 1: `gold` of the label, `logits` the sum of all. `agrees`: 0 or 1.
# With the teacher's exponentials as weights, `apart`: Σ (teacher's exponent − student's), `energy`: Σ teacher's exponent.
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
    kind = losses.upcast_type(batch.student)
    gradient = None
    if weights is not None:
        gradient = torch.empty_like(batch.student, memory_format=torch.contiguous_format)
        if batch.keep is not None:
            gradient.masked_fill_(~batch.keep.unsqueeze(1), 0.0)
    slopes = None if weights is None else slopes_of(mixture, weights, batch, kind)
    table = over_blocks(batch, mixture, slopes, gradient, readings)
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
    of_student: Tensor  # [1], as the next three
    of_teacher: Tensor
    of_hard: Tensor
    of_label: Tensor
    everywhere: float


def slopes_of(mixture: Mixture, weights: Weights, batch: Batch, kind: torch.dtype) -> Slopes:
    hard, soft = (factor / batch.divisor for factor in Factors.of(mixture, weights, batch))
    label, everywhere = losses.smoothed_target(mixture.smoothing, batch.student.shape[1])
    numbers = torch.tensor([[soft], [-soft], [hard], [-hard * label]], dtype=kind)
    return Slopes(soft != 0, hard != 0, *numbers.unbind(), -hard * everywhere)


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
        yield from [EVERY] if rows == count else (slice(start, min(start + rows, count)) for start in range(0, count, rows))
        return
    for indices in keep.nonzero().squeeze(1).split(rows) if bool(keep.any()) else ():
        first, last = int(indices[0]), int(indices[-1])
        yield slice(first, last + 1) if last - first == len(indices) - 1 else indices


def over_blocks(
    batch: Batch, mixture: Mixture, slopes: Slopes | None, gradient: Tensor | None, readings: bool
) -> Table:
    """The numbers of all items, `[items]` in float64, and the gradient, block by block."""
    count, classes = batch.student.shape
    kind = losses.upcast_type(batch.student)
    rows = min(max(ELEMENTS // classes, 1), MOST_ROWS, count)
    buffers = scratch(rows, classes, kind)
    direct = gradient is not None and gradient.dtype == kind
    names: list[str] = []
    numbers = []
    for which in blocks(batch.keep, count, rows):
        block = batch if which is EVERY else batch.rows(which)
        own = buffers[:, : block.student.shape[0]]
        placed = direct and isinstance(which, slice)
        out = gradient[which] if placed and gradient is not None else own[2]
        seen = one_block(block, mixture, slopes, out, own, readings)
        names = list(seen)
        numbers.append(torch.cat(list(seen.values()), 1))
        if gradient is not None and not placed:
            gradient[which] = out.to(gradient.dtype)
    if not numbers:
        return {}
    return dict(zip(names, (numbers[0] if len(numbers) == 1 else torch.cat(numbers)).double().unbind(1)))


class Exps(NamedTuple):
    """Powers of two `[b, C]`, and the sum of each row's `[b, 1]`."""

    values: Tensor
    total: Tensor

    @classmethod
    def of(cls, exponents: Tensor) -> "Exps":
        """In place of their exponents."""
        return cls(exponents.exp2_(), exponents.sum(1, keepdim=True))


@lru_cache(64)
def factor_of(temperature: float, kind: torch.dtype) -> float:
    """log2(e)/T as a number of this kind."""
    return float(torch.tensor(LOG2E / temperature, dtype=kind))


def exponents(z: Tensor, temperature: float, out: Tensor) -> Tensor:
    """log2 of exp(z/T) over the row's largest, into `out`."""
    factor = factor_of(temperature, z.dtype)
    return torch.add(z.amax(1, keepdim=True).mul_(-factor), z, alpha=factor, out=out)


def one_block(
    block: Batch, mixture: Mixture, slopes: Slopes | None, out: Tensor, buffers: Tensor, readings: bool
) -> Table:
    """The numbers of a block's rows; `out` `[b, C]` becomes the gradient of what `slopes` say."""
    x = losses.upcast(block.student)
    labels = None if block.labels is None else block.labels.unsqueeze(1)
    seen: Table = {}
    student = teacher = kept = hard = None
    shared = block.teacher is not None and mixture.student_temperature in (1, 2)  # one set of exponents for both losses
    if block.teacher is not None:
        t = losses.upcast(block.teacher)
        exponents(x, mixture.student_temperature, out)
        teacher, kept = teacher_part(out, t, mixture, buffers, seen, readings)
        if labels is not None and shared:
            read_hard(out, labels, mixture.student_temperature, mixture, seen)
        student = Exps.of(out)
        seen["heated"] = student.total
        if readings:
            seen["agrees"] = torch.from_numpy(first_best(x) == first_best(t)).unsqueeze(1).to(x.dtype)
    if labels is not None:
        if student is not None and shared:
            hard = student if mixture.student_temperature == 1 else squares(student, buffers[0])
        else:
            own = exponents(x, 1.0, out if student is None else buffers[0])
            read_hard(own, labels, 1.0, mixture, seen)
            hard = Exps.of(own)
        seen["total"] = hard.total
    if slopes is not None:
        write_gradient(out, student, teacher, kept, hard, labels, slopes)
    return seen


def read_hard(own: Tensor, labels: Tensor, temperature: float, mixture: Mixture, seen: Table) -> None:
    """What the hard loss needs of the student's exponents, which are at this temperature."""
    seen["gold"] = own.gather(1, labels).mul_(temperature)
    if mixture.smoothing:
        seen["logits"] = own.sum(1, keepdim=True).mul_(temperature)


def squares(heated: Exps, out: Tensor) -> Exps:
    """The exponentials at temperature 1 from those at 2."""
    torch.mul(heated.values, heated.values, out=out)
    return Exps(out, out.sum(1, keepdim=True))


def teacher_part(
    own: Tensor, t: Tensor, mixture: Mixture, buffers: Tensor, seen: Table, readings: bool
) -> tuple[Exps, Tensor | None]:
    """The teacher's exponentials and its classes (None: all); what they come to beside the student's exponents is noted in `seen`."""
    kept, (spare, out) = None, buffers[:2]
    if mixture.top_k is not None:
        t, kept = t.topk(min(mixture.top_k, t.shape[1]), dim=1)
        own, spare, out = own.gather(1, kept), torch.empty_like(t), torch.empty_like(t)
    taught = exponents(t, mixture.temperature, spare)
    torch.exp2(taught, out=out)
    seen["taught"] = out.sum(1, keepdim=True)
    # The exponents are subtracted before anything is summed: at a high T both sides are log C to many digits.
    if readings:
        seen["energy"] = taught.mul_(out).sum(1, keepdim=True)
        taught.addcmul_(own, out, value=-1)
    else:
        taught.sub_(own).mul_(out)
    seen["apart"] = taught.sum(1, keepdim=True)
    return Exps(out, seen["taught"]), kept


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
        out.scatter_add_(1, labels, slopes.of_label.expand(labels.shape))


def row_values(s: Table, mixture: Mixture, classes: int) -> Tensor:
    """`[4, items]` in float64: hard and soft loss, entropy and agreement of each row; 0 where not measured."""
    hard = soft = entropy = agrees = zero = torch.zeros_like(next(iter(s.values()))) if s else torch.zeros(0)
    if "gold" in s:
        log_total = s["total"].log2()
        mean = s["logits"] / classes - log_total if mixture.smoothing else zero
        hard = losses.smoothed(log_total - s["gold"], mean, mixture.smoothing) / LOG2E
    if "apart" in s:
        teacher = s["taught"].log2()
        soft = mixture.soft_factor * (s["apart"] / s["taught"] - teacher + s["heated"].log2()) / LOG2E
        if "energy" in s:
            entropy, agrees = (teacher - s["energy"] / s["taught"]) / LOG2E, s["agrees"]
    return torch.stack([hard, soft, entropy, agrees])


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

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
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hf_lskd import losses
from hf_lskd.losses import Asked, LossTerms, Mixture, Readings

ELEMENTS = 2**18  # of a block; two buffers and a piece of the gradient are three times so many numbers, 3 MB
MOST_ROWS = 256
LOG2E = 1 / math.log(2)
EVERY = slice(None)


# What rows came to, by name: `[b, 1]` of a block, `[items]` of all, numpy's in float64. Sums of exponentials: `total` of the
# student's at temperature 1, `heated` at its own in the soft loss, `taught` of the teacher's. Of the student's exponents, at
# `own_temperature`: `gold` of the label, `logits` the sum of all. With the teacher's exponentials as weights, `apart`:
# Σ (teacher's exponent − student's), `energy`: Σ teacher's exponent. `agrees`: 0 or 1.
Table = dict[str, Any]


class Batch(NamedTuple):
    """`[N, C]` logits, labels `[N]`, which rows are items (None: all), and what the sums over them are divided by."""

    student: Tensor
    teacher: Tensor | None
    labels: Tensor | None
    keep: Tensor | None
    divisor: Any

    def rows(self, which: slice | Tensor) -> "Batch":
        """Some rows, all of them items."""
        teacher, labels = (None if part is None else part[which] for part in (self.teacher, self.labels))
        return Batch(self.student[which], teacher, labels, None, self.divisor)


def opened(asked: Asked) -> Batch:
    """What is asked for as rows, with `num_items` as it came for a divisor and no labels where they only say which rows are masked."""
    student, teacher = (None if z is None else flat(z) for z in (asked.student_logits, asked.teacher_logits))
    assert student is not None
    labels = None if asked.labels is None else asked.labels.reshape(-1)
    keep = None if labels is None else labels.ne(asked.ignore_index)
    return Batch(student, teacher, labels if asked.hard else None, keep, asked.num_items)


def flat(logits: Tensor) -> Tensor:
    return logits if logits.dim() == 2 else logits.reshape(-1, logits.shape[-1])


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
    """`(total, hard, soft, entropy, agreement)`, means over items, and `[N, C]` the gradient (None without `weights`)."""
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
    values = row_values(table, mixture, own_temperature(batch, mixture), batch.student.shape[1])
    sums = values.sum(1).tolist()
    if not math.isfinite(sum(sums)):
        repair(torch.from_numpy(values), gradient, batch, mixture, weights)
        sums = values.sum(1).tolist()
    hard, soft, *others = (total / batch.divisor for total in sums)
    means = losses.weighted(hard, soft, mixture.kd_weight), hard, soft, *others
    return tuple(torch.full((), number, dtype=kind) for number in rounded(means, kind)), gradient


def rounded(numbers: Iterable[float], kind: torch.dtype) -> list[float]:
    """Infinities for numbers that leave this kind's range: torch refuses them."""
    largest = torch.finfo(kind).max
    return [math.copysign(math.inf, number) if abs(number) > largest else number for number in numbers]


class Slopes(NamedTuple):
    """Factors of the gradient's parts: of each matrix of exponentials over their sums, of the label's, of all classes'."""

    soft: bool  # whether the parts of either loss are there at all
    hard: bool
    of_student: Tensor  # 0-d, as the next two
    of_teacher: Tensor
    of_hard: Tensor
    of_label: float
    everywhere: float


def slopes_of(mixture: Mixture, weights: Weights, batch: Batch, kind: torch.dtype) -> Slopes:
    hard, soft = (factor / batch.divisor for factor in Factors.of(mixture, weights, batch))
    label, everywhere = losses.smoothed_target(mixture.smoothing, batch.student.shape[1])
    *numbers, of_label, everywhere = rounded((soft, -soft, hard, -hard * label, -hard * everywhere), kind)
    of_student, of_teacher, of_hard = (torch.full((), number, dtype=kind) for number in numbers)
    return Slopes(soft != 0, hard != 0, of_student, of_teacher, of_hard, of_label, everywhere)


_kept = threading.local()


def scratch(rows: int, classes: int, kind: torch.dtype) -> tuple[Tensor, ...]:
    """Three buffers `[rows, C]`, kept by each thread from call to call: new memory costs more than what is computed in it."""
    asked = rows, classes, kind
    if getattr(_kept, "asked", None) != asked:
        known, size = getattr(_kept, "memory", None), 3 * rows * classes
        with torch.inference_mode(False):  # else a call in that mode would leave buffers that no other may write to
            if known is None or known.dtype != kind or known.numel() < size:
                known = _kept.memory = torch.empty(size, dtype=kind)
            _kept.buffers, _kept.asked = known[:size].view(3, rows, classes).unbind(), asked
    return _kept.buffers


def blocks(keep: Tensor | None, count: int, rows: int) -> Iterator[slice | Tensor]:
    """Which rows make a block: a slice where they stand side by side, else their indices."""
    if keep is None:
        yield from (
            [EVERY] if rows == count else (slice(start, min(start + rows, count)) for start in range(0, count, rows))
        )
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
        block, own, out = batch, buffers, gradient
        if which is not EVERY:
            block = batch.rows(which)
            own = tuple(part[: block.student.shape[0]] for part in buffers)
            out = gradient[which] if direct and gradient is not None and isinstance(which, slice) else None
        elif not direct:
            out = None
        seen = one_block(block, mixture, slopes, own[2] if out is None else out, own, readings)
        names = list(seen)
        numbers.append(torch.cat(list(seen.values()), 1))
        if gradient is not None and out is None:
            gradient[which] = own[2].to(gradient.dtype)
    found = np.concatenate([part.numpy() for part in numbers], dtype=np.float64) if numbers else np.zeros((0, 0))
    return dict(zip(names, found.T))


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
    """log2 of exp(z/T) over the row's largest, into `out`.

    Rounded once by a fused multiply-add, which torch has with AVX2 and later; without it logits of 1e4 and more lose digits.
    """
    factor = factor_of(temperature, z.dtype)
    return torch.add(z.amax(1, keepdim=True).mul_(-factor), z, alpha=factor, out=out)


def own_temperature(batch: Batch, mixture: Mixture) -> float:
    """At which the student's exponents are read for the hard loss: at 1 and 2 those of the soft loss tell them."""
    shared = batch.teacher is not None and mixture.student_temperature in (1, 2)
    return mixture.student_temperature if shared else 1.0


def one_block(
    block: Batch, mixture: Mixture, slopes: Slopes | None, out: Tensor, buffers: tuple[Tensor, ...], readings: bool
) -> Table:
    """The numbers of a block's rows; `out` `[b, C]` becomes the gradient of what `slopes` say."""
    x = losses.upcast(block.student)
    labels = None if block.labels is None else block.labels.unsqueeze(1)
    own = own_temperature(block, mixture)
    seen: Table = {}
    student = teacher = kept = hard = None
    if block.teacher is not None:
        t = block.teacher.to(x.dtype)
        exponents(x, mixture.student_temperature, out)
        teacher, kept = teacher_part(out, t, mixture, buffers, seen, readings)
        if labels is not None and own == mixture.student_temperature:
            read_hard(out, labels, mixture, seen)
        student = Exps.of(out)
        seen["heated"] = student.total
        if readings:
            seen["agrees"] = torch.from_numpy(first_best(x) == first_best(t)).unsqueeze(1).to(x.dtype)
    if labels is not None:
        if student is not None and own == mixture.student_temperature:
            hard = squares(student, buffers[0]) if own == 2 else student
        else:
            spare = exponents(x, own, out if student is None else buffers[0])
            read_hard(spare, labels, mixture, seen)
            hard = Exps.of(spare)
        seen["total"] = hard.total
    if slopes is not None:
        write_gradient(out, student, teacher, kept, hard, labels, slopes)
    return seen


def read_hard(own: Tensor, labels: Tensor, mixture: Mixture, seen: Table) -> None:
    """What the hard loss needs of the student's exponents."""
    seen["gold"] = own.gather(1, labels)
    if mixture.smoothing:
        seen["logits"] = own.sum(1, keepdim=True)


def squares(heated: Exps, out: Tensor) -> Exps:
    """The exponentials at temperature 1 from those at 2."""
    torch.mul(heated.values, heated.values, out=out)
    return Exps(out, out.sum(1, keepdim=True))


def teacher_part(
    own: Tensor, t: Tensor, mixture: Mixture, buffers: tuple[Tensor, ...], seen: Table, readings: bool
) -> tuple[Exps, Tensor | None]:
    """The teacher's exponentials and its classes (None: all); what they come to beside the student's exponents is noted in `seen`."""
    kept, spare, out = None, buffers[0], buffers[1]
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
        out.scatter_(1, labels, slopes.of_label, reduce="add")


def row_values(s: Table, mixture: Mixture, own: float, classes: int) -> Any:
    """`[4, items]` in float64, numpy's: hard and soft loss, entropy and agreement of each row; 0 where not measured."""
    values = np.zeros((4, len(next(iter(s.values()))) if s else 0))
    with np.errstate(all="ignore"):  # rows that are not finite are seen by their sum
        if "gold" in s:
            log_total = np.log2(s["total"])
            mean = s["logits"] * (own / classes) - log_total if mixture.smoothing else 0.0
            values[0] = losses.smoothed(log_total - own * s["gold"], mean, mixture.smoothing) / LOG2E
        if "apart" in s:
            teacher = np.log2(s["taught"])
            apart = s["apart"] / s["taught"]
            values[1] = (apart - teacher + np.log2(s["heated"])) * (mixture.soft_factor / LOG2E)
            if "energy" in s:
                values[2], values[3] = (teacher - s["energy"] / s["taught"]) / LOG2E, s["agrees"]
    return values


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

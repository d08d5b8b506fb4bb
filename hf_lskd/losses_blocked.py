"""The losses as one node of the graph, whose value and gradient are made in one pass; `losses` says what they are.

The pass is `losses_rows` for a CPU's tensors and `losses_triton` for a GPU's, of plain tensors and class indices, on a CPU without a
teacher from SMALL numbers on; everything else takes the plain composition in `losses`, which is also what a derivative of the gradient
is made by.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_lskd.losses import Asked, LossTerms, Mixture, Readings
from hf_lskd.losses_rows import Batch, Weights, blocked_pass, opened, plain

SMALL = 2**15  # numbers; of fewer torch's own cross-entropy is the faster one (128 x 141: 245 against 307 µs)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def ordinary(student: Tensor, teacher: Tensor | None, labels: Tensor | None) -> bool:
    """Whether these are plain tensors, labels class indices, and nobody traces or transforms what is done with them."""
    return (
        all(type(part) in (Tensor, torch.nn.Parameter) for part in (student, teacher, labels) if part is not None)
        and (labels is None or not labels.is_floating_point())
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def applies(student: Tensor, teacher: Tensor | None, labels: Tensor | None) -> bool:
    """Whether the blocked pass takes these: ordinary tensors on a CPU, and enough of them to pay."""
    return (
        all(part.device.type == "cpu" for part in (student, teacher, labels) if part is not None)
        and student.dtype in DTYPES
        and student.numel() > (0 if teacher is not None else SMALL - 1)
        and ordinary(student, teacher, labels)
    )


class Pass(NamedTuple):
    """How value and gradient are made, on one kind of device."""

    run: Callable[[Batch, Mixture, Weights | None, bool], tuple[tuple[Tensor, ...], Tensor | None]]
    number: Callable[[Tensor], Any]  # a gradient from above as what `Weights` hold
    scaled: Callable[[Tensor, Tensor], Tensor]  # a gradient times such a number, in place


def scaled_where_needed(gradient: Tensor, by: Tensor) -> Tensor:
    return gradient if float(by) == 1 else gradient.mul_(by)


ON_CPU = Pass(blocked_pass, float, scaled_where_needed)


def blocked_terms(asked: Asked) -> tuple[LossTerms, Readings | None]:
    """What `losses.plain_terms` gives; without `hard` and `readings` these are zeros, and cost nothing."""
    batch = opened(asked)
    keep, items = batch.keep, batch.divisor
    if keep is not None and bool(keep.all()):
        keep = None
    if items is None:
        items = batch.student.shape[0] if keep is None else keep.sum()
    return terms_by(ON_CPU, batch._replace(keep=keep, divisor=max(float(items), 1.0)), asked.mixture, asked.readings)


def terms_by(how: Pass, batch: Batch, mixture: Mixture, readings: bool) -> tuple[LossTerms, Readings | None]:
    total, *terms, entropy, agreement = BlockedLoss.apply(batch.student, batch, mixture, readings, how)
    if batch.teacher is None:
        return LossTerms(total, total), None
    return LossTerms(total, *terms), Readings(entropy, agreement)


class BlockedLoss(torch.autograd.Function):
    """(total, hard, soft, entropy, agreement), and the gradient of the first three to the student's logits.

    The gradient of the total is made together with its value, but in float16: what a loss is scaled by has to meet it before it is
    rounded. Whatever else is asked for costs another pass: a second backward, the gradient of one term alone, and, by the plain
    composition, a derivative of the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, batch: Batch, mixture: Mixture, readings: bool, how: Pass
    ) -> tuple[Tensor, ...]:
        weights = Weights(1 - mixture.kd_weight, mixture.kd_weight)
        wanted = ctx.needs_input_grad[0]
        ahead = wanted and student.dtype != torch.float16
        (total, hard, soft, *others), gradient = how.run(batch, mixture, weights if ahead else None, readings)
        ctx.set_materialize_grads(False)
        if wanted:
            untracked = (
                batch.teacher is not None and batch.teacher.is_inference()
            )  # autograd refuses to save such a tensor
            ctx.save_for_backward(student, None if untracked else batch.teacher)
            ctx.untracked = batch.teacher if untracked else None
            ctx.rest, ctx.mixture = (batch.labels, batch.keep, batch.divisor), mixture
            ctx.gradient, ctx.how, ctx.readings = gradient, how, readings
        ctx.mark_non_differentiable(*others, *(term for term, weight in zip((hard, soft), weights) if weight == 0))
        return total, hard, soft, *others

    @staticmethod
    def backward(ctx: Any, total: Tensor | None, hard: Tensor | None, soft: Tensor | None, *_: None) -> Any:
        student, teacher = ctx.saved_tensors
        batch, mixture = Batch(student, ctx.untracked if teacher is None else teacher, *ctx.rest), ctx.mixture
        if torch.is_grad_enabled():
            return plain_gradient(batch, mixture, (total, hard, soft)), None, None, None, None
        if hard is None and soft is None and total is not None and ctx.gradient is not None:
            gradient, ctx.gradient = ctx.gradient, None  # from here on it is the caller's
            return ctx.how.scaled(gradient, total), None, None, None, None
        of_total, of_hard, of_soft = (0.0 if part is None else ctx.how.number(part) for part in (total, hard, soft))
        weight = mixture.kd_weight
        weights = Weights((1 - weight) * of_total + of_hard, weight * of_total + of_soft)
        return ctx.how.run(batch, mixture, weights, ctx.readings)[1], None, None, None, None


def plain_gradient(batch: Batch, mixture: Mixture, upstream: tuple[Tensor | None, ...]) -> Tensor:
    """The gradient as a function of the logits and of what comes from above that can be differentiated itself."""
    terms, _ = plain(batch, mixture)
    asked = [(term, grad) for term, grad in zip(terms, upstream) if term is not None and grad is not None]
    outputs, grads = zip(*asked)
    return torch.autograd.grad(outputs, batch.student, grads, create_graph=True)[0]

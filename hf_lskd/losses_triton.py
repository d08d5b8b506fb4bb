"""The losses' one pass on a GPU: when it is taken, how its kernels are launched, and the check that each has to pass at its first use.

Applies to CUDA tensors where Triton can be imported, to float32, bfloat16 and float16 logits with class indices and without `top_k`;
everything else takes the plain composition. No number is read back from the device. Nobody has run this on a GPU yet (only Triton's
interpreter, and its compiler for sm_80 and sm_90), so each kernel first has to give what the plain composition gives in float64 for
a few rows: else, and when it cannot be compiled or launched, one warning, and the plain composition for the rest of the process.

HF_LSKD_TRITON=0 in the environment turns it off. HF_LSKD_TRITON=interpret, together with Triton's own TRITON_INTERPRET=1, takes it for
a CPU's tensors, slowly: that is how it is tested.
"""

import functools
import importlib.util
import logging
import os
from typing import Any

import torch
from torch import Tensor

from hf_lskd import losses
from hf_lskd.losses import Asked, LossTerms, Mixture, Readings
from hf_lskd.losses_blocked import Pass, ordinary, terms_by
from hf_lskd.losses_rows import Batch, Factors, Weights, opened, plain

logger = logging.getLogger(__name__)

SWITCH = "HF_LSKD_TRITON"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ONE_BLOCK = 2**13  # classes up to which a program holds a whole row: twice as many spill registers on sm_90
BLOCK = 2**12  # of longer rows
CHECKED_ROWS = 5

_trusted: set[tuple[Any, ...]] = set()  # kinds of launches that have passed their check
_distrusted: list[str] = []  # why the plain composition is taken for the rest of this process


def applies(student: Tensor, teacher: Tensor | None, labels: Tensor | None, mixture: Mixture) -> bool:
    """Whether a kernel takes these: ordinary tensors on one GPU, and nothing that it does not know."""
    parts = [part for part in (student, teacher, labels) if part is not None]
    switch = os.environ.get(SWITCH, "")
    kind = "cpu" if switch == "interpret" else "cuda"
    return (
        student.device.type == kind  # most calls of a machine without a GPU end here
        and all(part.device.type == kind and part.device == student.device for part in parts)
        and mixture.top_k is None
        and all(part.dtype in DTYPES for part in (student, teacher) if part is not None)
        and student.numel() > 0
        and student.shape[-1] > 1
        and ordinary(student, teacher, labels)
        and switch != "0"
        and not _distrusted
        and has_triton()
    )


@functools.cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def kernel_terms(asked: Asked) -> tuple[LossTerms, Readings | None] | None:
    """What `losses.plain_terms` gives; without `hard` and `readings` these are zeros. None where the kernel is not to be trusted."""
    batch, mixture = opened(asked), asked.mixture
    labels = None if batch.labels is None else batch.labels.contiguous()  # a kernel finds the label of row i at place i
    batch = batch._replace(labels=labels, divisor=items_of(batch.divisor, batch.keep, batch.student))
    readings = asked.readings and batch.teacher is not None
    kind = kind_of(batch, mixture, readings)
    if kind not in _trusted:
        if why := fault(batch, mixture, readings):
            distrust(why)
            return None
        _trusted.add(kind)
    return terms_by(ON_GPU, batch, mixture, readings)


def items_of(num_items: Tensor | float | None, keep: Tensor | None, like: Tensor) -> Tensor:
    """What sums are divided by, at least 1, as a float32 number on the device of the logits."""
    if num_items is None:
        num_items = float(len(like)) if keep is None else keep.sum()
    if isinstance(num_items, Tensor):
        return num_items.detach().to(like.device, torch.float32, non_blocking=True).clamp(min=1)
    return torch.full((), max(float(num_items), 1.0), device=like.device)


def kind_of(batch: Batch, mixture: Mixture, readings: bool) -> tuple[Any, ...]:
    """What decides which code is compiled for a launch, and for which device."""
    taught = None if batch.teacher is None else batch.teacher.dtype
    labels = None if batch.labels is None else batch.labels.dtype
    return (
        batch.student.device, batch.student.dtype, taught, labels, batch.keep is None, batch.student.shape[1], readings,
        mixture.smoothing > 0, mixture.student_temperature == 1, mixture.kd_weight < 1, mixture.kd_weight > 0,
    )  # fmt: skip


# ---- Launching


def kernel_pass(
    batch: Batch, mixture: Mixture, weights: Weights | None, readings: bool
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """`(total, hard, soft, entropy, agreement)`, means over items, and `[N, C]` the gradient (None without `weights`)."""
    student = batch.student.detach()
    values = torch.empty(4, len(student), dtype=torch.float32, device=student.device)
    gradient = None
    if weights is not None:
        gradient = torch.empty_like(student, memory_format=torch.contiguous_format)
    with torch.cuda.device_of(student):
        launch(batch, mixture, weights, readings, values, gradient)
    hard, soft, *others = (values.sum(1, dtype=torch.float64) / batch.divisor).float().unbind()
    return (losses.weighted(hard, soft, mixture.kd_weight).clone(), hard, soft, *others), gradient


def launch(
    batch: Batch, mixture: Mixture, weights: Weights | None, readings: bool, values: Tensor, gradient: Tensor | None
) -> None:
    from hf_lskd.losses_kernel import rows_kernel

    student = with_rows(batch.student.detach())
    teacher = None if batch.teacher is None else with_rows(batch.teacher.detach())
    rows, classes = student.shape
    own, upstream = numbers_of(weights, student)
    factors = Factors.of(mixture, own, batch)
    label, everywhere = losses.smoothed_target(mixture.smoothing, classes)
    block, warps = shape_of(classes)
    rows_kernel[(rows,)](
        student, student if teacher is None else teacher,
        values if batch.labels is None else batch.labels, values if batch.keep is None else batch.keep.view(torch.uint8),
        batch.divisor, upstream, values, values if gradient is None else gradient,
        student.stride(0), student.stride(0) if teacher is None else teacher.stride(0), rows, classes,
        1 / mixture.student_temperature, 1 / mixture.temperature, mixture.smoothing, mixture.soft_factor,
        float(factors.hard), float(factors.soft), label, everywhere,
        TAUGHT=teacher is not None, HARD=batch.labels is not None, MASKED=batch.keep is not None,
        SMOOTH=batch.labels is not None and mixture.smoothing > 0,
        SAME=teacher is not None and mixture.student_temperature == 1, READ=readings, GRADIENT=gradient is not None,
        HARD_SLOPE=batch.labels is not None and mixture.kd_weight < 1,
        SOFT_SLOPE=teacher is not None and mixture.kd_weight > 0,
        BLOCK=block, ONE=block >= classes, num_warps=warps,
    )  # fmt: skip


def with_rows(logits: Tensor) -> Tensor:
    """Logits whose classes lie side by side."""
    return logits if logits.stride(1) == 1 else logits.contiguous()


def numbers_of(weights: Weights | None, like: Tensor) -> tuple[Weights, Tensor]:
    """Weights as numbers known here, and two numbers on the device that they are multiplied by there."""
    if weights is None or not any(isinstance(part, Tensor) for part in weights):
        return weights or Weights(0.0, 0.0), ones(like.device)
    parts = [part if isinstance(part, Tensor) else torch.full((), float(part), device=like.device) for part in weights]
    return Weights(1.0, 1.0), torch.stack([part.float() for part in parts])


@functools.cache
def ones(device: torch.device) -> Tensor:
    return torch.ones(2, device=device)


def shape_of(classes: int) -> tuple[int, int]:
    """(classes in a block, warps of a program)."""
    block = 1 << max(classes - 1, 1).bit_length()
    if block > ONE_BLOCK:
        block = BLOCK
    return block, min(max(block // 256, 1), 16)


def itself(number: Tensor) -> Tensor:
    return number


def scaled(gradient: Tensor, by: Tensor) -> Tensor:
    """The gradient times a number that stays on the device, in place; 1 costs no pass over it."""
    from hf_lskd.losses_kernel import scale_kernel

    block = 4096
    with torch.cuda.device_of(gradient):
        scale_kernel[(-(-gradient.numel() // block),)](gradient, by, gradient.numel(), BLOCK=block, num_warps=8)
    return gradient


ON_GPU = Pass(kernel_pass, itself, scaled)


# ---- Trust


def distrust(why: str) -> None:
    _distrusted.append(why)
    logger.warning(
        "The Triton kernel of the losses is not used in this process (%s): the plain composition is, which is slower and needs more "
        "memory. %s=0 turns the kernel off without this message; please report it.",
        why,
        SWITCH,
    )


def fault(batch: Batch, mixture: Mixture, readings: bool) -> str | None:
    """What is wrong with the kernel that this batch would take: a few rows of as many classes, beside the plain composition."""
    try:
        with torch.enable_grad():
            return difference(few_rows(batch, mixture), mixture, readings)
    except Exception as error:  # of Triton's compiler, its launcher, or the driver
        return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def few_rows(batch: Batch, mixture: Mixture) -> Batch:
    """Rows of chance of the same kind: one masked where rows can be, one with a class that both sides rule out."""
    draw = torch.Generator().manual_seed(0)  # nobody else's chance
    classes, device = batch.student.shape[1], batch.student.device
    student, teacher = (3 * torch.randn(CHECKED_ROWS, classes, generator=draw) for _ in range(2))
    chosen = torch.randint(classes // 2, classes, (CHECKED_ROWS,), generator=draw)
    if not mixture.smoothing or batch.labels is None:  # else log 0 counts, and the loss is infinite
        student[2, 0] = teacher[2, 0] = -torch.inf
    keep = None
    if batch.keep is not None:
        keep = torch.arange(CHECKED_ROWS).ne(1).to(device)
    return Batch(
        student.to(device, batch.student.dtype).requires_grad_(True),
        None if batch.teacher is None else teacher.to(device, batch.teacher.dtype),
        None if batch.labels is None else chosen.to(device, batch.labels.dtype),
        keep,
        torch.full((), 3.0, device=device),
    )


def difference(batch: Batch, mixture: Mixture, readings: bool) -> str | None:
    """How the kernel's value and gradient differ from the plain composition's in float64 by more than rounding; None: not at all."""
    scale = 512.0  # as a loss scaler's: float16 would not tell small gradients from 0
    taught = None if batch.teacher is None else batch.teacher.double()
    exact = batch._replace(student=batch.student.detach().double().requires_grad_(True), teacher=taught)
    found = [terms_by(ON_GPU, batch, mixture, readings), plain(exact, mixture)]
    slopes = [torch.autograd.grad(scale * terms.total, part.student)[0].double()
              for (terms, _), part in zip(found, (batch, exact))]  # fmt: skip
    rounding = 1e-5 + 1e-6 * (mixture.soft_factor if batch.teacher is not None else 0.0)
    ours, theirs = (numbers(terms, own if readings else None) for terms, own in found)
    if not bool(((ours - theirs).abs() <= 2e-3 * theirs.abs() + rounding).all()):
        return f"its values are {ours.tolist()} where {theirs.tolist()} are right"
    largest = slopes[1].abs().amax(1, keepdim=True)
    near = (1e-3 if batch.student.dtype == torch.float32 else 1e-2) * slopes[1].abs()
    if not bool(((slopes[0] - slopes[1]).abs() <= near + (1e-4 + 1e-7 * mixture.temperature) * largest).all()):
        error = float((slopes[0] - slopes[1]).norm() / slopes[1].norm())
        return f"its gradient is off by {error:.2g} of the right one"
    return None


def numbers(terms: LossTerms, readings: Readings | None) -> Tensor:
    """Total, hard and soft loss and what was read, as far as there are any, in float64."""
    return torch.stack([part.detach().double() for part in (*terms, *(readings or ())) if part is not None])

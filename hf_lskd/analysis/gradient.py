"""g(T): the size of the T² loss's gradient on a student that knows nothing yet.

Hinton et al. (2015) multiply the soft loss by T² to keep the gradient's scale. That holds while logits are large
against T. A teacher trained with label smoothing has gaps of about ln(K(1 − α)/α), so its g falls steeply with T where
there are many classes: a small g is a small learning rate under SGD.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from hf_lskd.analysis._inputs import SLAB, Array, as_matrix
from hf_lskd.errors import InputError
from hf_lskd.losses import check_top_k


class TargetGradient:
    """g(T) and the entropy of the tempered targets over any number of batches, for several temperatures at once.

    `top_k`: as in the loss, whose targets are then the k most probable classes, renormalised; None is all of them. Several
    may be measured in one pass. Computed and summed in float64, whatever the logits' dtype; memory does not grow with the samples.

    Raises InputError without temperatures, for one that is not finite and above 0, and for a k below 1.
    """

    def __init__(self, temperatures: Iterable[float], top_k: Iterable[int | None] = (None,)) -> None:
        self.temperatures = tuple(dict.fromkeys(_checked_temperature(t) for t in temperatures))
        self.top_k = tuple(dict.fromkeys(top_k))
        if not self.temperatures or not self.top_k:
            raise InputError("no temperatures", "at least one")
        for k in self.top_k:
            check_top_k(k)
        self.num_classes: int | None = None
        self.count = 0
        self._points = [(t, k) for k in self.top_k for t in self.temperatures]
        self._norm = dict.fromkeys(self._points, 0.0)
        self._entropy = dict.fromkeys(self._points, 0.0)

    def update(self, teacher_logits: Array) -> "TargetGradient":
        """Add logits `[N, C]`; −inf (a class ruled out) is allowed. Returns itself.

        Raises InputError for another shape or number of classes, fewer than 2 classes, and logits without a softmax
        (NaN, +inf, or nothing but −inf); nothing is added then.
        """
        logits = as_matrix(teacher_logits, "teacher_logits", columns=self.num_classes)
        classes = logits.shape[1]
        if classes < 2:
            raise InputError(f"teacher_logits with {classes} classes", "at least 2")
        sums = [self._sums_of(part.double()) for part in logits.split(max(1, SLAB // classes))]
        if not all(math.isfinite(value) for part in sums for pair in part for value in pair):
            raise InputError("teacher_logits with NaN, +inf or a row of −inf", "logits that a softmax can take")
        self.num_classes = classes
        self.count += len(logits)
        for part in sums:
            for point, (norm, entropy) in zip(self._points, part, strict=True):
                self._norm[point] += norm
                self._entropy[point] += entropy
        return self

    def merge(self, other: "TargetGradient") -> "TargetGradient":
        """Add what `other` has seen (of another process). Returns itself.

        Raises InputError when temperatures or classes differ.
        """
        if set(other._points) != set(self._points):
            raise InputError(
                f"temperatures {other.temperatures}, top_k {other.top_k}", f"{self.temperatures}, {self.top_k}"
            )
        if None not in (self.num_classes, other.num_classes) and self.num_classes != other.num_classes:
            raise InputError(f"{other.num_classes} classes", f"{self.num_classes}")
        self.num_classes = self.num_classes or other.num_classes
        self.count += other.count
        for point in self._points:
            self._norm[point] += other._norm[point]
            self._entropy[point] += other._entropy[point]
        return self

    def value(self, temperature: float, top_k: int | None = None) -> float:
        """g(T) = T · mean‖softmax(z/T) − 1/C‖₂, in [0, T]. Raises InputError for a T or k not asked for, or no samples."""
        point = self._known(temperature, top_k)
        return point[0] * self._norm[point] / self.count

    def entropy(self, temperature: float, top_k: int | None = None) -> float:
        """Mean entropy of softmax(z/T) in nats, in [0, ln C]. Raises InputError as `value` does."""
        return self._entropy[self._known(temperature, top_k)] / self.count

    def _sums_of(self, logits: Tensor) -> list[tuple[float, float]]:
        """Per k and temperature: the summed distance to the uniform distribution and the summed entropy."""
        sums, classes = [], logits.shape[1]
        for k in self.top_k:
            kept = logits if k is None else logits.topk(min(k, classes), dim=1).values
            for t in self.temperatures:
                p = torch.softmax(kept / t, dim=1)
                entropy = torch.special.entr(p).sum()  # −p ln p, 0 at p = 0
                # Of the classes left out p is 0, and each is 1/C from the uniform distribution.
                squares = (p - 1 / classes).square().sum(1) + (classes - p.shape[1]) / classes**2
                sums.append((float(squares.sqrt().sum()), float(entropy)))
        return sums

    def _known(self, temperature: float, top_k: int | None) -> tuple[float, int | None]:
        point = (_checked_temperature(temperature), top_k)
        if point not in self._norm:
            known = ", ".join(f"{t:g}" for t in self.temperatures)
            raise InputError(f"temperature {temperature}, top_k {top_k}", f"temperatures {known}; top_k {self.top_k}")
        if not self.count:
            raise InputError("no teacher logits yet", "at least one sample", "Call update first.")
        return point


def target_gradient(teacher_logits: Array, temperature: float, top_k: int | None = None) -> float:
    """g(T) = T · mean‖softmax(z/T) − 1/C‖₂ of logits z `[N, C]`, in [0, T]; with `top_k` the softmax is over the k largest.

    The norm of ∂/∂logits of T²·KL(teacher_T ‖ student_T) for a student with equal logits, mean over samples: about 1
    for sharp targets at T = 1, and 0 for a teacher that says nothing. Relations: for T → ∞ it tends to the mean norm
    of the centred logits divided by C. `TargetGradient` is the same over batches. Errors as there.
    """
    return TargetGradient([temperature], [top_k]).update(teacher_logits).value(temperature, top_k)


def target_entropy(teacher_logits: Array, temperature: float) -> float:
    """Mean entropy in nats of softmax(z/T), logits z `[N, C]`: 0 for sharp targets, ln C for uniform ones.

    Errors as in `TargetGradient`.
    """
    return TargetGradient([temperature]).update(teacher_logits).entropy(temperature)


def equalised_loss_scale(gradient: float) -> float:
    """1/g: the factor on the soft loss that makes the first gradient the same for every teacher and temperature.

    Raises InputError for a g that is not a finite number above 0.
    """
    if not (math.isfinite(gradient) and gradient > 0):
        raise InputError(
            f"g = {gradient}",
            "a finite number above 0",
            "A teacher whose targets are uniform gives no gradient to scale: check its accuracy.",
        )
    return 1 / gradient


def _checked_temperature(temperature: float) -> float:
    if not (math.isfinite(temperature) and temperature > 0):
        raise InputError(f"temperature {temperature}", "finite numbers above 0")
    return float(temperature)

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


class TargetGradient:
    """g(T) and the entropy of the tempered targets over any number of batches, for several temperatures at once.

    Computed and summed in float64, whatever the logits' dtype; memory does not grow with the samples.

    Raises InputError without temperatures and for one that is not finite and above 0.
    """

    def __init__(self, temperatures: Iterable[float]) -> None:
        self.temperatures = tuple(dict.fromkeys(_checked_temperature(t) for t in temperatures))
        if not self.temperatures:
            raise InputError("no temperatures", "at least one")
        self.num_classes: int | None = None
        self.count = 0
        self._norm = dict.fromkeys(self.temperatures, 0.0)
        self._entropy = dict.fromkeys(self.temperatures, 0.0)

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
            for t, (norm, entropy) in zip(self.temperatures, part, strict=True):
                self._norm[t] += norm
                self._entropy[t] += entropy
        return self

    def merge(self, other: "TargetGradient") -> "TargetGradient":
        """Add what `other` has seen (of another process). Returns itself.

        Raises InputError when temperatures or classes differ.
        """
        if set(other.temperatures) != set(self.temperatures):
            raise InputError(f"temperatures {other.temperatures}", f"{self.temperatures}")
        if None not in (self.num_classes, other.num_classes) and self.num_classes != other.num_classes:
            raise InputError(f"{other.num_classes} classes", f"{self.num_classes}")
        self.num_classes = self.num_classes or other.num_classes
        self.count += other.count
        for t in self.temperatures:
            self._norm[t] += other._norm[t]
            self._entropy[t] += other._entropy[t]
        return self

    def value(self, temperature: float) -> float:
        """g(T) = T · mean‖softmax(z/T) − 1/C‖₂, in [0, T]. Raises InputError for a T not asked for, or no samples."""
        t = self._known(temperature)
        return t * self._norm[t] / self.count

    def entropy(self, temperature: float) -> float:
        """Mean entropy of softmax(z/T) in nats, in [0, ln C]. Raises InputError as `value` does."""
        return self._entropy[self._known(temperature)] / self.count

    def _sums_of(self, logits: Tensor) -> list[tuple[float, float]]:
        """Per temperature: the summed distance to the uniform distribution and the summed entropy."""
        sums = []
        for t in self.temperatures:
            p = torch.softmax(logits / t, dim=1)
            entropy = torch.special.entr(p).sum()  # −p ln p, 0 at p = 0
            sums.append((float(torch.linalg.vector_norm(p - 1 / p.shape[1], dim=1).sum()), float(entropy)))
        return sums

    def _known(self, temperature: float) -> float:
        t = _checked_temperature(temperature)
        if t not in self._norm:
            raise InputError(f"temperature {temperature}", ", ".join(f"{known:g}" for known in self.temperatures))
        if not self.count:
            raise InputError("no teacher logits yet", "at least one sample", "Call update first.")
        return t


def target_gradient(teacher_logits: Array, temperature: float) -> float:
    """g(T) = T · mean‖softmax(z/T) − 1/C‖₂ of logits z `[N, C]`, in [0, T].

    The norm of ∂/∂logits of T²·KL(teacher_T ‖ student_T) for a student with equal logits, mean over samples: about 1
    for sharp targets at T = 1, and 0 for a teacher that says nothing. Relations: for T → ∞ it tends to the mean norm
    of the centred logits divided by C. `TargetGradient` is the same over batches. Errors as there.
    """
    return TargetGradient([temperature]).update(teacher_logits).value(temperature)


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

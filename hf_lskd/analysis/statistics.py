"""Per-class count, centroid and spread of embeddings, in one pass, mergeable over batches and processes."""

import operator
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hf_lskd.analysis._inputs import SLAB, Array, as_cpu, as_labels, as_matrix, require_finite
from hf_lskd.errors import InputError


class ClassStatistics:
    """Sufficient statistics of `[N, D]` features by class: how many, where, how spread.

    Accumulates in float64 on the CPU; memory is O(C·D) whatever N is. The state is (count, mean, within) and is
    combined by Chan, Golub & LeVeque's update (1979), so nothing cancels when all features share a large offset.
    The result does not depend on how samples are cut into batches or processes, nor on the order of merging, up to
    rounding (relative difference below 1e-12 for features of a common size; merging with an empty one is exact).

    Raises InputError when `num_classes` or `dim` is not a positive integer.
    """

    def __init__(self, num_classes: int, dim: int) -> None:
        self.num_classes = _positive(num_classes, "num_classes")
        self.dim = _positive(dim, "dim")
        self._count = torch.zeros(self.num_classes, dtype=torch.int64)
        self._mean = torch.zeros(self.num_classes, self.dim, dtype=torch.float64)  # 0, not NaN, for empty classes
        self._within = torch.zeros(self.num_classes, dtype=torch.float64)

    def __repr__(self) -> str:
        filled = int((self._count > 0).sum())
        return (
            f"ClassStatistics(num_classes={self.num_classes}, dim={self.dim}): "
            f"{int(self._count.sum())} samples in {filled} classes"
        )

    @property
    def count(self) -> Tensor:
        """Samples a class, int64 `[C]` (a copy)."""
        return self._count.clone()

    @property
    def mean(self) -> Tensor:
        """Centroids, float64 `[C, D]` (a copy); a row of NaN for a class without samples."""
        return self._mean.masked_fill((self._count == 0)[:, None], torch.nan)

    @property
    def within(self) -> Tensor:
        """Mean squared distance to the class's own centroid, float64 `[C]`; NaN for a class without samples."""
        return self._within.masked_fill(self._count == 0, torch.nan)

    def update(self, features: Array, labels: Array) -> "ClassStatistics":
        """Add samples: features `[N, D]` of any real dtype and device, labels `[N]`. Returns itself.

        Raises InputError for a wrong shape, labels outside 0 … C − 1 (-100 too) and features that are not finite;
        nothing is added then.
        """
        features = as_matrix(features, "features", columns=self.dim)
        labels = as_labels(labels, len(features), self.num_classes)
        require_finite(features, "features", "A model that diverged has no embeddings to compare.")
        if len(features):
            rows = max(1, SLAB // self.dim)
            for some, their_labels in zip(features.split(rows), labels.split(rows), strict=True):
                self._add(some.double(), their_labels)
        return self

    def merge(self, other: "ClassStatistics") -> "ClassStatistics":
        """Add the samples that `other` has seen. Returns itself; `other` stays as it is.

        Raises InputError when `other` has another number of classes or dimensions.
        """
        if not isinstance(other, ClassStatistics):
            raise InputError(f"merge with a {type(other).__name__}", "ClassStatistics")
        if (other.num_classes, other.dim) != (self.num_classes, self.dim):
            raise InputError(
                f"merge with statistics of {other.num_classes} classes x {other.dim} dimensions",
                f"{self.num_classes} classes x {self.dim} dimensions",
                "Only statistics of the same model and data can be merged.",
            )
        for classes in self._slabs():
            self._absorb(classes, other._count[classes], other._mean[classes], other._within[classes])
        return self

    def all_reduced(self, sum_over_processes: Callable[[Tensor], Tensor]) -> "ClassStatistics":
        """The statistics of all processes together, the same on each; no features or per-sample values are sent.

        `sum_over_processes` takes a float64 CPU tensor and returns its sum over the processes, on any device
        (`lambda t: accelerator.reduce(t.to(accelerator.device), "sum")`). It is called equally often on each.
        Centroids are summed first and spreads taken about the common centroid, so nothing cancels.
        """
        count = sum_over_processes(self._count.double()).to("cpu", torch.float64)
        share = self._count / count.clamp(min=1)
        together = ClassStatistics(self.num_classes, self.dim)
        together._count = count.round().long()
        for classes in self._slabs():
            mean = sum_over_processes(self._mean[classes] * share[classes, None]).to("cpu", torch.float64)
            together._mean[classes] = mean
            apart = mean.sub_(self._mean[classes]).square_().sum(dim=1)
            spread = share[classes] * (self._within[classes] + apart)
            together._within[classes] = sum_over_processes(spread).to("cpu", torch.float64)
        return together

    @property
    def sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """(count `[C]`, sum `[C, D]`, sum of squared norms `[C]`) in float64: three tensors that simply add.

        Prefer `all_reduced`: sums of squares lose digits of `within` where centroids are far from the origin
        (about 1e-16 · ‖mean‖² / within, relative).
        """
        count = self._count.double()
        squares = torch.einsum("cd,cd->c", self._mean, self._mean) + self._within
        return count, self._mean * count[:, None], squares * count

    @classmethod
    def from_sums(cls, count: Array, sum: Array, sum_sq: Array) -> "ClassStatistics":
        """The inverse of `sums`. Raises InputError for shapes that do not belong together."""
        total = as_matrix(sum, "sum").double()
        n, squares = as_cpu(count).double(), as_cpu(sum_sq).double()
        if not n.shape == squares.shape == total.shape[:1]:
            raise InputError(
                f"count {list(n.shape)}, sum {list(total.shape)}, sum_sq {list(squares.shape)}", "[C], [C, D], [C]"
            )
        mean = total / n.clamp(min=1)[:, None]
        within = squares / n.clamp(min=1) - torch.einsum("cd,cd->c", mean, mean)
        return cls._from_state(n.round().long(), mean, within.clamp(min=0))

    def to_tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """`{count, mean, within}` as in the properties, ready for safetensors; `from_tensors` restores them bit by bit."""
        return {f"{prefix}count": self.count, f"{prefix}mean": self.mean, f"{prefix}within": self.within}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], prefix: str = "") -> "ClassStatistics":
        """The inverse of `to_tensors`. Raises InputError for missing tensors, wrong shapes and damaged numbers."""
        missing = [prefix + key for key in ("count", "mean", "within") if prefix + key not in tensors]
        if missing:
            raise InputError(
                f"class statistics without {', '.join(missing)}",
                f"tensors {prefix}count, {prefix}mean and {prefix}within",
                f"Found: {', '.join(sorted(tensors)) or 'nothing'}.",
            )
        count, mean, within = (as_cpu(tensors[prefix + key]) for key in ("count", "mean", "within"))
        if mean.ndim != 2 or not count.shape == within.shape == mean.shape[:1]:
            shapes = f"count {list(count.shape)}, mean {list(mean.shape)}, within {list(within.shape)}"
            raise InputError(f"class statistics of shapes {shapes}", "[C], [C, D], [C]")
        return cls._from_state(count.long(), mean.double(), within.double())

    @classmethod
    def _from_state(cls, count: Tensor, mean: Tensor, within: Tensor) -> "ClassStatistics":
        statistics = cls(*mean.shape)
        empty = count == 0
        if bool((count < 0).any()) or bool((within[~empty] < 0).any()):
            raise InputError("class statistics with negative counts or spreads", "numbers of at least 0")
        statistics._count = count.clone()
        statistics._mean = mean.masked_fill(empty[:, None], 0.0)
        statistics._within = within.masked_fill(empty, 0.0)
        require_finite(statistics._mean, "centroids of classes that have samples")
        require_finite(statistics._within, "spreads of classes that have samples")
        return statistics

    def _slabs(self) -> list[Tensor]:
        """All classes, in pieces whose centroids fit into a few MB."""
        return list(torch.arange(self.num_classes).split(max(1, SLAB // self.dim)))

    def _add(self, features: Tensor, labels: Tensor) -> None:
        """Reduce one float64 slab to statistics of the classes in it, then absorb these."""
        classes, row, count = labels.unique(return_inverse=True, return_counts=True)
        mean = torch.zeros(len(classes), self.dim, dtype=torch.float64).index_add_(0, row, features)
        mean /= count[:, None]
        squares = mean[row].sub_(features).square_().sum(dim=1)
        within = torch.zeros(len(classes), dtype=torch.float64).index_add_(0, row, squares)
        self._absorb(classes, count, mean, within / count)

    def _absorb(self, classes: Tensor, count: Tensor, mean: Tensor, within: Tensor) -> None:
        """Combine with the statistics of more samples of `classes` (no class twice)."""
        total = self._count[classes] + count
        share = count.double() / total.clamp(min=1)  # of the new samples; 0 leaves a class as it is, 1 replaces it
        delta = mean - self._mean[classes]
        between = share * (1 - share) * torch.einsum("cd,cd->c", delta, delta)
        self._within[classes] = (1 - share) * self._within[classes] + share * within + between
        self._mean[classes] += delta.mul_(share[:, None])
        self._count[classes] = total


def _positive(value: int, name: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise InputError(f"{name} = {value!r}", "a positive integer")
    return number

"""What the scores of this room accept, checked in one place."""

import operator
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hf_lskd.errors import InputError

Array = Tensor | np.ndarray

# Work on large inputs goes in pieces of about this many numbers (2 MB in float64), so that temporaries stay small
# whatever the size of the input is.
SLAB = 2**18


def as_cpu(values: Array | Sequence) -> Tensor:
    """The values as a detached tensor in main memory; without a copy where that is possible.

    Raises InputError for anything but numbers.
    """
    if isinstance(values, Tensor):
        return values.detach().to("cpu")
    try:
        # By way of numpy, which reads lists in double precision; torch would round them to float32, and it warns of
        # arrays that are read-only.
        return torch.from_numpy(np.require(np.asarray(values), requirements="W"))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"values that are no array of numbers ({error})", "tensors, arrays or lists of numbers"
        ) from None


def as_matrix(values: Array, name: str, columns: int | None = None) -> Tensor:
    """`[N, D]` real numbers, in their own dtype.

    Raises InputError for another number of dimensions or columns, and for numbers that are not real.
    """
    matrix = as_cpu(values)
    expected = f"[N, {'D' if columns is None else columns}]"
    if matrix.ndim != 2 or (columns is not None and matrix.shape[1] != columns):
        raise InputError(f"{name} of shape {list(matrix.shape)}", f"{expected}")
    if matrix.is_complex() or matrix.dtype == torch.bool:
        raise InputError(f"{name} of type {matrix.dtype}", "real numbers")
    return matrix


def as_labels(values: Array | Sequence[int], num_items: int, num_classes: int | None, name: str = "labels") -> Tensor:
    """`[N]` class indices as int64.

    Raises InputError for another length, for numbers that are not integers and for classes that do not exist.
    """
    labels = as_cpu(values)
    if labels.shape != (num_items,):
        raise InputError(f"{name} of shape {list(labels.shape)}", f"[{num_items}], one class index a sample")
    if num_items == 0:
        return labels.long()
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"{name} of type {labels.dtype}", "integers", "Class probabilities have no one class.")
    labels = labels.long()
    if num_classes is not None and (labels.min() < 0 or labels.max() >= num_classes):
        wrong = labels[(labels < 0) | (labels >= num_classes)].unique().tolist()
        shown = ", ".join(map(str, wrong[:5])) + (", …" if len(wrong) > 5 else "")
        raise InputError(
            f"{name} out of range: {shown}",
            f"0 to {num_classes - 1}",
            "Leave ignored samples out, and check that the data and the model have the same classes.",
        )
    return labels


def as_classes(values: Sequence[int] | Array, num_classes: int, name: str) -> list[int]:
    """Distinct class indices as plain ints. Raises InputError for repeated ones and for classes that do not exist."""
    try:
        indices = [operator.index(v) for v in (values.tolist() if isinstance(values, Tensor | np.ndarray) else values)]
    except TypeError:
        raise InputError(f"{name} = {values!r}", "class indices (integers)") from None
    wrong = [i for i in indices if not 0 <= i < num_classes]
    if wrong:
        raise InputError(f"{name}: no class {wrong[0]}", f"0 to {num_classes - 1}")
    repeated = [index for index, times in Counter(indices).items() if times > 1]
    if repeated:
        raise InputError(f"{name}: class {repeated[0]} given twice", "each class once")
    return indices


def require_finite(values: Tensor, name: str, hint: str = "") -> None:
    """Raise InputError if a value is NaN or infinite; looks at the rows piece by piece."""
    rows = max(1, SLAB // max(1, values[:1].numel()))
    if not all(bool(torch.isfinite(part).all()) for part in values.split(rows)):
        raise InputError(f"{name} with NaN or infinite values", "finite numbers", hint)


def show_class(index: int, names: Sequence[str] | None) -> str:
    """How messages name a class: its index, and its name where names are known."""
    return f"class {index}" if names is None else f"class {index} ({names[index]})"


def require_samples(
    centroids: Tensor, classes: Sequence[int], where: str, names: Sequence[str] | None = None, why: str = ""
) -> None:
    """Raise InputError naming the first of `classes` whose row of `centroids` [C, D] is not finite."""
    finite = torch.isfinite(centroids).all(dim=1).tolist()
    for index in classes:
        if not finite[index]:
            no_samples = bool(centroids[index].isnan().all())
            problem = "has no samples (its centroid is NaN)" if no_samples else "has a centroid that is not finite"
            raise InputError(
                f"{show_class(index, names)} {problem} in {where}",
                "classes with at least one sample in every set of centroids that is compared",
                f"{why or 'Leave the class out of the targets and their similar and dissimilar sets'}, or add samples.",
            )


def distances_from(centroids: Tensor, target: int, others: Sequence[int]) -> Tensor:
    """Euclidean distances `[len(others)]` from one row of `centroids` to others.

    The plain difference, not the faster ‖a‖² + ‖b‖² − 2ab, which cancels for classes that lie close together.
    """
    return torch.linalg.vector_norm(centroids[list(others)] - centroids[target], dim=1)

"""The penultimate-layer projection of three classes (Müller, Kornblith & Hinton, NeurIPS 2019).

Features with a 1 appended are projected onto the span of three rows of the classifier's weight with their biases
appended (3-D), then onto a plane (PCA). One basis a model; one PCA for all panels that are to be compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_lskd.analysis._inputs import Array, as_classes, as_cpu, as_labels, as_matrix, require_finite
from hf_lskd.errors import InputError


@dataclass(frozen=True, eq=False)
class PlanePCA:
    """An affine map from 3-D coordinates to a plane: mean `[3]`, orthonormal axes `[3, 2]`.

    `explained` `[2]` is the share of the variance along each axis, in 0 … 1, larger first.
    """

    mean: Tensor
    axes: Tensor
    explained: Tensor

    def transform(self, coordinates: Tensor) -> Tensor:
        """Coordinates `[n, 3]` in the plane, `[n, 2]`."""
        return (coordinates - self.mean) @ self.axes


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Samples of three classes in one model's basis: points `[n, 3]`, labels `[n]` (0, 1, 2), centroids `[3, 3]`."""

    points: Tensor
    labels: Tensor
    centroids: Tensor


@dataclass(frozen=True, eq=False)
class Projection:
    """What a panel shows: points `[n, 2]`, labels `[n]`, centroids `[3, 2]`, and the maps that made it.

    A label is the position in `classes`: 0 target, 1 similar, 2 dissimilar. `basis` is `[D + 1, 3]`.
    """

    points: Tensor
    labels: Tensor
    centroids: Tensor
    pca: PlanePCA
    basis: Tensor


def penultimate_basis(weight: Array, bias: Array | None, classes: Sequence[int]) -> Tensor:
    """Orthonormal basis `[D + 1, 3]` of the rows of `classes`: weight `[C, D]` with bias `[C]` appended.

    The rows of weight and bias are taken together, so no class can get another's bias. QR with a positive diagonal:
    the first axis is the target's own row. A classifier without a bias (None) counts as one with zeros.

    Raises InputError for shapes that do not belong together, for anything but three different classes, and for rows
    that are linearly dependent.
    """
    rows = as_matrix(weight, "weight").double()
    num_classes = len(rows)
    column = torch.zeros(num_classes, dtype=torch.float64) if bias is None else as_cpu(bias).double()
    if column.shape != (num_classes,):
        raise InputError(f"bias of shape {list(column.shape)}", f"[{num_classes}], one a row of the weight")
    chosen = _three_classes(classes, num_classes)
    if rows.shape[1] + 1 < 3:
        raise InputError(f"weight with {rows.shape[1]} columns", "at least 2: the basis is three-dimensional")
    spanned = torch.cat([rows, column[:, None]], dim=1)[chosen]  # one selection for both
    require_finite(spanned, "weight and bias of the classes")
    q, r = torch.linalg.qr(spanned.T)
    diagonal = r.diagonal()
    if bool((diagonal.abs() <= 1e-10 * torch.linalg.vector_norm(spanned, dim=1)).any()):
        raise InputError(
            f"classifier rows of classes {', '.join(map(str, chosen))} that are linearly dependent",
            "three independent rows",
            "Two of the classes share their weights: choose others, or check that the head was trained.",
        )
    return q * diagonal.sign()


def penultimate_coordinates(features: Array, labels: Array, classes: Sequence[int], basis: Tensor) -> Coordinates:
    """The samples of `classes` among features `[N, D]`, labels `[N]`, in a `basis` `[D + 1, 3]`.

    Labels of other classes are left out. A centroid is the mean of its class's samples here.

    Raises InputError for shapes that do not belong together and for a class without samples.
    """
    values = as_matrix(features, "features", columns=len(basis) - 1)
    indices = as_labels(labels, len(values), None)
    chosen = _three_classes(classes, None)
    which = torch.full((len(values),), -1)
    for position, index in enumerate(chosen):
        which[indices == index] = position
        if not bool((indices == index).any()):
            raise InputError(f"class {index} has no samples to project", "at least one sample of each of the three")
    kept = which >= 0
    selected, which = values[kept].double(), which[kept]
    require_finite(selected, "features", "A model that diverged has no embeddings to show.")
    points = torch.cat([selected, torch.ones(len(selected), 1, dtype=torch.float64)], dim=1) @ basis
    centroids = torch.stack([points[which == position].mean(dim=0) for position in range(3)])
    return Coordinates(points, which, centroids)


def fit_plane(coordinates: Sequence[Tensor]) -> PlanePCA:
    """The plane of largest variance of all given coordinates `[n, 3]` together.

    Fit one for all panels of a row of figures: on their training points and centroids; then transform the validation
    points with it. The largest component of each axis is positive, so the picture does not flip between runs.

    Raises InputError when nothing is given, a shape differs, and when all points are one.
    """
    if not coordinates or any(c.ndim != 2 or c.shape[1] != 3 for c in coordinates):
        raise InputError(f"coordinates of shapes {[list(c.shape) for c in coordinates]}", "at least one [n, 3]")
    points = torch.cat([as_cpu(c).double() for c in coordinates])
    require_finite(points, "coordinates")
    mean = points.mean(dim=0)
    variances, directions = torch.linalg.eigh((points - mean).T @ (points - mean))
    if not float(variances[-1]) > 0:
        raise InputError("points that all coincide", "points with some spread", "The model has collapsed.")
    axes = directions.flip(1)[:, :2]
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    return PlanePCA(mean, axes, variances.flip(0)[:2].clamp(min=0) / variances.clamp(min=0).sum())


def project_penultimate(
    features: Array,
    labels: Array,
    classes: Sequence[int],
    weight: Array,
    bias: Array | None,
    *,
    pca: PlanePCA | None = None,
) -> Projection:
    """Samples of three classes (target, similar, dissimilar) in the plane.

    features `[N, D]` are the inputs of the classifier with weight `[C, D]` and bias `[C]`, labels `[N]`. Without
    `pca` a plane is fitted to these points and their centroids; give one to make panels comparable (`fit_plane`).

    Raises InputError as `penultimate_basis`, `penultimate_coordinates` and `fit_plane` do.
    """
    basis = penultimate_basis(weight, bias, classes)
    in_basis = penultimate_coordinates(features, labels, classes, basis)
    plane = fit_plane([in_basis.points, in_basis.centroids]) if pca is None else pca
    return Projection(
        plane.transform(in_basis.points), in_basis.labels, plane.transform(in_basis.centroids), plane, basis
    )


def _three_classes(classes: Sequence[int], num_classes: int | None) -> list[int]:
    chosen = as_classes(classes, num_classes if num_classes is not None else 2**62, "classes")
    if len(chosen) != 3:
        raise InputError(f"{len(chosen)} classes", "three: target, similar, dissimilar")
    return chosen

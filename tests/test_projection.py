"""The three-class projection of the penultimate layer."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_lskd.analysis import Projection, fit_plane, penultimate_basis, penultimate_coordinates, project_penultimate
from hf_lskd.errors import InputError
from tests.reference import slow_basis

CLASSES = (4, 1, 2)  # not ascending: who sorts them somewhere is found out


def model(seed: int = 0, classes: int = 6, dim: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(classes, dim, generator=generator, dtype=torch.float64),
        torch.randn(classes, generator=generator, dtype=torch.float64),
    )


def embeddings(seed: int = 1, n: int = 90, classes: int = 6, dim: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = 4 * torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    return centres[labels] + torch.randn(n, dim, generator=generator, dtype=torch.float64), labels


def project(**changes) -> Projection:  # type: ignore[no-untyped-def]
    (weight, bias), (features, labels) = model(), embeddings()
    given: dict[str, Any] = {
        "features": features,
        "labels": labels,
        "classes": CLASSES,
        "weight": weight,
        "bias": bias,
    } | changes
    return project_penultimate(**given)


def test_basis_equals_gram_schmidt_by_loops() -> None:
    weight, bias = model()
    basis = penultimate_basis(weight, bias, CLASSES)
    expected = slow_basis(weight.tolist(), bias.tolist(), CLASSES)
    torch.testing.assert_close(basis, torch.tensor(expected, dtype=torch.float64).T, rtol=1e-10, atol=1e-12)


def test_basis_by_hand() -> None:
    # Rows with bias appended: (3, 0, 4), (0, 2, 0), (4, 0, 7). First: (.6, 0, .8). Second is orthogonal already.
    # Third: along the first 4 · .6 + 7 · .8 = 8, rest (4 − 4.8, 0, 7 − 6.4) = (−.8, 0, .6), of length 1.
    weight, bias = torch.tensor([[3.0, 0.0], [0.0, 2.0], [4.0, 0.0]]), torch.tensor([4.0, 0.0, 7.0])
    expected = torch.tensor([[0.6, 0.0, -0.8], [0.0, 1.0, 0.0], [0.8, 0.0, 0.6]], dtype=torch.float64)
    torch.testing.assert_close(penultimate_basis(weight, bias, [0, 1, 2]), expected, rtol=1e-12, atol=1e-12)


def test_basis_is_orthonormal_and_spans_the_rows() -> None:
    weight, bias = model()
    basis = penultimate_basis(weight, bias, CLASSES)
    rows = torch.cat([weight, bias[:, None]], dim=1)[list(CLASSES)]
    torch.testing.assert_close(basis.T @ basis, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(rows @ basis @ basis.T, rows, rtol=1e-10, atol=1e-12)


def test_trap_22_weight_and_bias_come_from_the_same_classes() -> None:
    (weight, bias), here = model(), project()
    others = [i for i in range(6) if i not in CLASSES]
    changed = bias.clone()
    changed[others] += 100.0  # the biases of other classes play no part
    assert torch.equal(project(bias=changed).basis, here.basis)
    for own in CLASSES:  # and each of the three does
        changed = bias.clone()
        changed[own] += 1.0
        assert not torch.allclose(project(bias=changed).basis, here.basis, atol=1e-3)
    # Another numbering of the same classes is the same picture.
    new_name = torch.tensor([5, 3, 0, 4, 2, 1])
    old_name = torch.argsort(new_name)
    labels = embeddings()[1]
    renamed = project(
        weight=weight[old_name],
        bias=bias[old_name],
        labels=new_name[labels],
        classes=[int(new_name[c]) for c in CLASSES],
    )
    assert torch.equal(renamed.basis, here.basis)
    assert torch.equal(renamed.points, here.points)
    assert torch.equal(renamed.labels, here.labels)


def test_trap_22_one_plane_serves_all_panels_of_a_row() -> None:
    models, samples = [model(seed) for seed in (0, 10)], [embeddings(seed) for seed in (1, 11)]
    bases = [penultimate_basis(*m, CLASSES) for m in models]  # one basis a model
    seen = [penultimate_coordinates(*s, CLASSES, basis) for s, basis in zip(samples, bases)]
    plane = fit_plane([part for c in seen for part in (c.points, c.centroids)])  # one plane for both
    panels = [project_penultimate(*s, CLASSES, *m, pca=plane) for s, m in zip(samples, models)]
    for panel, basis, coordinates in zip(panels, bases, seen):
        assert panel.pca is plane
        assert torch.equal(panel.basis, basis)
        torch.testing.assert_close(panel.points, (coordinates.points - plane.mean) @ plane.axes)
    # Planes fitted panel by panel would not be one: they differ from it and from each other.
    apart = [project_penultimate(*s, CLASSES, *m).pca for s, m in zip(samples, models)]
    for one, other in ((apart[0], plane), (apart[1], plane), (apart[0], apart[1])):
        assert not torch.allclose(one.axes, other.axes, atol=1e-2)


def test_the_plane_is_fitted_to_points_and_centroids_together() -> None:
    from sklearn.decomposition import PCA

    features, labels = embeddings()
    here = project()
    mine = torch.isin(labels, torch.tensor(CLASSES))
    with_one = torch.cat([features[mine], torch.ones(int(mine.sum()), 1, dtype=torch.float64)], dim=1)
    in_basis = (with_one @ here.basis).numpy()
    centroids = np.stack([in_basis[(labels[mine] == c).numpy()].mean(axis=0) for c in CLASSES])
    pca = PCA(2).fit(np.concatenate([in_basis, centroids]))
    # the same plane up to the sign of each axis, which scikit-learn chooses in its own way
    expected = pca.transform(in_basis)
    sign = np.sign((expected * here.points.numpy()).sum(axis=0))
    np.testing.assert_allclose(here.points.numpy(), expected * sign, atol=1e-9)
    np.testing.assert_allclose(here.centroids.numpy(), pca.transform(centroids) * sign, atol=1e-9)
    np.testing.assert_allclose(here.pca.explained.numpy(), pca.explained_variance_ratio_, rtol=1e-9)


def test_labels_are_positions_and_other_classes_are_left_out() -> None:
    labels = embeddings()[1]
    here = project()
    assert here.points.shape == (45, 2)
    assert here.labels.tolist() == [CLASSES.index(c) for c in labels.tolist() if c in CLASSES]


def test_stars_are_the_means_of_their_points() -> None:
    here = project()
    for position in range(3):
        torch.testing.assert_close(here.centroids[position], here.points[here.labels == position].mean(dim=0))


def test_training_and_validation_share_the_plane() -> None:
    train = project()
    features, labels = embeddings()
    again = project(features=features[30:], labels=labels[30:], pca=train.pca)
    # what was shown in the training panel lies at the same place in the other
    kept = torch.isin(labels[:30], torch.tensor(CLASSES)).sum()
    torch.testing.assert_close(again.points, train.points[kept:], rtol=1e-12, atol=1e-12)


def test_the_order_of_the_three_classes_turns_but_does_not_change_the_picture() -> None:
    one, other = project(), project(classes=(1, 2, 4))
    torch.testing.assert_close(torch.cdist(one.points, one.points), torch.cdist(other.points, other.points))


def test_a_common_direction_outside_the_span_is_not_seen() -> None:
    weight, bias = model()
    rows = torch.cat([weight, bias[:, None]], dim=1)[list(CLASSES)]
    # orthogonal to the three rows, and with 0 in the place of the appended 1
    blocked = torch.cat([rows, torch.eye(10, dtype=torch.float64)[9:]])
    direction = torch.linalg.svd(blocked).Vh[-1]
    features, _ = embeddings()
    torch.testing.assert_close(project(features=features + 50 * direction[:9]).points, project().points)


def test_pictures_do_not_flip() -> None:
    axes = project().pca.axes
    assert bool((axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)) > 0).all())
    assert torch.equal(axes, project().pca.axes)
    torch.testing.assert_close(axes.T @ axes, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_classifier_without_bias_counts_as_one_with_zeros() -> None:
    assert torch.equal(project(bias=None).points, project(bias=torch.zeros(6)).points)


def test_takes_numpy_and_low_precision() -> None:
    features, labels = embeddings()
    close = project(features=features.float().numpy(), labels=labels.numpy())
    torch.testing.assert_close(close.points, project().points, rtol=1e-4, atol=1e-4)
    assert close.points.dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": (0, 1)}, "2 classes.*target, similar, dissimilar"),
        ({"classes": (0, 1, 1)}, "class 1 given twice"),
        ({"classes": (0, 1, 6)}, r"no class 6.*0 to 5"),
        ({"bias": torch.zeros(5)}, r"bias of shape \[5\].*\[6\]"),
        ({"weight": torch.zeros(6)}, r"weight of shape \[6\]"),
        ({"weight": torch.ones(6, 9), "bias": torch.zeros(6)}, "linearly dependent"),
        ({"weight": torch.zeros(6, 9)}, "linearly dependent"),
        ({"weight": torch.full((6, 9), math.nan)}, "NaN"),
        ({"features": torch.ones(90, 8)}, r"\[90, 8\].*\[N, 9\]"),
        ({"features": torch.full((90, 9), math.inf)}, "infinite"),
        ({"labels": torch.zeros(89, dtype=torch.long)}, r"labels of shape \[89\]"),
        ({"labels": torch.zeros(90, dtype=torch.long)}, "class 4 has no samples"),
    ],
)
def test_bad_input_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        project(**changes)


def test_planes_need_points() -> None:
    with pytest.raises(InputError, match=r"\[n, 3\]"):
        fit_plane([])
    with pytest.raises(InputError, match=r"\[5, 2\]"):
        fit_plane([torch.ones(5, 2)])
    with pytest.raises(InputError, match="coincide"):
        fit_plane([torch.ones(5, 3)])

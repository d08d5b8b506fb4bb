"""How tight a model's classes are and how far it holds similar ones apart: what label smoothing does to a teacher."""

from collections.abc import Mapping, Sequence

import torch

from hf_lskd.analysis._inputs import Array, as_classes, as_matrix, distances_from, require_samples
from hf_lskd.analysis.semantics import SimilarSets
from hf_lskd.analysis.statistics import ClassStatistics
from hf_lskd.errors import InputError


def tightness(statistics: ClassStatistics) -> float:
    """√(mean over classes of `within`) / mean distance between two class centroids; smaller is tighter.

    Scale-free, so models can be compared. Every class weighs the same, classes without samples are left out
    (Müller et al., NeurIPS 2019, observe that label smoothing tightens clusters).

    Raises InputError with fewer than two classes that have samples, and when all centroids coincide.
    """
    filled = statistics.count > 0
    if int(filled.sum()) < 2:
        raise InputError(f"{int(filled.sum())} classes with samples", "at least 2")
    apart = float(torch.pdist(statistics.mean[filled]).mean())
    if not apart > 0:
        raise InputError("all class centroids coincide", "centroids at a distance above 0", "The model has collapsed.")
    return float(statistics.within[filled].mean().sqrt()) / apart


def separation(centroids: Array, sets: Mapping[int, SimilarSets], *, class_names: Sequence[str] | None = None) -> float:
    """Mean over targets of (mean distance to S1) / (mean distance to S1 ∪ S2), centroids `[C, D]`.

    1 where similar classes lie as far from the target as dissimilar ones; smaller the nearer they lie (Shen et al.,
    ICLR 2021, observe that label smoothing moves similar classes apart). η is the change of this picture with T.

    Raises InputError without targets, for a class without samples, and when a target coincides with all of S1 ∪ S2.
    """
    means = as_matrix(centroids, "centroids").double()
    if not sets:
        raise InputError("no target classes", "at least one target with its similar and dissimilar classes")
    ratios = []
    for target, one in sets.items():
        touched = as_classes([target, *one.similar, *one.dissimilar], len(means), f"sets of target class {target}")
        require_samples(means, touched, "centroids", class_names)
        d = distances_from(means, target, touched[1:])
        if not one.similar or not float(d.mean()) > 0:
            raise InputError(f"target class {target} has no similar classes, or all at distance 0", "distances above 0")
        ratios.append(float(d[: len(one.similar)].mean() / d.mean()))
    return sum(ratios) / len(ratios)


def class_geometry(statistics: ClassStatistics, sets: Mapping[int, SimilarSets] | None = None) -> dict[str, float]:
    """`{"tightness": …}`, and with sets of similar classes `"separation"` too. Raises what these two raise."""
    geometry = {"tightness": tightness(statistics)}
    if sets is not None:
        geometry["separation"] = separation(statistics.mean, sets)
    return geometry

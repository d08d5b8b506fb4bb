"""From embeddings and logits to numbers: class statistics, the diffusion index η, projections, calibration, g(T).

Sufficient statistics first, scores second: each score is a pure function of sums that merge over batches and processes.
"""

from hf_lskd.analysis.calibration import (
    ReliabilityBins,
    expected_calibration_error,
    per_class_accuracy,
    reliability_bins,
)
from hf_lskd.analysis.diffusion import (
    REFERENCES,
    DiffusionIndex,
    MeanInterval,
    TargetDiffusion,
    bootstrap_interval,
    diffusion_index,
    eta_table,
    mean_and_t_interval,
)
from hf_lskd.analysis.gradient import TargetGradient, equalised_loss_scale, target_entropy, target_gradient
from hf_lskd.analysis.projection import (
    Coordinates,
    PlanePCA,
    Projection,
    fit_plane,
    penultimate_basis,
    penultimate_coordinates,
    project_penultimate,
)
from hf_lskd.analysis.semantics import (
    ChosenSets,
    SimilarSets,
    sets_from_centroids,
    sets_from_confusion,
    sets_from_groups,
    sets_signature,
)
from hf_lskd.analysis.separation import class_geometry, separation, tightness
from hf_lskd.analysis.statistics import ClassStatistics
from hf_lskd.analysis.wordnet import Nouns, read_nouns, sets_from_wordnet

__all__ = [
    "REFERENCES",
    "ChosenSets",
    "ClassStatistics",
    "Coordinates",
    "DiffusionIndex",
    "MeanInterval",
    "Nouns",
    "PlanePCA",
    "Projection",
    "ReliabilityBins",
    "SimilarSets",
    "TargetDiffusion",
    "TargetGradient",
    "bootstrap_interval",
    "class_geometry",
    "diffusion_index",
    "equalised_loss_scale",
    "eta_table",
    "expected_calibration_error",
    "fit_plane",
    "mean_and_t_interval",
    "penultimate_basis",
    "penultimate_coordinates",
    "per_class_accuracy",
    "project_penultimate",
    "read_nouns",
    "reliability_bins",
    "separation",
    "sets_from_centroids",
    "sets_from_confusion",
    "sets_from_groups",
    "sets_from_wordnet",
    "sets_signature",
    "target_entropy",
    "target_gradient",
    "tightness",
]

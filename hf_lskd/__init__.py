"""Should I smooth my teacher, and at which temperature do I distil? Label smoothing and distillation for Hugging Face Trainers.

The public names are imported when they are first used, so that importing the package costs nothing.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "DistillationArguments": "arguments",
    "DistillationTrainer": "trainer",
    "Seq2SeqDistillationArguments": "arguments",
    "Seq2SeqDistillationTrainer": "trainer",
    "LossTerms": "losses",
    "distillation_kl": "losses",
    "distillation_loss": "losses",
    "label_smoothed_cross_entropy": "losses",
    "ClassStatistics": "analysis.statistics",
    "DiffusionIndex": "analysis.diffusion",
    "diffusion_index": "analysis.diffusion",
    "target_gradient": "analysis.gradient",
    "project_penultimate": "analysis.projection",
    "InputError": "errors",
}

__all__ = [
    "ClassStatistics",
    "DiffusionIndex",
    "DistillationArguments",
    "DistillationTrainer",
    "InputError",
    "LossTerms",
    "Seq2SeqDistillationArguments",
    "Seq2SeqDistillationTrainer",
    "__version__",
    "diffusion_index",
    "distillation_kl",
    "distillation_loss",
    "label_smoothed_cross_entropy",
    "project_penultimate",
    "target_gradient",
]

if TYPE_CHECKING:
    from hf_lskd.analysis.diffusion import DiffusionIndex, diffusion_index
    from hf_lskd.analysis.gradient import target_gradient
    from hf_lskd.analysis.projection import project_penultimate
    from hf_lskd.analysis.statistics import ClassStatistics
    from hf_lskd.arguments import DistillationArguments, Seq2SeqDistillationArguments
    from hf_lskd.errors import InputError
    from hf_lskd.losses import LossTerms, distillation_kl, distillation_loss, label_smoothed_cross_entropy
    from hf_lskd.trainer import DistillationTrainer, Seq2SeqDistillationTrainer


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

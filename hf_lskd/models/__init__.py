"""From a name, a path or a bare timm module to a model that trains, saves and loads everywhere; and what its head reads."""

from hf_lskd.models.classifier import find_classifier, num_classes, reading_classifier
from hf_lskd.models.loading import check_readable, load_image_classifier, load_trained, pretrained_cfg
from hf_lskd.models.preparation import image_processor, normalization_of
from hf_lskd.models.timm_wrapper import as_transformers

__all__ = [
    "as_transformers",
    "check_readable",
    "find_classifier",
    "image_processor",
    "load_image_classifier",
    "load_trained",
    "normalization_of",
    "num_classes",
    "pretrained_cfg",
    "reading_classifier",
]

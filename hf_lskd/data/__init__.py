"""Where images come from, and what a data loader reads."""

from hf_lskd.data.dataset import EpochSampler, ImageDataset
from hf_lskd.data.images import ImageSet, ImageSource, load_images
from hf_lskd.data.transforms import (
    Normalization,
    evaluation_transform,
    pure_random,
    training_transform,
)

__all__ = [
    "EpochSampler",
    "ImageDataset",
    "ImageSet",
    "ImageSource",
    "Normalization",
    "evaluation_transform",
    "load_images",
    "pure_random",
    "training_transform",
]

"""scikit-learn's handwritten digits: 1,797 grey images of 8×8, ten classes, for smoke runs."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_lskd.data.images import ArrayImages, ImageSource, fingerprint_of, source_options, whole_number
from hf_lskd.errors import InputError

DEFAULTS: dict[str, Any] = {"validation": 0.2, "seed": 0}


def load_digits(data: Mapping[str, Any]) -> ImageSource:
    """The digits with a share `validation` of every class, drawn by `seed`, held out.

    scikit-learn's values 0 to 16 become 0 to 255. Raises InputError for a share outside (0, 1).
    """
    from sklearn import datasets

    options = source_options(data, DEFAULTS)
    share, seed = options["validation"], whole_number(options, "seed", 0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise InputError(f"data.validation: {share!r}", "the share of the examples to hold out, in (0, 1)")
    bunch = datasets.load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    held_out = _stratified(bunch.target, share, seed)
    train = ArrayImages(pixels[~held_out], bunch.target[~held_out])
    validation = ArrayImages(pixels[held_out], bunch.target[held_out])
    names = tuple(str(name) for name in bunch.target_names)
    return ImageSource(
        train=train,
        validation=validation,
        class_names=names,
        groups=None,
        fingerprint=fingerprint_of(["digits", train.digest(), validation.digest()]),
        description=f"digits: {len(train)} for training, {len(validation)} held out, 8×8 grey",
    )


def _stratified(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A mask that holds out the share of each class, rounded, at least one example and never all."""
    chance = np.random.Generator(np.random.PCG64(seed))
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held_out[chance.permutation(members)[:count]] = True
    return held_out

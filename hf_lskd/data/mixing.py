"""Mixup and CutMix: pairs of examples of one batch, labels as probabilities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_lskd.data.transforms import seed_of
from hf_lskd.errors import InputError, nearest


@dataclass(frozen=True)
class Mixing:
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) with Beta(a, a); with both, each batch tosses a fair coin."""

    mixup: float
    cutmix: float
    num_classes: int

    @classmethod
    def of(cls, mix: Mapping[str, Any] | None, num_classes: int) -> "Mixing | None":
        """From {mixup: a, cutmix: a}; None when both are 0 or absent. Raises InputError for other keys and values."""
        given = dict(mix or {})
        for key, value in given.items():
            if key not in ("mixup", "cutmix"):
                raise InputError(f"mix.{key}", "mixup, cutmix", nearest(str(key), ["mixup", "cutmix"]))
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise InputError(f"data.{key}: {value!r}", "a finite number, 0 (off) or more: the a of Beta(a, a)")
        mixup, cutmix = float(given.get("mixup", 0)), float(given.get("cutmix", 0))
        return cls(mixup, cutmix, num_classes) if mixup or cutmix else None

    def __call__(
        self, pixels: Tensor, labels: Tensor, data_seed: int, pairs: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """pixels [N, 3, H, W], labels [N] -> mixed pixels, probabilities float32 [N, num_classes].

        Partner, share and box are a pure function of (data_seed, `pairs` of epoch and index); N = 1 mixes with itself.
        """
        key = [part for pair in pairs for part in pair]
        chance = np.random.Generator(np.random.PCG64(seed_of("mixing", data_seed, *key)))
        partner = torch.from_numpy(chance.permutation(len(labels)))
        use_cutmix = self.cutmix > 0 and (self.mixup == 0 or chance.random() < 0.5)
        concentration = self.cutmix if use_cutmix else self.mixup
        share = float(chance.beta(concentration, concentration))
        if use_cutmix:
            pixels, share = _paste(pixels, partner, share, chance)
        else:
            pixels = pixels * share + pixels[partner] * (1 - share)
        one_hot = F.one_hot(labels, self.num_classes).float()
        return pixels, one_hot * share + one_hot[partner] * (1 - share)


def _paste(pixels: Tensor, partner: Tensor, share: float, chance: np.random.Generator) -> tuple[Tensor, float]:
    """The partner's pixels in a box of about (1 − share) of the area, and the share that was really kept."""
    height, width = pixels.shape[2:]
    cut = (1 - share) ** 0.5
    y, x = int(chance.integers(height)), int(chance.integers(width))
    half_y, half_x = int(height * cut) // 2, int(width * cut) // 2
    top, bottom = max(y - half_y, 0), min(y + half_y, height)
    left, right = max(x - half_x, 0), min(x + half_x, width)
    mixed = pixels.clone()
    mixed[:, :, top:bottom, left:right] = pixels[partner][:, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)

"""Target tokens as the classes of η and of the projection: which are frequent, where they stand, and their decoder states."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_lskd.data.translation import TranslationDataset
from hf_lskd.errors import InputError
from hf_lskd.recipe import EtaSpec
from hf_lskd.tasks.task import SPLITS

logger = logging.getLogger(__name__)


def frequent_tokens(
    rows: Mapping[str, TranslationDataset], least: int, vocabulary: int, special: Collection[int]
) -> list[int]:
    """The target tokens, of ids below `vocabulary`, that occur `least` times in each split, special ones left out."""
    counts = [
        np.bincount([token for _, target in rows[split].rows for token in target], minlength=vocabulary)
        for split in SPLITS
    ]
    often = np.flatnonzero(np.minimum(*counts) >= least).tolist()
    return [token for token in often if token not in special]


def enough(eta: EtaSpec, often: Sequence[int]) -> bool:
    """Whether these frequent tokens are enough for a target, its S1 and its S2."""
    return len(often) >= eta.min_similar + eta.dissimilar + 1


def check_frequent(eta: EtaSpec, often: Sequence[int], index: Callable[[str], int]) -> None:
    """Raise InputError for unknown and rare targets, and warn where too few tokens are frequent for η: it is then left out."""
    if eta.targets != "all":
        rare = [name for name in eta.targets if index(name) not in often]
        if rare:
            raise InputError(
                f"eta.targets: {rare[0]!r} is too rare", f"tokens that occur {eta.min_count} times in each split"
            )
    if not enough(eta, often):
        needed = eta.min_similar + eta.dissimilar + 1
        logger.warning(
            "η is left out: %d target tokens occur %d times in each split, and it takes %d (%d similar, %d dissimilar and "
            "the target). Lower eta.min_count or eta.dissimilar, or take more text.",
            *(len(often), eta.min_count, needed, eta.min_similar, eta.dissimilar),
        )


def rows_with(rows: TranslationDataset, classes: Sequence[int], most: int) -> list[int]:
    """The first rows that hold `most` occurrences of each of these target tokens, or all that there are, in order."""
    left, found = dict.fromkeys(classes, most), []
    for index, (_, target) in enumerate(rows.rows):
        here = {c: target.count(c) for c in classes if left[c] > 0}
        if any(here.values()):
            found.append(index)
            left.update({c: left[c] - count for c, count in here.items()})
    return found


def first_states(batches: Iterable[Any], classes: Sequence[int], most: int) -> tuple[Tensor, Tensor]:
    """Features `[N, D]` and labels `[N]` of the first `most` occurrences of each class in batches of the penultimate layer."""
    left = dict.fromkeys(classes, most)
    states, labels = [], []
    for batch in batches:
        for c in classes:
            at = torch.nonzero(batch.labels == c).flatten()[: left[c]]
            left[c] -= len(at)
            states.append(batch.features[at].cpu())
            labels.append(batch.labels[at].cpu())
    return torch.cat(states), torch.cat(labels)

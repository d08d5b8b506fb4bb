"""Parallel text as a torch data set of token ids."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from hf_lskd.data.pairs import Pairs
from hf_lskd.errors import InputError

logger = logging.getLogger(__name__)


class TranslationDataset(Dataset[dict[str, Any]]):
    """Rows {"input_ids", "labels", "example_id"}: lists of token ids that end with the tokenizer's own end, and the pair's index.

    With `drop_longer`, pairs of over `max_length` tokens on either side are left out, as training does; without, they are
    cut, so that each pair is judged. `lengths [N, 2]` are the tokens of both sides. Raises InputError when no pair is left.
    """

    def __init__(self, pairs: Pairs, tokenizer: Any, *, max_length: int, drop_longer: bool = False) -> None:
        sources = encoded(tokenizer, pairs.sources, None if drop_longer else max_length)
        targets = encoded(tokenizer, pairs.targets, None if drop_longer else max_length, as_target=True)
        self.indices = [
            i for i, (s, t) in enumerate(zip(sources, targets)) if not drop_longer or max(len(s), len(t)) <= max_length
        ]
        if not self.indices:
            raise InputError(f"{len(pairs)} pairs, none of at most {max_length} tokens", "a larger data.max_length")
        if len(self.indices) < len(pairs):
            left_out = len(pairs) - len(self.indices)
            logger.warning(
                "%d of %d training pairs are longer than data.max_length, %d tokens, and left out.",
                *(left_out, len(pairs), max_length),
            )
        self.rows = [(sources[i], targets[i]) for i in self.indices]
        self.lengths = np.array([[len(s), len(t)] for s, t in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, target = self.rows[index]
        return {"input_ids": source, "labels": target, "example_id": self.indices[index]}

    def by_length(self) -> "TranslationDataset":
        """The same rows, the longest first: batches without much padding, and the largest one at once."""
        other = object.__new__(TranslationDataset)
        order = np.lexsort((self.lengths[:, 0], self.lengths[:, 1]))[::-1].tolist()
        other.indices = [self.indices[i] for i in order]
        other.rows = [self.rows[i] for i in order]
        other.lengths = self.lengths[order]
        return other


def encoded(tokenizer: Any, texts: Sequence[str], max_length: int | None, as_target: bool = False) -> list[list[int]]:
    """Token ids of each text; over `max_length` they are cut before the end token."""
    given = {"text_target": list(texts)} if as_target else {"text": list(texts)}
    cut = {"truncation": max_length is not None, "max_length": max_length}
    return tokenizer(**given, **cut, verbose=False)["input_ids"]

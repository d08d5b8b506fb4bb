"""Batches of sentences: of about equal length and at most so many padded tokens, and how they become tensors."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from hf_lskd.errors import InputError
from hf_lskd.losses import IGNORE_INDEX


class TokenBatchSampler(Sampler[list[int]]):
    """Batches of at most `max_tokens` padded tokens (rows x the longest side of any), sorted by length, in random order.

    Every example once an epoch, the same number of batches in every epoch and on every process: where `multiple` does not
    divide it, batches are halved until it does. A pure function of (lengths, max_tokens, seed, epoch, multiple), so a
    resumed run sees the same batches.

    `lengths [N]` or `[N, 2]` (source, target) in tokens. Raises InputError when an example is longer than `max_tokens`,
    and when there are fewer examples than `multiple`, or no batch that could be halved for it.
    """

    def __init__(self, lengths: Any, max_tokens: int, *, seed: int = 0, multiple: int = 1) -> None:
        sides = np.asarray(lengths, dtype=np.int64)
        self.lengths = sides.reshape(len(sides), -1)
        self.max_tokens, self.seed, self.multiple = max_tokens, seed, multiple
        self.epoch = 0
        longest = self.lengths.max(axis=1) if len(sides) else np.zeros(0, np.int64)
        if max_tokens < 1 or (len(longest) and longest.max() > max_tokens):
            raise InputError(
                f"max_tokens = {max_tokens}, and example {int(longest.argmax()) if len(longest) else 0} has "
                f"{int(longest.max(initial=0))} tokens",
                "at least the longest pair",
                "Raise max_tokens, or lower data.max_length, which leaves longer pairs out.",
            )
        if len(longest) < multiple:
            raise InputError(f"{len(longest)} examples for {multiple} processes", "at least one a process")
        self._cuts = self._cut(longest[self._order(np.random.default_rng(0))])

    def set_epoch(self, epoch: int) -> None:
        """Draw the batches of this epoch, counted from 0, at the next iteration."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return len(self._cuts) - 1

    def __iter__(self) -> Iterator[list[int]]:
        epoch = self.epoch
        draw = np.random.default_rng((self.seed, epoch))
        order = self._order(draw)
        for batch in draw.permutation(len(self)):
            indices = order[self._cuts[batch] : self._cuts[batch + 1]].tolist()
            yield indices

    def _order(self, draw: Any) -> np.ndarray:
        """All examples by length, equal ones in random order: the lengths, and so the cuts, are the same in every epoch."""
        tie = draw.permutation(len(self.lengths))
        return np.lexsort((tie, *self.lengths.T, self.lengths.max(axis=1)))

    def _cut(self, longest: np.ndarray) -> list[int]:
        """Where batches begin, in the order of lengths; the last entry is the number of examples."""
        cuts = [0]
        for index, length in enumerate(longest):
            if (index + 1 - cuts[-1]) * max(int(length), 1) > self.max_tokens:
                cuts.append(index)
        cuts.append(len(longest))
        while (len(cuts) - 1) % self.multiple:
            sizes = np.diff(cuts)
            largest = int(sizes.argmax())
            if sizes[largest] < 2:
                raise InputError(
                    f"{len(sizes)} batches of one example each for {self.multiple} processes",
                    "batches that can be divided among the processes",
                    "Raise max_tokens, or use fewer processes.",
                )
            cuts.insert(largest + 1, cuts[largest] + int(sizes[largest]) // 2)
        return cuts


class Seq2SeqCollator:
    """Rows of `input_ids` and `labels` (lists of token ids) as one padded batch of tensors.

    `input_ids` and `attention_mask` `[B, S]`, `labels` `[B, L]` padded by −100, `example_id` `[B]` where rows have it. Makes no
    decoder inputs: the trainer shifts the labels, a clone of them, behind each model's own start token.
    Raises InputError when a label is the pad token: the loss would be taken on padding.
    """

    def __init__(self, pad_token_id: int, *, pad_to_multiple_of: int = 1) -> None:
        self.pad_token_id, self.multiple = pad_token_id, pad_to_multiple_of

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = {
            "input_ids": self._padded([row["input_ids"] for row in rows], self.pad_token_id),
            "attention_mask": self._padded([[1] * len(row["input_ids"]) for row in rows], 0),
        }
        if rows and "labels" in rows[0]:
            labels = self._padded([row["labels"] for row in rows], IGNORE_INDEX)
            if bool(labels.eq(self.pad_token_id).any()):
                raise InputError(
                    f"labels that hold the pad token {self.pad_token_id}",
                    f"labels without pad, {IGNORE_INDEX} where ignored",
                )
            batch["labels"] = labels
        if rows and "example_id" in rows[0]:
            batch["example_id"] = torch.tensor([int(row["example_id"]) for row in rows])
        return batch

    def _padded(self, rows: Sequence[Sequence[int]], value: int) -> Tensor:
        width = max((len(row) for row in rows), default=0)
        width = -(-width // self.multiple) * self.multiple
        out = torch.full((len(rows), width), value, dtype=torch.long)
        for line, row in zip(out, rows):
            line[: len(row)] = torch.as_tensor(row, dtype=torch.long)
        return out

"""Batches by tokens: every example once, within the limit, the same again by seed and epoch; and how rows become tensors."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from hf_lskd import InputError
from hf_lskd.data.token_batches import Seq2SeqCollator, TokenBatchSampler
from hf_lskd.trainer import token_lengths
from tests.seq2seq_run import MAX_TOKENS, TOKEN_ROWS, Batches, Watching
from tests.tiny_seq2seq import PAD, Gradients, Rows, arguments, gradient, off, tiny_seq2seq, trainer

LENGTHS = np.random.default_rng(0).integers(1, 25, (201, 2))


@pytest.mark.parametrize("multiple", [1, 2, 3, 8])
@pytest.mark.parametrize("most", [24, 60, 100_000])
def test_every_example_is_in_one_batch_an_epoch_and_no_batch_is_too_large(most: int, multiple: int) -> None:
    sampler = TokenBatchSampler(LENGTHS, most, seed=1, multiple=multiple)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert sorted(i for batch in batches for i in batch) == list(range(len(LENGTHS)))
        assert all(batches)
        assert len(batches) == len(sampler)
        assert len(batches) % multiple == 0
        assert all(len(batch) * LENGTHS[batch].max() <= most for batch in batches)


def test_batches_are_filled_before_another_is_begun() -> None:
    """No two neighbours in length could be one batch."""
    batches = sorted(TokenBatchSampler(LENGTHS, 100), key=lambda batch: LENGTHS[batch].max(1).min())
    for one, other in pairwise(batches):
        longest = LENGTHS[other].max(1).min()
        assert (len(one) + 1) * longest > 100


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def drawn(seed: int, epoch: int) -> list[list[int]]:
        sampler = TokenBatchSampler(LENGTHS, 60, seed=seed)
        sampler.set_epoch(epoch)
        torch.rand(3), np.random.default_rng().random()  # nothing global matters
        return list(sampler)

    assert drawn(1, 0) == drawn(1, 0)
    assert drawn(1, 2) == drawn(1, 2)
    assert drawn(1, 0) != drawn(1, 1)
    assert drawn(1, 0) != drawn(2, 0)
    assert sorted(map(sorted, drawn(1, 0))) != sorted(map(sorted, drawn(1, 1)))  # other companions too
    longest = [int(LENGTHS[batch].max()) for batch in drawn(1, 0)]
    assert longest != sorted(longest)


def test_one_length_a_row_and_rows_without_tokens() -> None:
    assert sorted(map(len, TokenBatchSampler([4, 4, 4, 0, 0], 8))) == [1, 2, 2]
    assert [len(batch) for batch in TokenBatchSampler([3, 3], 6)] == [2]


def test_batches_that_cannot_be_divided_among_the_processes_are_refused() -> None:
    assert len(TokenBatchSampler([10, 10, 10, 5, 5], 10, multiple=2)) == 4
    with pytest.raises(InputError, match=r"3 batches of one example each for 2 processes"):
        TokenBatchSampler([10, 10, 10], 10, multiple=2)


def test_a_pair_longer_than_the_limit_is_named() -> None:
    with pytest.raises(InputError, match=r"max_tokens = 24, and example 2 has 30 tokens"):
        TokenBatchSampler([(3, 4), (24, 5), (6, 30)], 24)
    with pytest.raises(InputError, match="max_tokens = 0"):
        TokenBatchSampler([1], 0)
    with pytest.raises(InputError, match="1 examples for 2 processes"):
        TokenBatchSampler([1], 5, multiple=2)
    with pytest.raises(InputError, match="max_tokens = 0"):
        arguments("unused", max_tokens=0)


def test_rows_become_padded_tensors() -> None:
    rows: list[dict[str, Any]] = [
        {"input_ids": [5, 6, 2], "labels": [7, 2], "example_id": 9},
        {"input_ids": [2], "labels": [-100, 8, 4, 2], "example_id": 3},
    ]
    batch = Seq2SeqCollator(PAD)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 2], [2, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[7, 2, -100, -100], [-100, 8, 4, 2]]
    assert batch["example_id"].tolist() == [9, 3]
    wide = Seq2SeqCollator(PAD, pad_to_multiple_of=8)(rows)
    assert {key: tuple(value.shape) for key, value in wide.items() if key != "example_id"} == dict.fromkeys(
        ("input_ids", "attention_mask", "labels"), (2, 8)
    )
    assert set(Seq2SeqCollator(PAD)([{"input_ids": [3]}])) == {"input_ids", "attention_mask"}
    with pytest.raises(InputError, match="labels that hold the pad token 1"):
        Seq2SeqCollator(PAD)([{"input_ids": [5], "labels": [4, 1, 2]}])


# ---- In the trainer


def tabled(rows: Rows, **more: Any) -> datasets.Dataset:
    """The rows as a table with text beside them."""
    return datasets.Dataset.from_list([{**row, "source": "some text", "target": "other text"} for row in rows], **more)


def epochs_of(folder: Path, rows: Any, **more: Any) -> list[list[tuple[list[int], int]]]:
    noted = Batches()
    args = arguments(folder, max_tokens=MAX_TOKENS, **{"num_train_epochs": 2, **more})
    trainer(tiny_seq2seq(), args, rows, kind=Watching, callbacks=[noted]).train()
    return noted.epochs


def test_a_table_with_other_columns_gives_the_same_batches(tmp_path: Path) -> None:
    table = tabled(TOKEN_ROWS)
    assert token_lengths(table).tolist() == [list(pair) for pair in TOKEN_ROWS.lengths]
    expected = epochs_of(tmp_path, TOKEN_ROWS)
    assert epochs_of(tmp_path, table) == expected
    assert epochs_of(tmp_path, table.with_format("torch")) == expected
    assert epochs_of(tmp_path, list(TOKEN_ROWS)) == expected


def test_an_epochs_batches_follow_from_the_seed(tmp_path: Path) -> None:
    first = epochs_of(tmp_path, TOKEN_ROWS, seed=3)
    assert epochs_of(tmp_path, TOKEN_ROWS, seed=3) == first
    assert epochs_of(tmp_path, TOKEN_ROWS, seed=3, dataloader_num_workers=2) == first
    assert epochs_of(tmp_path, TOKEN_ROWS, seed=4) != first
    assert epochs_of(tmp_path, TOKEN_ROWS, seed=4, data_seed=3) == first
    assert first[0] != first[1]


def test_training_on_token_batches_is_training_on_the_same_batches_by_hand(tmp_path: Path) -> None:
    model, noted = tiny_seq2seq("marian", 1), Gradients()
    args = arguments(tmp_path, max_tokens=MAX_TOKENS, gradient_accumulation_steps=3)
    trainer(model, args, TOKEN_ROWS, callbacks=[noted]).train()
    by_hand = tiny_seq2seq("marian", 1)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=args.learning_rate)
    batches = list(TokenBatchSampler(TOKEN_ROWS.lengths, MAX_TOKENS, seed=args.seed))
    windows = [batches[start : start + 3] for start in range(0, len(batches), 3)]
    assert len(windows) == len(noted.found)
    for window, found in zip(windows, noted.found):
        optimizer.zero_grad()
        items = sum(len(TOKEN_ROWS[i]["labels"]) for batch in window for i in batch)
        for batch in window:
            inputs = Seq2SeqCollator(PAD)([TOKEN_ROWS[i] for i in batch])
            labels = inputs["labels"]
            start = torch.full((len(batch), 1), by_hand.config.decoder_start_token_id)
            shifted = torch.cat([start, labels[:, :-1].clamp(min=PAD)], dim=1)
            logits = by_hand(inputs["input_ids"], inputs["attention_mask"], shifted).logits
            nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
            (nll / items).backward()
        assert off(found, gradient(by_hand)) < 1e-4
        optimizer.step()


def test_what_token_batches_cannot_be_made_of_is_refused(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter(TOKEN_ROWS)

    with pytest.raises(InputError, match="data of unknown length"):
        trainer(tiny_seq2seq(), arguments(tmp_path, max_tokens=30, max_steps=1), Stream()).train()
    with pytest.raises(InputError, match="max_tokens = 5, and example"):
        trainer(tiny_seq2seq(), arguments(tmp_path, max_tokens=5), TOKEN_ROWS).train()
    split = arguments(tmp_path, max_tokens=30, accelerator_config={"split_batches": True})
    with pytest.raises(InputError, match="split_batches"):
        trainer(tiny_seq2seq(), split, TOKEN_ROWS).train()

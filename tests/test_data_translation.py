"""Parallel text as rows of token ids."""

import pytest

from hf_lskd.data.pairs import Pairs, ParallelSource
from hf_lskd.data.tokenizer import train_bpe
from hf_lskd.data.translation import TranslationDataset
from hf_lskd.errors import InputError

PAIRS = Pairs(
    ["a house", "the green house, and the other green house", "two"],
    ["ein Haus", "das grüne Haus, und das andere grüne Haus", "zwei"],
)
TOKENIZER = train_bpe([*PAIRS.sources, *PAIRS.targets], 60)


def test_rows_end_and_know_their_pair() -> None:
    rows = TranslationDataset(PAIRS, TOKENIZER, max_length=100)
    assert len(rows) == 3
    for i, row in enumerate(rows[i] for i in range(3)):
        assert row["example_id"] == i
        assert row["input_ids"][-1] == row["labels"][-1] == TOKENIZER.eos_token_id
        assert rows.lengths[i].tolist() == [len(row["input_ids"]), len(row["labels"])]
        assert TOKENIZER.decode(row["labels"], skip_special_tokens=True) == PAIRS.targets[i]


def test_training_leaves_long_pairs_out_and_judging_cuts_them() -> None:
    training = TranslationDataset(PAIRS, TOKENIZER, max_length=8, drop_longer=True)
    assert [training[i]["example_id"] for i in range(len(training))] == [0, 2]
    judged = TranslationDataset(PAIRS, TOKENIZER, max_length=8)
    assert len(judged) == 3
    assert judged.lengths.max() == 8
    assert judged[1]["labels"][-1] == TOKENIZER.eos_token_id


def test_by_length_is_the_same_rows_longest_first() -> None:
    rows = TranslationDataset(PAIRS, TOKENIZER, max_length=100)
    ordered = rows.by_length()
    assert [ordered[i]["example_id"] for i in range(3)] == [1, 0, 2]
    assert ordered[1] == rows[0]
    assert (ordered.lengths[:, 1] == sorted(rows.lengths[:, 1], reverse=True)).all()


def test_nothing_left_is_refused() -> None:
    with pytest.raises(InputError, match="3 pairs, none of at most 2 tokens"):
        TranslationDataset(PAIRS, TOKENIZER, max_length=2, drop_longer=True)


def test_a_fingerprint_tells_any_change_of_the_text() -> None:
    one = ParallelSource(PAIRS, PAIRS, "en", "de")
    assert one.fingerprint == ParallelSource(PAIRS, PAIRS, "en", "de").fingerprint
    other = Pairs(PAIRS.sources, [*PAIRS.targets[:2], "drei"])
    seen = {
        source.fingerprint
        for source in (
            one,
            ParallelSource(other, PAIRS, "en", "de"),
            ParallelSource(PAIRS, other, "en", "de"),
            ParallelSource(PAIRS, PAIRS, "en", "ru"),
            ParallelSource(PAIRS, PAIRS, "en", "de", PAIRS),
        )
    }
    assert len(seen) == 5
    assert one.held_out is PAIRS
    with pytest.raises(InputError, match="2 sources and 1 targets"):
        Pairs(["a", "b"], ["c"])

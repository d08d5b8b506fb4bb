"""Two processes come to what one comes to: a translator's gradients, evaluation, decoder states and token batches."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import assert_same_weights
from tests.pairs import read, run_pair
from tests.seq2seq_run import FIVE, MAX_TOKENS, STEPS, TOKEN_ROWS, run
from tests.tiny_seq2seq import off


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two plain python processes found."""
    folder = tmp_path_factory.mktemp("pair")
    run_pair("tests.seq2seq_run", folder)
    return read(folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What this process finds by itself."""
    torch.set_num_threads(1)
    return run(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("name", STEPS)
def test_trap_03_a_translators_gradient_does_not_depend_on_the_number_of_processes(name: str, pair, alone) -> None:
    """Windows of 8 rows, among them a micro-batch of padding alone, and of 4."""
    expected = alone["gradients"][name]
    assert len(expected) == (1 if STEPS[name][2] == 1 else 2)
    for found in pair:
        for ours, theirs in zip(found["gradients"][name], expected, strict=True):
            assert off(ours, theirs) < 1e-4


def test_trap_09_a_translators_parameters_are_equal_on_both_processes(pair, alone) -> None:
    assert [found["trained"]["world"] for found in pair] == [2, 2]
    assert_same_weights(pair[0]["trained"]["weights"], pair[1]["trained"]["weights"])
    for key, value in alone["trained"]["weights"].items():
        torch.testing.assert_close(pair[0]["trained"]["weights"][key], value, rtol=1e-3, atol=1e-5)


def test_trap_26_predictions_give_each_example_once_and_in_order(pair, alone) -> None:
    """Five rows in batches of two: on two processes the last batch is padded to eight rows."""
    labels = [row["labels"] for row in FIVE]
    for found in (alone, *pair):
        for generate in (False, True):
            result, expected = found["evaluated"][generate], alone["evaluated"][generate]
            assert [[x for x in row if x != -100] for row in result["labels"].tolist()] == labels
            for ours in (result["predictions"], *result["seen"]):
                if generate:
                    np.testing.assert_array_equal(ours, expected["predictions"])
                else:
                    for part, (name, theirs) in zip(ours, enumerate(expected["predictions"]), strict=True):
                        assert len(part) == 5, name
                        valid = theirs != -100
                        np.testing.assert_allclose(part[valid], theirs[valid], rtol=1e-4, atol=1e-5)
            assert len(result["seen"]) == 2  # evaluate and predict


def test_trap_26_the_measured_likelihood_does_not_depend_on_the_number_of_processes(pair, alone) -> None:
    for generate in (False, True):
        expected = alone["evaluated"][generate]["metrics"]["eval_nll"]
        for found in pair:
            assert found["evaluated"][generate]["metrics"]["eval_nll"] == pytest.approx(expected, rel=1e-6)
            assert found["evaluated"][generate]["test_nll"] == pytest.approx(expected, rel=1e-6)


def test_trap_18_generated_ids_hold_no_ignored_ones_and_can_be_decoded(pair, alone) -> None:
    from tests.tiny_seq2seq import tokenizer

    for found in (alone, *pair):
        for ids in (found["evaluated"][True]["predictions"], *found["evaluated"][True]["seen"]):
            assert ids.min() >= 0
            assert all("w" in text for text in tokenizer().batch_decode(ids, skip_special_tokens=True))


@pytest.mark.parametrize("family", ["marian", "bart", "t5", "fsmt"])
def test_decoder_states_and_their_statistics_do_not_depend_on_the_number_of_processes(family: str, pair, alone) -> None:
    tolerance = 1e-5 if family == "fsmt" else 1e-10  # fsmt runs in float32
    expected = alone["states"][family]
    both = {key: torch.cat([found["states"][family][key] for found in pair]) for key in expected if key != "statistics"}
    order = both["example_id"].argsort(stable=True)
    assert torch.equal(both["example_id"][order], expected["example_id"])
    assert torch.equal(both["labels"][order], expected["labels"])
    torch.testing.assert_close(both["features"][order], expected["features"], rtol=tolerance, atol=tolerance)
    for found in pair:
        ours, theirs = found["states"][family]["statistics"], expected["statistics"]
        assert torch.equal(ours["count"], theirs["count"])
        assert int(ours["count"].sum()) == sum(len(row["labels"]) for row in FIVE)
        for key in ("mean", "within"):
            torch.testing.assert_close(ours[key], theirs[key], rtol=tolerance, atol=tolerance, equal_nan=True)


def test_token_batches_are_dealt_out_once_an_epoch_and_in_equal_number(pair, alone) -> None:
    everything = list(range(len(TOKEN_ROWS)))
    for found in (pair, [alone]):
        for epoch in range(2):
            parts = [one["shares"][epoch] for one in found]
            assert sorted(i for part in parts for ids, _ in part for i in ids) == everything
            assert len({len(part) for part in parts}) == 1
            assert max(tokens for part in parts for _, tokens in part) <= MAX_TOKENS
    assert alone["shares"][0] != alone["shares"][1]


def test_trap_19_token_batches_resume_bit_equal_in_the_middle_of_an_epoch(pair, alone) -> None:
    for found in (*pair, alone):
        assert_same_weights(found["resumed"]["whole"], found["resumed"]["resumed"])
    assert_same_weights(pair[0]["resumed"]["whole"], pair[1]["resumed"]["whole"])

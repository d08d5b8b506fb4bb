"""Seq2SeqDistillationTrainer: which tokens each decoder reads, and which token maps fit each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

from hf_lskd import InputError, Seq2SeqDistillationTrainer
from hf_lskd.data.token_batches import Seq2SeqCollator
from hf_lskd.models.sequence import target_tokens
from tests.reference import slow_kl
from tests.seq2seq_steps import ROWS, by_hand, first_step, restarted, saved, slow_rows
from tests.tiny_seq2seq import (
    FAMILIES,
    PAD,
    VOCABULARY,
    Rows,
    arguments,
    off,
    tiny_seq2seq,
    tokenizer,
    trainer,
)

# ---- Labels and how decoders start


class Keeper(TrainerCallback):
    """Collates as it is told to, and keeps each batch with a copy of its labels."""

    def __init__(self, collator: Callable[[Any], Any]) -> None:
        self.collator = collator
        self.kept: list[tuple[Any, Tensor]] = []

    def __call__(self, rows: Any) -> Any:
        batch = self.collator(rows)
        self.kept.append((batch, batch["labels"].clone()))
        return batch


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("whose", ["ours", "stock"])
def test_trap_02_labels_stay_as_they_are(family: str, whose: str, tmp_path: Path) -> None:
    """FSMT's own shift writes pad ids over the −100 of the labels that it is given."""
    stock = DataCollatorForSeq2Seq(tokenizer())
    keeper = Keeper(Seq2SeqCollator(PAD) if whose == "ours" else stock)
    student, teacher = tiny_seq2seq(family, 1), tiny_seq2seq(family, 2)
    # the stock collator lets example ids through as they come
    found, _ = first_step(tmp_path, student, teacher, data_collator=keeper, kd_weight=0.5)
    made = trainer(student, arguments(tmp_path), eval_dataset=ROWS, data_collator=keeper)
    made.evaluate()
    assert len(keeper.kept) > 2
    for batch, before in keeper.kept:
        assert torch.equal(batch["labels"], before)
        assert not batch["labels"].eq(PAD).any()
        assert set(batch) == {"input_ids", "attention_mask", "labels", "example_id"}
    assert any(before.eq(-100).any() for _, before in keeper.kept)
    assert off(found, by_hand(family, list(ROWS), teacher=True, temperature=1.0, smoothing=0.0)) < 1e-4


def test_trap_02_a_stock_script_runs_with_our_class_swapped_in(tmp_path: Path) -> None:
    words = tokenizer()
    rows = [
        {**words(" ".join(f"w{i}" for i in row["input_ids"][:-1])), "labels": row["labels"]}
        for row in Rows((3, 9, 2, 7, 5))
    ]
    curves = []
    for kind in (Seq2SeqTrainer, Seq2SeqDistillationTrainer):
        args = Seq2SeqTrainingArguments(
            output_dir=str(tmp_path / "run"), report_to="none", disable_tqdm=True, per_device_train_batch_size=5,
            learning_rate=1e-2, num_train_epochs=4, logging_steps=1, predict_with_generate=True, generation_max_length=10,
            dataloader_pin_memory=False, eval_strategy="epoch", save_strategy="no",
        )  # fmt: skip
        made = kind(
            model=tiny_seq2seq("marian", 1), args=args, train_dataset=rows, eval_dataset=rows, processing_class=words,
            data_collator=DataCollatorForSeq2Seq(words),
            compute_metrics=lambda p: {"rows": len(words.batch_decode(p.predictions, skip_special_tokens=True))},
        )  # fmt: skip
        made.remove_callback(PrinterCallback)
        made.train()
        assert made.evaluate()["eval_rows"] == 5
        curves.append([entry["loss"] for entry in made.state.log_history if "loss" in entry])
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)  # one micro-batch a step: the stock loss is right there


def test_each_decoder_reads_the_labels_behind_its_own_start(tmp_path: Path) -> None:
    seen: dict[str, Tensor] = {}

    def watched(name: str, model: Any) -> Any:
        def note(_: Any, args: Any, kwargs: Any) -> None:
            seen[name] = kwargs["decoder_input_ids"]

        model.register_forward_pre_hook(note, with_kwargs=True)
        return model

    student, teacher = watched("student", tiny_seq2seq(seed=1)), watched("teacher", restarted(tiny_seq2seq(seed=2), 3))
    first_step(tmp_path, student, teacher)
    assert seen["student"][:, 0].unique().tolist() == [PAD]
    assert seen["teacher"][:, 0].unique().tolist() == [3]
    assert torch.equal(seen["student"][:, 1:], seen["teacher"][:, 1:])
    for row, read in zip(ROWS, seen["student"].tolist()):
        wanted = [PAD, *(PAD if label == -100 else label for label in row["labels"])]
        assert read == (wanted + [PAD] * len(read))[: len(read)]


def test_decoder_inputs_in_the_batch_are_taken_where_both_start_alike_and_refused_elsewhere(tmp_path: Path) -> None:
    class WithInputs(Seq2SeqCollator):
        def __call__(self, rows: Any) -> Any:
            batch = super().__call__(rows)
            labels = batch["labels"]
            behind = torch.full_like(labels, PAD)
            behind[:, 1:] = labels[:, :-1].clamp(min=PAD)
            return {**batch, "decoder_input_ids": behind}

    expected, _ = first_step(tmp_path, None, tiny_seq2seq(seed=2))
    found, _ = first_step(tmp_path, None, tiny_seq2seq(seed=2), data_collator=WithInputs(PAD))
    assert off(found, expected) < 1e-6
    with pytest.raises(InputError, match="student that starts with token 1 and a teacher that starts with 3"):
        first_step(tmp_path, None, restarted(tiny_seq2seq(seed=2), 3), data_collator=WithInputs(PAD))


# ---- Token maps


def widened(model: Any, rows: int) -> Any:
    """The model with rows of its embedding that no token uses."""
    torch.manual_seed(7)
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.final_logits_bias = F.pad(model.final_logits_bias[:, :VOCABULARY], (0, rows - VOCABULARY))
    return model


def test_trap_13_rows_that_pad_the_embedding_are_cut_off_on_either_side(tmp_path: Path) -> None:
    words = tokenizer()
    teacher = saved(widened(tiny_seq2seq(seed=2), 32), words, tmp_path / "wide")
    more = {"processing_class": words, "kd_temperature": 2.0}
    _, log = first_step(tmp_path, None, teacher, **more)
    student_rows = slow_rows(tiny_seq2seq(seed=1))
    wide_rows = slow_rows(AutoModelForSeq2SeqLM.from_pretrained(teacher))
    assert len(wide_rows[0]) == 32
    common = [row[:VOCABULARY] for row in wide_rows]
    assert log["soft_loss"] == pytest.approx(slow_kl(student_rows, common, 2.0), rel=1e-4)

    narrow = saved(tiny_seq2seq(seed=2), words, tmp_path / "narrow")
    student = widened(tiny_seq2seq(seed=1), 32)
    _, log = first_step(tmp_path, student, narrow, **more)
    wide, right = slow_rows(student), slow_rows(tiny_seq2seq(seed=2))
    expected = slow_kl(wide, [row + [-1e30] * 8 for row in right], 2.0)  # the teacher rules its missing rows out
    assert log["soft_loss"] == pytest.approx(expected, rel=1e-4)


def test_trap_13_differing_token_maps_stop_with_both_sizes_and_the_remedy(tmp_path: Path) -> None:
    words = tokenizer()
    swapped = {**words.get_vocab(), "w7": 9, "w9": 7}
    names = {"one more": tokenizer(VOCABULARY + 1), "swapped": tokenizer(words=swapped)}
    for name, message in {
        "one more": "token maps of 25 .teacher. and 24 .student. tokens that differ: 'w24' is 24 for the teacher and missing",
        "swapped": "token maps of 24 .teacher. and 24 .student. tokens that differ: 'w7' is 9 for the teacher and 7",
    }.items():
        folder = saved(widened(tiny_seq2seq(seed=2), 32), names[name], tmp_path / name)
        with pytest.raises(InputError, match=message) as caught:
            trainer(tiny_seq2seq(), arguments(tmp_path), processing_class=words, teacher_model=folder)
        assert "hf-lskd translate" in str(caught.value)
    with pytest.raises(InputError, match="teacher of 32 token rows for a student of 24, with no tokenizer") as caught:
        trainer(tiny_seq2seq(), arguments(tmp_path), teacher_model=widened(tiny_seq2seq(seed=2), 32))
    assert "hf-lskd translate" in str(caught.value)


def test_trap_13_a_teacher_by_name_is_compared_where_its_tokenizer_is_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = tokenizer()
    swapped = {**words.get_vocab(), "w7": 9, "w9": 7}
    saved(tiny_seq2seq(seed=2), tokenizer(words=swapped), tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    teacher = AutoModelForSeq2SeqLM.from_pretrained("org/name")
    with pytest.raises(InputError, match="'w7' is 9 for the teacher and 7"):
        trainer(tiny_seq2seq(), arguments(tmp_path), processing_class=words, teacher_model=teacher)


def test_trap_13_token_maps_that_could_not_be_compared_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(tiny_seq2seq(), arguments(tmp_path), processing_class=tokenizer(), teacher_model=tiny_seq2seq(seed=2))
    assert "token maps of teacher and student were not compared" in caplog.text


def test_trap_13_where_source_and_target_have_maps_of_their_own_the_targets_counts() -> None:
    class TwoMaps:  # as MarianTokenizer and FSMTTokenizer have them
        def __init__(self) -> None:
            self.decoder = {0: "</s>", 1: "Haus"}

        def get_vocab(self) -> dict[str, int]:
            return {"</s>": 0, "house": 1}

    assert target_tokens(TwoMaps()) == {"</s>": 0, "Haus": 1}
    assert target_tokens(tokenizer()) == tokenizer().get_vocab()

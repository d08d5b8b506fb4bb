"""Seq2SeqDistillationTrainer: which gradient it takes, however the batch is cut, what it asks of its teacher, what it evaluates."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    TrainerCallback,
)

from hf_lskd import DistillationTrainer, InputError, Seq2SeqDistillationArguments, Seq2SeqDistillationTrainer
from hf_lskd.data.token_batches import Seq2SeqCollator
from hf_lskd.models.sequence import output_weights
from tests.conftest import assert_same_weights, tiny, weights
from tests.reference import slow_kl, slow_smoothed_cross_entropy
from tests.seq2seq_run import FIVE, HARDEST, TEACHING
from tests.seq2seq_steps import ROWS, by_hand, first_step, restarted, saved, slow_rows
from tests.tiny_seq2seq import (
    EOS,
    FAMILIES,
    PAD,
    VOCABULARY,
    arguments,
    off,
    steps,
    tiny_seq2seq,
    tokenizer,
    trainer,
)


@pytest.mark.parametrize("name", TEACHING)
@pytest.mark.parametrize("family", FAMILIES)
def test_trap_01_a_translators_gradient_does_not_depend_on_accumulation(family: str, name: str, tmp_path: Path) -> None:
    """Windows of 8 rows, with a micro-batch of padding alone, and of 4: each is the sum over its tokens over their number."""
    how = TEACHING[name]
    settings = {"teacher": how["teacher"], "temperature": how["kd_temperature"]}
    windows = [[ROWS[i] for i in range(8)], [ROWS[i] for i in range(8, 12)]]
    expected = [by_hand(family, window, **settings, smoothing=how["label_smoothing_factor"]) for window in windows]
    for accumulation in (1, 2, 4):
        found, _ = steps(tmp_path, family, ROWS, 8 // accumulation, accumulation, **how)
        for ours, theirs in zip(found, expected, strict=True):
            assert off(ours, theirs) < 1e-4, accumulation


@pytest.mark.parametrize("family", FAMILIES)
def test_trap_06_pad_columns_change_neither_a_translators_loss_nor_its_gradient(family: str, tmp_path: Path) -> None:
    how = {**TEACHING[HARDEST], "double": family != "fsmt"}  # its mask does without float64
    found, log = steps(tmp_path, family, ROWS, 4, 2, **how)
    wider = Seq2SeqCollator(PAD, pad_to_multiple_of=16)
    padded, other = steps(tmp_path, family, ROWS, 4, 2, collator=wider, **how)
    for one, two in zip(padded, found, strict=True):
        assert off(one, two) < (1e-12 if how["double"] else 1e-5)
    for mine, theirs in zip(other, log, strict=True):
        for key in ("loss", "hard_loss", "soft_loss", "target_entropy", "agreement"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-5), key


LABELS = [label for row in ROWS for label in row["labels"] if label != -100]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0, 64.0])
def test_trap_05_token_losses_are_the_slow_references_dense_and_top_k(temperature: float, tmp_path: Path) -> None:
    student, teacher = tiny_seq2seq(seed=1), tiny_seq2seq(seed=2)
    mine, theirs = slow_rows(student), slow_rows(teacher)
    hard = slow_smoothed_cross_entropy(mine, LABELS, 0.1)
    found = {}
    for k in (None, VOCABULARY, 8, 1):
        more = {"kd_top_k": k, "kd_temperature": temperature, "kd_weight": 0.5, "label_smoothing_factor": 0.1}
        found[k], log = first_step(tmp_path, copy.deepcopy(student), teacher, **more)
        soft = slow_kl(mine, theirs, temperature, top_k=k)
        assert log["hard_loss"] == pytest.approx(hard, rel=1e-5)
        assert log["soft_loss"] == pytest.approx(soft, rel=1e-4)
        assert log["loss"] == pytest.approx((hard + soft) / 2, rel=1e-4)
    assert off(found[VOCABULARY], found[None]) < 1e-5
    assert off(found[8], found[None]) > 1e-3
    with pytest.raises(InputError, match="kd_top_k = 0"):
        arguments(tmp_path, kd_top_k=0)


def test_trap_17_a_translators_smoothing_is_alpha_over_all_tokens_once(tmp_path: Path) -> None:
    student = tiny_seq2seq("t5", 1)
    expected = slow_smoothed_cross_entropy(slow_rows(student), LABELS, 0.3)
    _, log = first_step(tmp_path, student, label_smoothing_factor=0.3)
    assert log["loss"] == pytest.approx(expected, rel=1e-5)


def test_trap_31_a_translators_own_smoothing_never_reaches_the_teachers_targets(tmp_path: Path) -> None:
    student, teacher = tiny_seq2seq(seed=1), tiny_seq2seq(seed=2)
    plain, log = first_step(tmp_path, copy.deepcopy(student), teacher)
    smoothed, other = first_step(tmp_path, copy.deepcopy(student), teacher, label_smoothing_factor=0.3)
    assert torch.equal(plain, smoothed)
    assert log["soft_loss"] == other["soft_loss"]
    assert other["hard_loss"] == pytest.approx(slow_smoothed_cross_entropy(slow_rows(student), LABELS, 0.3), rel=1e-5)


def test_trap_16_the_distillation_temperature_is_not_the_sampling_temperature(tmp_path: Path) -> None:
    assert arguments(tmp_path, kd_temperature=3.0).kd_temperature == 3.0
    with pytest.raises(TypeError, match="temperature"):
        Seq2SeqDistillationArguments(output_dir=str(tmp_path), temperature=3.0)
    teacher = tiny_seq2seq(seed=2)
    _, log = first_step(tmp_path, None, teacher, kd_temperature=3.0)
    warm = tiny_seq2seq(seed=2)
    warm.generation_config.temperature = 0.5
    warm.generation_config.do_sample = True
    assert first_step(tmp_path, None, warm, kd_temperature=3.0)[1]["soft_loss"] == log["soft_loss"]


# ---- The teacher


def test_trap_07_a_translation_teacher_stays_in_eval_mode_and_as_it_was(tmp_path: Path) -> None:
    teacher = tiny_seq2seq("bart", 2)
    for module in teacher.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.5
    before = weights(teacher)

    class Meddler(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            teacher.train()

    args = arguments(tmp_path, num_train_epochs=3, weight_decay=0.1, per_device_train_batch_size=4)
    made = trainer(tiny_seq2seq("bart", 1), args, ROWS, teacher_model=teacher, callbacks=[Meddler()])
    made.train()
    assert not any(module.training for module in teacher.modules())
    assert_same_weights(weights(teacher), before)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module is teacher for module in made.model.modules())
    found, _ = first_step(tmp_path, tiny_seq2seq("bart", 1), teacher)
    assert off(found, first_step(tmp_path, tiny_seq2seq("bart", 1), tiny_seq2seq("bart", 2))[0]) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_trap_08_a_translators_checkpoints_hold_the_student_alone(family: str, tmp_path: Path) -> None:
    args = arguments(tmp_path, save_strategy="steps", save_steps=1)
    made = trainer(tiny_seq2seq(family, 1), args, ROWS, teacher_model=tiny_seq2seq(family, 2))
    made.train()
    made.save_model(tmp_path / "final")
    for folder in (tmp_path / "checkpoint-2", tmp_path / "final"):
        model, report = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert_same_weights(weights(model), weights(made.model))


def test_the_teacher_runs_without_a_graph_or_a_cache_and_the_encoder_once(tmp_path: Path) -> None:
    """FSMT builds no causal mask where it keeps a cache: what is to come would be seen."""
    for family in FAMILIES:
        calls: dict[str, int] = {}

        def counting(name: str, model: Any, calls: dict[str, int] = calls) -> Any:
            for part, module in (("model", model), ("encoder", model.get_encoder()), ("decoder", model.get_decoder())):

                def note(_: Any, __: Any, output: Any, key: str = f"{name} {part}") -> None:
                    calls[key] = calls.get(key, 0) + 1
                    assert torch.is_grad_enabled() == key.startswith("student")
                    assert getattr(output, "past_key_values", None) is None

                module.register_forward_hook(note)
            return model

        student, teacher = counting("student", tiny_seq2seq(family, 1)), counting("teacher", tiny_seq2seq(family, 2))
        made = trainer(student, arguments(tmp_path), ROWS, teacher_model=teacher)
        made.compute_loss(student.train(), Seq2SeqCollator(PAD)([ROWS[i] for i in range(4)])).backward()
        parts = ("model", "encoder", "decoder")
        assert calls == {f"{name} {part}": 1 for name in ("student", "teacher") for part in parts}, family


def test_an_ensemble_teaches_the_mean_of_its_members_tempered_probabilities(tmp_path: Path) -> None:
    student, members = tiny_seq2seq(seed=1), [tiny_seq2seq(seed=2), restarted(tiny_seq2seq(seed=3), 3)]
    _, log = first_step(tmp_path, copy.deepcopy(student), members, kd_temperature=3.0)
    tempered = [(torch.tensor(slow_rows(model), dtype=torch.float64) / 3).softmax(-1) for model in members]
    targets = 3 * ((tempered[0] + tempered[1]) / 2).log()
    assert log["soft_loss"] == pytest.approx(slow_kl(slow_rows(student), targets.tolist(), 3.0), rel=1e-4)
    with pytest.raises(InputError, match="teacher_model is an empty list"):
        first_step(tmp_path, None, [])


def test_a_teacher_by_its_folder_is_the_teacher_in_memory(tmp_path: Path) -> None:
    expected, _ = first_step(tmp_path, None, tiny_seq2seq(seed=2))
    folder = saved(tiny_seq2seq(seed=2), None, tmp_path / "teacher")
    assert off(first_step(tmp_path, None, folder)[0], expected) < 1e-6
    half, _ = first_step(tmp_path, None, folder, teacher_dtype="bfloat16")
    assert 0 < off(half, expected) < 0.2
    student = saved(tiny_seq2seq(seed=1), None, tmp_path / "student")
    assert off(first_step(tmp_path, student, folder)[0], expected) < 1e-6


def test_what_is_no_teacher_for_a_translator_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "teacher"
    saved(tiny_seq2seq(seed=2), None, folder)
    stored = load_file(folder / "model.safetensors")
    lost = next(name for name in stored if "fc1.weight" in name)
    save_file({k: v for k, v in stored.items() if k != lost}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 missing or mismatched weights, such as .*fc1\.weight"):
        trainer(tiny_seq2seq(), arguments(tmp_path), teacher_model=str(folder))
    with pytest.raises(InputError, match="for an encoder-decoder student"):
        trainer(tiny_seq2seq(), arguments(tmp_path), teacher_model=tiny())
    with pytest.raises(InputError, match="Hub id of an encoder-decoder"):
        trainer(tiny_seq2seq(), arguments(tmp_path), teacher_model=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="For classifiers use DistillationTrainer"):
        trainer(tiny(), arguments(tmp_path))
    model = tiny_seq2seq()
    with pytest.raises(InputError, match="share parameters"):
        trainer(model, arguments(tmp_path), teacher_model=model)
    assert not issubclass(Seq2SeqDistillationTrainer, DistillationTrainer)


# ---- Evaluation


def test_trap_18_metrics_get_ids_that_can_be_decoded(tmp_path: Path) -> None:
    """Batches whose translations differ in length are filled up by −100 when they are put together."""
    got: list[np.ndarray] = []

    def metrics(prediction: Any) -> dict[str, float]:
        got.append(prediction.predictions)
        return {}

    class Uneven(Seq2SeqDistillationTrainer):
        def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
            loss, tokens, labels = super().prediction_step(*args, **kwargs)
            return loss, tokens[:, : 4 + 2 * len(got_steps)], got_steps.append(1) or labels  # type: ignore[func-returns-value]

    got_steps: list[int] = []
    args = arguments(tmp_path, predict_with_generate=True, generation_max_length=12)
    for words in (tokenizer(), None):
        got_steps.clear()
        made = trainer(
            tiny_seq2seq(), args, kind=Uneven, eval_dataset=FIVE, compute_metrics=metrics, processing_class=words
        )
        made.evaluate()
        predicted = made.predict(FIVE).predictions
        for ids in (got[-2], predicted):
            assert ids.shape[0] == 5
            assert ids.min() >= 0
        assert got[-2][0, 4:].tolist() == [PAD] * (got[-2].shape[1] - 4)
        tokenizer().batch_decode(predicted)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_measured_likelihood_is_that_of_each_token(family: str, tmp_path: Path) -> None:
    rows = [row for row in ROWS if row["labels"][0] != -100]
    model = tiny_seq2seq(family, 1)
    expected = slow_smoothed_cross_entropy(slow_rows(model), LABELS, 0.0)
    for generate in (False, True):
        args = arguments(tmp_path, predict_with_generate=generate, generation_max_length=8, label_smoothing_factor=0.1)
        found = trainer(model, args, eval_dataset=rows, teacher_model=tiny_seq2seq(family, 2)).evaluate()
        assert found["eval_nll"] == pytest.approx(expected, rel=1e-5)


def test_prediction_without_labels_and_with_options_of_generate(tmp_path: Path) -> None:
    rows = [{"input_ids": row["input_ids"]} for row in FIVE]
    model = tiny_seq2seq("bart", 1)
    args = arguments(tmp_path, predict_with_generate=True)
    predicted = trainer(model, args, eval_dataset=rows).predict(rows, max_length=7, num_beams=2)
    assert predicted.label_ids is None
    assert predicted.predictions.shape[0] == 5
    for row, ours in zip(rows, predicted.predictions):
        ids = torch.tensor([row["input_ids"]])
        said_alone = model.generate(ids, max_length=7, num_beams=2)[0].tolist()
        assert [int(i) for i in ours if i != PAD] == [i for i in said_alone if i != PAD]


# ---- Decoder states


@pytest.mark.parametrize("family", ["marian", "bart", "t5", "fsmt"])
def test_penultimate_states_are_the_decoders_last_of_each_token(family: str, tmp_path: Path) -> None:
    model = tiny_seq2seq(family, 1)
    made = trainer(model, arguments(tmp_path), eval_dataset=ROWS)
    batches = list(made.penultimate())
    found = torch.cat([batch.features for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    ids = torch.cat([batch.example_id for batch in batches])
    assert labels.tolist() == LABELS
    assert ids.tolist() == [row["example_id"] for row in ROWS for label in row["labels"] if label != -100]
    assert found.shape == (len(LABELS), 16)
    with torch.no_grad():
        expected = []
        for row in (row for row in ROWS if row["labels"][0] != -100):
            behind = torch.tensor([[model.config.decoder_start_token_id, *row["labels"][:-1]]])
            inputs = {"input_ids": torch.tensor([row["input_ids"]]), "decoder_input_ids": behind, "use_cache": False}
            expected.append(model(**inputs, output_hidden_states=True).decoder_hidden_states[-1][0])
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-4)
    weight, bias = output_weights(model)
    scale = 16**-0.5 if getattr(model.config, "scale_decoder_outputs", False) else 1.0  # T5 with one embedding for all
    again = scale * found @ weight.T + (0 if bias is None else bias)
    torch.testing.assert_close(again, torch.cat([batch.logits for batch in batches]), rtol=1e-4, atol=1e-4)
    statistics = made.class_statistics()
    counted = torch.bincount(torch.tensor(LABELS), minlength=VOCABULARY)
    assert torch.equal(torch.as_tensor(statistics.count), counted)
    mean = torch.as_tensor(statistics.mean)[EOS]
    torch.testing.assert_close(mean, found[labels == EOS].double().mean(0), rtol=1e-4, atol=1e-4, check_dtype=False)

"""PEFT around every kind of model that our trainers take, as student and as teacher, and what a stream cannot do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from hf_lskd import DistillationTrainer
from hf_lskd.errors import InputError
from hf_lskd.penultimate import takes_images_by_name
from tests import tiny_seq2seq as seq2seq
from tests.conftest import VIT, Examples, tiny


def bare(seed: int = 0) -> nn.Module:
    """A timm module as it is: it takes its images by position and has no configuration."""
    torch.manual_seed(seed)
    return timm.create_model(VIT[0], num_classes=5, **VIT[1])


def adapted(model: nn.Module, **more: Any) -> Any:
    return get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, target_modules=["qkv"], **more))


@pytest.mark.parametrize("make", [tiny, bare], ids=["wrapped", "bare"])
def test_a_lora_student_learns_the_same_as_by_hand(
    make: Callable[..., nn.Module], arguments: Callable[..., Any]
) -> None:
    """One step of SGD at T = 2 with a LoRA teacher: the gradients of the adapters by plain autograd on the same logits."""
    make_one = (lambda seed: make(seed=seed)) if make is tiny else make
    student, teacher, data = adapted(make_one(1)), adapted(make_one(2)), Examples(8)
    twin = adapted(make_one(1))
    twin.load_state_dict(student.state_dict())
    trainer = DistillationTrainer(student, arguments(kd_temperature=2.0), train_dataset=data, teacher_model=teacher)
    trainer.train()

    images = torch.stack([data[i]["pixel_values"] for i in range(8)])
    said = lambda model: model(images) if make is bare else model(pixel_values=images).logits  # noqa: E731
    with torch.no_grad():
        targets = (said(teacher.eval()) / 2).softmax(-1)
    twin.train()
    loss = 4 * nn.functional.kl_div((said(twin) / 2).log_softmax(-1), targets, reduction="batchmean")
    loss.backward()
    before = dict(twin.named_parameters())
    moved = 0
    for name, value in trainer.model.named_parameters():
        step = torch.zeros_like(value) if before[name].grad is None else -0.1 * before[name].grad
        torch.testing.assert_close(value.detach(), (before[name] + step).detach(), rtol=1e-4, atol=1e-6)
        moved += bool(step.any())
    assert moved == 2
    assert trainer.predict(Examples(6)).predictions.shape == (6, 5)
    assert trainer.class_statistics(Examples(10)).count.tolist() == [2] * 5


def test_peft_passes_images_on_as_the_model_beneath_takes_them() -> None:
    assert takes_images_by_name(adapted(tiny()))
    assert not takes_images_by_name(adapted(bare()))


def test_a_student_whose_adapters_sit_in_the_teacher_is_refused(arguments: Callable[..., Any]) -> None:
    base = tiny()
    with pytest.raises(InputError, match="share parameters"):
        DistillationTrainer(adapted(base), arguments(), train_dataset=Examples(8), teacher_model=base)


@pytest.mark.parametrize(("family", "layers"), [("marian", ["q_proj", "v_proj"]), ("t5", ["q", "v"])])
def test_a_lora_translator_is_distilled_and_saves_its_adapter(family: str, layers: list[str], tmp_path: Path) -> None:
    student = get_peft_model(
        seq2seq.tiny_seq2seq(family, 1), LoraConfig(r=2, task_type="SEQ_2_SEQ_LM", target_modules=layers)
    )
    frozen = {name: value.clone() for name, value in student.named_parameters() if not value.requires_grad}
    args = seq2seq.arguments(tmp_path, num_train_epochs=20, learning_rate=0.3, kd_temperature=2.0)
    teacher = seq2seq.tiny_seq2seq(family, 2)
    trainer = seq2seq.trainer(student, args, seq2seq.Rows(), teacher_model=teacher, eval_dataset=seq2seq.Rows())
    trainer.train()
    soft = [entry["soft_loss"] for entry in trainer.state.log_history if "soft_loss" in entry]
    assert soft[-1] < soft[0]
    assert all(torch.equal(value, frozen[name]) for name, value in student.named_parameters() if name in frozen)
    assert int(trainer.class_statistics().count.sum()) == 38
    trainer.save_model(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter/adapter_model.safetensors").is_file()


def test_a_schedule_over_epochs_of_a_stream_is_refused(arguments: Callable[..., Any]) -> None:
    from datasets import Dataset

    rows = [{"pixel_values": torch.zeros(3, 16, 16).tolist(), "labels": 0}] * 4
    stream = Dataset.from_list(rows).to_iterable_dataset()
    args = arguments(max_steps=2, lr_step_epochs=1)
    with pytest.raises(InputError, match="lr_step_epochs with data of unknown length"):
        DistillationTrainer(tiny(), args, train_dataset=stream).train()

"""Students in parts: what is refused, with what to do instead. What works is in test_launch_equality.py."""

import pytest
import torch

from hf_lskd import DistillationTrainer, InputError
from hf_lskd.sharding import check_sharding, check_teacher_whole, check_tied, is_sharded, launched_with, whole_model
from tests.conftest import Examples, Make, tiny
from tests.tiny_seq2seq import tiny_seq2seq


@pytest.mark.parametrize(
    ("variables", "way"),
    [
        ({}, None),
        ({"ACCELERATE_USE_FSDP": "false"}, None),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed"),
    ],
)
def test_what_accelerate_launch_was_told_is_known(
    variables: dict[str, str], way: str | None, monkeypatch: pytest.MonkeyPatch, arguments: Make
) -> None:
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(name, raising=False)
    args = arguments(optim="sgd")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched_with() == way
    _, options = DistillationTrainer.get_optimizer_cls_and_kwargs(args)
    assert ("fused" in options) == (way is None)  # torch's fused SGD knows no tensors in parts


def test_trap_27_fsdp_that_came_up_as_something_else_is_refused_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch, arguments: Make
) -> None:
    """accelerate trains the whole model on each process of a processor, and says nothing."""
    trainer = DistillationTrainer(tiny(seed=1), arguments(max_steps=1), train_dataset=Examples(8))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match=r"FSDP asked for, where accelerate came up without it.*cpu_2\.yaml"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_channels_last_under_fsdp_and_a_teacher_under_zero_3_are_refused() -> None:
    with pytest.raises(InputError, match=r"channels_last under FSDP.*channels_last: false"):
        check_sharding("FSDP", True, channels_last=True)
    with pytest.raises(InputError, match=r"ZeRO stage 3.*deepspeed\.yaml"):
        check_teacher_whole(3)
    for asked, came_up in (("FSDP", True), ("DeepSpeed", True), (None, False)):
        check_sharding(asked, came_up, channels_last=asked != "FSDP")
    for stage in (None, 0, 1, 2):
        check_teacher_whole(stage)


def test_a_teacher_is_checked_against_the_stage_that_deepspeed_came_up_with(
    arguments: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = DistillationTrainer(tiny(seed=1), arguments(), train_dataset=Examples(8))

    class Plugin:  # what accelerate keeps of DeepSpeed's configuration
        zero_stage = 3

    monkeypatch.setattr(type(trainer.accelerator.state), "deepspeed_plugin", Plugin())
    with pytest.raises(InputError, match="a teacher under DeepSpeed ZeRO stage 3"):
        trainer._take_teacher(tiny(seed=2))


def test_an_encoder_decoder_whose_parts_share_an_embedding_is_refused_by_the_names_of_it() -> None:
    match = r"MarianMTModel under FSDP, whose model\.shared\.weight is also model\.encoder.*ddp_8\.yaml"
    with pytest.raises(InputError, match=match):
        check_tied(tiny_seq2seq("marian", 1))
    check_tied(tiny(seed=1))
    two = torch.nn.Sequential(torch.nn.Embedding(3, 2), torch.nn.Linear(2, 3, bias=False))
    two[1].weight = two[0].weight  # a language model's input and output: accelerate keeps them together
    check_tied(two)


def test_a_whole_model_is_the_trainers_own(arguments: Make) -> None:
    model = tiny(seed=1)
    trainer = DistillationTrainer(model, arguments(), train_dataset=Examples(8))
    assert not is_sharded(model)
    assert whole_model(trainer, lambda: pytest.fail("nothing has to be built")) is trainer.model

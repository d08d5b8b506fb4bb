"""Students in parts over processes (FSDP, DeepSpeed): what is refused there, and the trained model made whole again.

A teacher is never in parts: it stands whole on every process, in eval mode, beside the student's part.
"""

import os
from collections.abc import Callable
from typing import Any

from torch import nn

from hf_lskd.errors import InputError

WAYS = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}  # what `accelerate launch` says


def launched_with() -> str | None:
    """How `accelerate launch` was told to cut models into parts: "FSDP", "DeepSpeed", or None."""
    return next((way for name, way in WAYS.items() if os.environ.get(name, "").lower() in ("true", "1")), None)


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds a part of the model's weights only: FSDP's, or DeepSpeed's at ZeRO stage 3.

    FSDP2 may hold the whole for a moment, after a forward pass: its modules tell it all the same.
    """
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    cut = any(isinstance(module, FullyShardedDataParallel | FSDPModule) for module in model.modules())
    return cut or any(hasattr(p, "ds_id") for p in model.parameters())


def check_sharding(asked: str | None, came_up: bool, channels_last: bool) -> None:
    """Raise InputError for a training that was launched in parts and cannot be, before its first step.

    accelerate 1.15 trains whole models by DDP, and says nothing, where FSDP is asked for on a processor.
    """
    if asked and not came_up:
        raise InputError(
            f"{asked} asked for, where accelerate came up without it",
            "one GPU or more for each process",
            "On a processor take recipes/accelerate/cpu_2.yaml: DDP, the whole model on each process.",
        )
    if asked == "FSDP" and channels_last:
        raise InputError(
            "channels_last under FSDP, which takes contiguous weights only", "switches: {channels_last: false}, or DDP"
        )


def check_tied(model: nn.Module) -> None:
    """Raise InputError for a model that FSDP2 cannot cut: one with a tensor under several names, unless it is input and output
    embedding alone. accelerate 1.15 puts these two into a group of their own, and torch 2.13 lets no other group have the tensor.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for shared in names.values():
        if len(shared) > 2:
            raise InputError(
                f"{type(model).__name__} under FSDP, whose {shared[0]} is also {' and '.join(shared[1:])}",
                "a model whose encoder has an embedding of its own, or DDP (recipes/accelerate/ddp_8.yaml)",
            )


def check_teacher_whole(zero_stage: int | None) -> None:
    """Raise InputError for a teacher under DeepSpeed's ZeRO stage 3, which cuts each model to parts as it is loaded."""
    if zero_stage == 3:
        raise InputError(
            "a teacher under DeepSpeed ZeRO stage 3",
            "ZeRO stage 1 or 2 (recipes/accelerate/deepspeed.yaml), FSDP, or DDP",
            "The teacher has to stand whole on each process; the student alone is cut to parts.",
        )


def zero_stage(trainer: Any) -> int | None:
    """The stage of DeepSpeed's ZeRO; None without DeepSpeed."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return None if plugin is None else int(plugin.zero_stage)


def whole_model(trainer: Any, build: Callable[[], nn.Module]) -> nn.Module:
    """The trained model with all of its weights: the trainer's own, or where that is in parts one that `build` makes, with
    the weights gathered into it on the first process. All processes have to call it."""
    model: nn.Module = trainer.accelerator.unwrap_model(trainer.model)
    if not is_sharded(model):
        return model
    weights = trainer.accelerator.get_state_dict(trainer.model)
    made = build()
    if trainer.accelerator.is_main_process:
        made.load_state_dict(weights)
    return made

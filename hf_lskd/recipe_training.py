"""Checks a recipe's `training:` blocks against the training arguments themselves: names, types, ranges, what the study owns."""

import dataclasses
import enum
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from hf_lskd.errors import nearest
from hf_lskd.recipe_fields import (
    INVALID,
    Kind,
    boolean,
    choice,
    either,
    free_mapping,
    integer,
    listed,
    note_unknown,
    null,
    number,
    optional,
    text,
)
from hf_lskd.recipe_yaml import KeyPath, Problems, describe

# What the study decides for each cell, and where a recipe says it instead.
DEFAULT_OPTIMIZER = "adamw_torch_fused"  # transformers 5

OWNED: dict[str, str] = {
    "label_smoothing_factor": "Use grid.label_smoothing for the teacher's smoothing, "
    "grid.student_label_smoothing for the student's own.",
    "kd_temperature": "Use grid.temperature.",
    "kd_weight": "Use grid.kd_weight.",
    "kd_loss_scale": "Use grid.kd_loss_scale.",
    "kd_scale_student": "Use grid.scale_student.",
    "kd_top_k": "Use grid.kd_top_k.",
    "kd_ensemble_of": "Use teacher.ensemble_of.",
    "seed": "Use grid.seed.",
    "data_seed": "Use grid.seed, or switches.data_seed for one order of the data in all seeds.",
    "model_ema": "Use switches.ema.",
    "teacher_cache": "Use switches.teacher_cache.",
    "teacher_cache_top_k": "Use switches.teacher_cache.",
    "sync_batch_norm": "Use switches.sync_batchnorm.",
    "channels_last": "Use switches.channels_last.",
    "load_best_model_at_end": "A record holds the metrics of the last and of the best epoch.",
    "metric_for_best_model": "A record holds the metrics of the last and of the best epoch.",
    "greater_is_better": "A record holds the metrics of the last and of the best epoch.",
    "output_dir": "Use --output-dir.",
    "resume_from_checkpoint": "Run the same study again: it does only what is missing.",
    "run_name": "Runs are named after their cells.",
    **dict.fromkeys(
        (
            "push_to_hub",
            "hub_token",
            "hub_private_repo",
            "hub_model_id",
            "hub_strategy",
            "hub_always_push",
            "hub_revision",
        ),
        "Use `hf-lskd publish` on the finished study.",
    ),
    **dict.fromkeys(
        (
            *("do_train", "do_eval", "do_predict", "remove_unused_columns", "label_names", "prediction_loss_only"),
            *("include_for_metrics", "batch_eval_metrics", "eval_do_concat_batches", "local_rank"),
        ),
        "The study sets it.",
    ),
    **dict.fromkeys(
        (
            "predict_with_generate",
            "generation_max_length",
            "generation_num_beams",
            "generation_config",
            "sortish_sampler",
        ),
        "Use decoding: beams, length_penalty, max_length.",
    ),
}

# Names from other versions and other tools.
RENAMED: dict[str, str] = {
    "warmup_ratio": "Use warmup_steps: a number below 1 is a share of all steps.",
    "lr": "Use learning_rate.",
    "batch_size": "Use per_device_train_batch_size.",
    "epochs": "Use num_train_epochs.",
    "optimizer": "Use optim, for example `optim: sgd`.",
    "momentum": "Use optim_args, for example `optim_args: momentum=0.9,nesterov=true`.",
    "nesterov": "Use optim_args, for example `optim_args: momentum=0.9,nesterov=true`.",
    "scheduler": "Use lr_scheduler_type.",
    "no_cuda": "Use use_cpu.",
    "group_by_length": "Use train_sampling_strategy.",
    "label_smoothing": "Use grid.label_smoothing.",
    "temperature": "Use grid.temperature.",
}

RANGES: dict[str, Kind] = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), integer(1)
    ),
    "dataloader_num_workers": integer(0),
    "max_steps": integer(-1),
    "save_total_limit": optional(integer(1)),
    "save_minutes": optional(number(above=0)),
    **dict.fromkeys(
        ("learning_rate", "num_train_epochs", "logging_steps", "save_steps", "adam_epsilon"), number(above=0)
    ),
    "eval_steps": optional(number(above=0)),
    "max_tokens": optional(integer(1)),
    "lr_step_epochs": optional(number(above=0)),
    "lr_step_factor": number(above=0, high=1),
    "warmup_init_lr": number(0),
    **dict.fromkeys(("weight_decay", "max_grad_norm", "warmup_steps", "eval_delay"), number(0)),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), number(0, below=1)),
    "teacher_dtype": optional(choice("float32", "bfloat16", "float16")),
}

# Read by transformers' trainer_optimizer.py from the text `optim_args`; it ignores other keys without a word. Its
# param groups always carry a weight decay of their own, so one in `optim_args` has no effect for these optimizers.
OPTIMIZER_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "sgd": ("momentum", "dampening", "nesterov"),
    "adagrad": ("lr_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "centered"),
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adafactor"), ()),
}


def read_training(problems: Problems, value: Any, at: KeyPath, allowed: str) -> Any:
    """A mapping of training arguments, each checked by the annotation of its field in DistillationArguments."""
    if value is None or value == {}:
        return {}
    if not isinstance(value, dict):
        problems.add(at, describe(value), allowed)
        return INVALID
    kinds = argument_kinds()
    found = {}
    for key, item in value.items():
        place = (*at, str(key))
        if key in OWNED:
            problems.add(place, "a key that the study owns", "other training arguments", OWNED[key], key=True)
        elif key not in kinds:
            known, instead = [*kinds, *OWNED], RENAMED.get(str(key), "")
            note_unknown(problems, place, str(key), known, instead, "a field of DistillationArguments")
        else:
            found[key] = kinds[key](problems, item, place)
    return {key: found[key] for key in sorted(found)}  # with INVALID ones: checks of several keys leave those alone


training_block = Kind("a mapping of training arguments", read_training)


@lru_cache(maxsize=1)
def argument_kinds() -> dict[str, Kind]:
    """Kind of each training argument that a recipe may set. Imports transformers: seconds, hence not at module level."""
    from hf_lskd.arguments import DistillationArguments, Seq2SeqDistillationArguments

    kinds = (DistillationArguments, Seq2SeqDistillationArguments)
    hints = {key: hint for kind in kinds for key, hint in typing.get_type_hints(kind).items()}
    names = dict.fromkeys(field.name for kind in kinds for field in dataclasses.fields(kind) if field.init)
    return {key: RANGES.get(key) or kind_of(hints[key]) for key in names if key not in OWNED}


def kind_of(annotation: Any) -> Kind:
    """The kind that a type annotation asks for. An enum beside text (`SchedulerType | str`) means the enum's words."""
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return choice(*(str(member.value) for member in annotation))
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return _union(typing.get_args(annotation))
    if origin is typing.Literal:
        return either(*(boolean if isinstance(x, bool) else choice(str(x)) for x in typing.get_args(annotation)))
    if origin is list or annotation is list:
        (item,) = typing.get_args(annotation) or (str,)
        return listed(kind_of(item))
    if origin is dict or annotation is dict:
        return free_mapping
    simple: dict[Any, Callable[[], Kind]] = {bool: lambda: boolean, int: integer, float: number, str: lambda: text}
    # A class that no YAML value can spell (ParallelismConfig) leaves null.
    return simple[annotation]() if annotation in simple else null


def _union(members: tuple[Any, ...]) -> Kind:
    if any(isinstance(m, type) and issubclass(m, enum.Enum) for m in members):
        members = tuple(m for m in members if m is not str)
    order = [bool, int, float]
    some = sorted((m for m in members if m is not type(None)), key=lambda m: order.index(m) if m in order else 9)
    kinds = [kind_of(m) for m in some]
    kind = kinds[0] if len(kinds) == 1 else either(*kinds)
    return optional(kind) if type(None) in members and kind is not null else kind


def check_together(problems: Problems, shared: Mapping[str, Any], own: Mapping[str, Any], at: KeyPath) -> None:
    """What single values cannot show: optimizer and scheduler arguments that do not fit, settings that exclude each other.

    `shared` is the recipe's `training`, `own` the overrides found at `at`; problems point at the block with the key.
    """
    merged = {**shared, **own}
    invalid = {key for key, value in merged.items() if value is INVALID}

    def place(key: str) -> KeyPath:
        return (*at, key) if key in own else ("training", key)

    if merged.get("bf16") is True and merged.get("fp16") is True:
        problems.add(place("fp16"), "bf16 and fp16 both true", "one of them")
    if merged.get("dataloader_prefetch_factor") not in (None, INVALID) and not merged.get("dataloader_num_workers"):
        problems.add(
            place("dataloader_prefetch_factor"), "a value without workers", "null, or dataloader_num_workers >= 1"
        )
    if not invalid & {"optim", "optim_args"}:
        _check_optimizer(problems, merged, place)
    if not invalid & {"lr_scheduler_type", "lr_scheduler_kwargs"}:
        _check_scheduler(problems, merged, place)


def _check_optimizer(problems: Problems, merged: Mapping[str, Any], place: Callable[[str], KeyPath]) -> None:
    """`optim_args` is text such as "momentum=0.9,nesterov=true"; keys that the optimizer does not read are problems."""
    arguments = merged.get("optim_args")
    optimizer = merged.get("optim", DEFAULT_OPTIMIZER)
    if not arguments:
        return
    pairs = [pair.split("=") for pair in arguments.replace(" ", "").split(",")]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        problems.add(
            place("optim_args"), describe(arguments), "key=value pairs with commas between, momentum=0.9,nesterov=true"
        )
        return
    known = OPTIMIZER_ARGUMENTS.get(optimizer)
    for key, setting in pairs if known is not None else []:
        if key not in (known or ()):
            moved = "Use training.weight_decay." if key == "weight_decay" else ""
            moved = moved or ("Use adam_beta1, adam_beta2, adam_epsilon." if optimizer.startswith("adamw") else "")
            allowed = ", ".join(known or ()) or f"nothing for optim: {optimizer}"
            problems.add(place("optim_args"), describe(key), allowed, moved or nearest(key, known or ()))
            continue
        kind = choice("true", "false") if key in ("nesterov", "centered") else number(0)
        kind(problems, setting.lower(), place("optim_args"), f"{key}={kind.allowed}")


def _check_scheduler(problems: Problems, merged: Mapping[str, Any], place: Callable[[str], KeyPath]) -> None:
    """`lr_scheduler_kwargs` are the arguments that transformers' schedule of that name takes."""
    name = merged.get("lr_scheduler_type", "linear")
    given = merged.get("lr_scheduler_kwargs") or {}
    if name in ("reduce_lr_on_plateau", "greedy") and merged.get("eval_strategy") == "no":
        problems.add(place("lr_scheduler_type"), f"{name} without evaluation", "eval_strategy: epoch or steps")
    known, needed = schedule_arguments(name)
    if not isinstance(given, dict) or known is None:
        return
    at = place("lr_scheduler_kwargs")
    for key in given:
        if key not in known:
            problems.add(
                (*at, key),
                "an unknown key",
                ", ".join(known) or f"no arguments for {name}",
                nearest(key, known),
                key=True,
            )
    for key in needed:
        if key not in given:
            problems.add((*at, key), "nothing", f"a value: {name} needs it")
    if name.endswith("with_min_lr") and ("min_lr" in given) == ("min_lr_rate" in given):
        problems.add(at, describe(given), "one of min_lr and min_lr_rate")


def schedule_arguments(name: str) -> tuple[list[str] | None, list[str]]:
    """Names of the arguments of a transformers schedule and those without default; None: it takes any."""
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
    from transformers.trainer_utils import SchedulerType

    if name in ("reduce_lr_on_plateau", "greedy"):
        return None, []
    schedule: Any = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]
    parameters = inspect.signature(schedule).parameters
    from_trainer = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
    own = {key: value for key, value in parameters.items() if key not in from_trainer}
    return list(own), [key for key, value in own.items() if value.default is inspect.Parameter.empty]

"""A trainer's teacher, with its logits on the training set read from a cache (`teacher_cache`) in place of being computed."""

from collections.abc import Iterator, Mapping
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from hf_lskd.errors import InputError
from hf_lskd.penultimate import pop_targets
from hf_lskd.teacher_cache import data_digest, example_lengths, model_digest, open_cache

TELLING = 64  # examples, spread over a data set, that tell it from another


def take_cache(trainer: Any) -> None:
    """Give the trainer's teacher the cache that the arguments name, filled first in one pass over the training set.

    The pass is in eval mode, in the precision of training, in batches of `per_device_eval_batch_size`. Raises InputError for an
    ensemble, several processes, random data, and fewer classes kept than are distilled.
    """
    args, teacher = trainer.args, trainer.teacher
    top_k = getattr(args, "teacher_cache_top_k", None)
    check_cacheable(trainer, top_k)
    member = teacher.members[0]
    made_of = {
        "teacher": model_digest(member.model),
        "width": getattr(member, "width", None),
        "normalisation": None
        if member.renormalise is None
        else [part.flatten().tolist() for part in member.renormalise],
        "precision": [str(trainer.accelerator.mixed_precision), str(member.dtype), member.own_dtype],
        "data": data_digest(list(batches(trainer, telling(trainer.train_dataset)))),
        "examples": len(trainer.train_dataset),
    }
    items = sum(sum(example_lengths(inputs)) for inputs in batches(trainer, trainer.train_dataset, lengths_only=True))

    def ask(inputs: Mapping[str, Any]) -> Tensor:
        with trainer.compute_loss_context_manager():
            logits: Tensor = teacher.logits(inputs)
        return logits

    with torch.random.fork_rng(devices=[]):  # data loaders draw from the global generator
        teacher.store = open_cache(
            Path(args.teacher_cache), made_of, lambda: batches(trainer, trainer.train_dataset), ask, items, top_k
        )


def check_cacheable(trainer: Any, top_k: int | None) -> None:
    """Raise InputError for what no cache can stand in for."""
    distilled = getattr(trainer.args, "kd_top_k", None)
    data = trainer.train_dataset
    if len(trainer.teacher.members) > 1:
        raise InputError("teacher_cache with an ensemble", "one teacher")
    if trainer.args.world_size > 1:
        raise InputError(f"teacher_cache on {trainer.args.world_size} processes", "one process")
    if top_k is not None and distilled is not None and distilled > top_k:
        raise InputError(f"kd_top_k = {distilled} with a teacher cache of {top_k} classes", "as many kept as distilled")
    if not hasattr(data, "__len__") or getattr(data, "random", False) or getattr(data, "mixing", None) is not None:
        raise InputError(
            "teacher_cache with data of random augmentation, mixing or unknown length",
            "data that look the same in every epoch",
            "Set augmentation: none, or leave the cache off.",
        )


def batches(trainer: Any, dataset: Any, lengths_only: bool = False) -> Iterator[Mapping[str, Any]]:
    """What the teacher is asked for each batch of `dataset`, in its order. `lengths_only`: images need not be read for that."""
    if lengths_only and not trainer.takes_sequences:
        yield {"pixel_values": torch.empty(len(dataset), 0)}
        return
    with torch.random.fork_rng(devices=[]):
        for batch in trainer.get_eval_dataloader(dataset):
            inputs = dict(trainer._prepare_inputs(batch))
            labels, _ = pop_targets(inputs)
            yield {**inputs, "labels": labels} if trainer.takes_sequences else inputs


def telling(dataset: Any) -> Any:
    rows = range(0, len(dataset), ceil(len(dataset) / TELLING))
    return dataset.select(rows) if hasattr(dataset, "select") else Subset(dataset, list(rows))

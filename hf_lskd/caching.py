"""A trainer's teacher, with its logits on the training set read from a cache (`teacher_cache`) in place of being computed."""

from collections.abc import Iterator, Mapping
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from hf_lskd.errors import InputError
from hf_lskd.penultimate import pop_targets
from hf_lskd.teacher_cache import cache_folder, data_digest, example_lengths, model_digest, open_cache

TELLING = 64  # examples, spread over a data set, that tell it from another


def take_cache(trainer: Any) -> None:
    """Give the trainer's teacher the cache that the arguments name, filled first in one pass over the training set, or one for
    each of its `augmentation_versions` that this training reads: no more than it has epochs. A cache of more versions is taken
    where there is one.

    A pass is over the batches of the first epoch, the next version's over those of the next epoch, in the precision of training:
    so these epochs are, to the last bit, what they are without a cache, and later ones are where the teacher's rounding does not
    depend on what else is in a batch. (Measured on a CPU: convolutional models' does not; that of encoder-decoders may in the
    last bits, by the width of the padding.)
    Raises InputError for an ensemble, several processes, random data, and fewer classes kept than are distilled.
    """
    args, teacher = trainer.args, trainer.teacher
    top_k = getattr(args, "teacher_cache_top_k", None)
    check_cacheable(trainer, top_k)
    root, member = Path(args.teacher_cache), teacher.members[0]
    made_of = {
        "teacher": model_digest(member.model),
        "width": getattr(member, "width", None),
        "normalisation": None
        if member.renormalise is None
        else [part.flatten().tolist() for part in member.renormalise],
        "precision": [str(trainer.accelerator.mixed_precision), str(member.dtype), member.own_dtype],
        "data": data_digest(list(batches(trainer, trainer.get_eval_dataloader(telling(trainer.train_dataset))))),
        "examples": len(trainer.train_dataset),
    }
    versions = getattr(trainer.train_dataset, "augmentation_versions", None)
    if versions is not None:
        read = min(versions, epochs_of(trainer))
        known = (n for n in range(read, versions + 1) if cache_folder(root, with_versions(made_of, n), top_k).is_dir())
        versions = next(known, read)
        made_of = with_versions(made_of, versions)

    def ask(inputs: Mapping[str, Any]) -> Tensor:
        with trainer.compute_loss_context_manager():
            logits: Tensor = teacher.logits(inputs)
        return logits

    def filling() -> Iterator[Mapping[str, Any]]:
        loader = trainer.get_train_dataloader()
        for epoch in range(versions or 1):
            if trainer._epoch_sampler is not None:
                trainer._epoch_sampler.set_epoch(epoch)
            yield from batches(trainer, loader)

    teacher.store = open_cache(root, made_of, filling, ask, partial(count_items, trainer, versions or 1), top_k)


def with_versions(made_of: Mapping[str, Any], count: int) -> dict[str, Any]:
    """What a cache of the first `count` versions is made of."""
    return {**made_of, "augmentation_versions": count}


def epochs_of(trainer: Any) -> int:
    """How many epochs a training reads, the last one perhaps in part."""
    return int(trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[0])


def check_cacheable(trainer: Any, top_k: int | None) -> None:
    """Raise InputError for what no cache can stand in for."""
    distilled = getattr(trainer.args, "kd_top_k", None)
    data = trainer.train_dataset
    if len(trainer.teacher.members) > 1:
        raise InputError("teacher_cache with an ensemble", "one teacher")
    if trainer.args.world_size > 1:
        raise InputError(f"teacher_cache on {trainer.args.world_size} processes", "one process")
    if trainer.args.dataloader_drop_last:
        raise InputError("teacher_cache with dataloader_drop_last", "batches with every example")
    if top_k is not None and distilled is not None and distilled > top_k:
        raise InputError(f"kd_top_k = {distilled} with a teacher cache of {top_k} classes", "as many kept as distilled")
    if not hasattr(data, "__len__") or getattr(data, "random", False) or getattr(data, "mixing", None) is not None:
        raise InputError(
            "teacher_cache with data of random augmentation, mixing or unknown length",
            "data that look the same in every epoch",
            "Set augmentation: none, or augmentation_versions: k beside it, or leave the cache off.",
        )


def batches(trainer: Any, loader: Any) -> Iterator[Mapping[str, Any]]:
    """What the teacher is asked for each batch of a loader."""
    with torch.random.fork_rng(devices=[]):  # a loader draws from the global generator
        for batch in loader:
            inputs = dict(trainer._prepare_inputs(batch))
            labels, _ = pop_targets(inputs)
            yield {**inputs, "labels": labels} if trainer.takes_sequences else inputs


def count_items(trainer: Any, versions: int) -> int:
    """How many images, in so many versions, or target tokens the training set has."""
    data = trainer.train_dataset
    if not trainer.takes_sequences:
        return len(data) * versions
    return sum(sum(example_lengths(inputs)) for inputs in batches(trainer, trainer.get_eval_dataloader(data)))


def telling(dataset: Any) -> Any:
    """Some examples of a data set, the first version of each where it has several: further ones are drawn as this one is."""
    rows = range(0, len(dataset), ceil(len(dataset) / TELLING))
    if getattr(dataset, "augmentation_versions", None) is not None:
        return Subset(dataset, [(0, row) for row in rows])  # type: ignore[misc]
    return dataset.select(rows) if hasattr(dataset, "select") else Subset(dataset, list(rows))

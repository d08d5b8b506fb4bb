"""How good a teacher is on the data at hand: said before training, with a warning when it is near chance."""

import logging
from collections.abc import Mapping
from math import ceil
from typing import Any

import torch
from torch.utils.data import Subset

from hf_lskd import losses
from hf_lskd.penultimate import pop_targets, real_rows

logger = logging.getLogger(__name__)

MOST = 2048  # examples: enough to tell a trained head from a random one


def report_teacher(trainer: Any) -> None:
    """Log the teacher's top-1 on a spread of the evaluation (else training) examples; warn when it is near chance.

    Silent where there is nothing to measure it on: data without length, or labels that are no class indices.
    """
    dataset = sample(trainer.eval_dataset) or sample(trainer.train_dataset)
    if dataset is None:
        return
    counts = torch.zeros(2, device=trainer.args.device)
    classes = 0
    with torch.random.fork_rng():  # a data loader draws from the global generator
        for batch in trainer.get_eval_dataloader(dataset):
            inputs = dict(trainer._prepare_inputs(batch))
            if not trainer.owns(inputs.get("labels")) or inputs["labels"].is_floating_point():
                return
            labels, _ = pop_targets(inputs)
            mine = real_rows(trainer.accelerator, len(labels))
            logits, labels = trainer.teacher_logits(inputs, labels)[:mine], labels[:mine]
            items = labels.ne(losses.IGNORE_INDEX)
            counts += torch.stack([(logits.argmax(-1).eq(labels) & items).sum(), items.sum()])
            classes = logits.shape[-1]
    right, seen = trainer.accelerator.reduce(counts, "sum").tolist()
    if not seen or not trainer.accelerator.is_main_process:
        return
    top1, chance = 100 * right / seen, 100 / classes
    logger.info("Teacher: top-1 %.1f %% of %d labels.", top1, seen)
    if top1 < 2 * chance and classes > 2:
        logger.warning(
            "The teacher is right on %.1f %% of %d labels, near chance (%.1f %%). Is its head trained, and is its class "
            "order the data's?",
            top1,
            seen,
            chance,
        )


def sample(dataset: Any) -> Any:
    """At most `MOST` examples spread evenly over `dataset` (of several: the first), or None when it has no length."""
    if isinstance(dataset, Mapping):
        dataset = next(iter(dataset.values()), None)
    if dataset is None or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__") or not len(dataset):
        return None
    rows = range(0, len(dataset), ceil(len(dataset) / MOST))
    return dataset.select(rows) if hasattr(dataset, "select") else Subset(dataset, list(rows))

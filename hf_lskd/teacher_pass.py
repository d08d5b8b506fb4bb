"""What a trainer's teachers say of a data set: one pass, each model once a batch, over any number of processes."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_lskd.losses import IGNORE_INDEX
from hf_lskd.penultimate import item_ids, pop_targets, real_rows


class TaughtBatch(NamedTuple):
    """One batch of the evaluation loop: each teacher's logits. For encoder-decoders a row is a target token that counts."""

    outputs: list[Tensor]  # each [N, C]
    labels: Tensor  # [N]
    example_id: Tensor | None  # [N]


@torch.no_grad()
def taught_batches(trainer: Any, dataset: Any) -> Iterator[TaughtBatch]:
    """This process's share of the evaluation loop over `dataset`, batch by batch, each example once."""
    for batch in trainer.get_eval_dataloader(dataset):
        inputs = dict(trainer._prepare_inputs(batch))
        labels, ids = pop_targets(inputs)
        outputs = trainer.teacher.compute(trainer.teacher_inputs(inputs, labels))
        mine = slice(real_rows(trainer.accelerator, labels.shape[0]))
        outputs, labels, ids = [z[mine] for z in outputs], labels[mine], None if ids is None else ids[mine]
        if labels.dim() == 2:
            keep = labels.ne(IGNORE_INDEX)
            ids = None if ids is None else item_ids(ids, labels)
            outputs, labels = [z[keep] for z in outputs], labels[keep]
        yield TaughtBatch(outputs, labels, ids)

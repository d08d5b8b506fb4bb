"""What a trainer's model says before its last layer: one pass in eval mode, over any number of processes."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_lskd import models
from hf_lskd.analysis.statistics import SLAB, ClassStatistics
from hf_lskd.errors import InputError
from hf_lskd.losses import IGNORE_INDEX
from hf_lskd.models.adapters import without_adapter
from hf_lskd.models.sequence import is_encoder_decoder, reading_decoder
from hf_lskd.sharding import is_sharded
from hf_lskd.teacher import logits_of
from hf_lskd.teacher_cache import IMAGES

EXAMPLE_ID = "example_id"
_BY_NAME: dict[type, bool] = {}  # asked at each step, and a signature does not change


class PenultimateBatch(NamedTuple):
    """One batch of the evaluation loop: what the classifier read and said. `example_id` None when the data carry none.

    For encoder-decoders a row is a target token: B counts the labels that are not ignored, C the vocabulary.
    """

    features: Tensor  # [B, D]
    logits: Tensor  # [B, C]
    labels: Tensor  # [B]
    example_id: Tensor | None  # [B]


def pop_targets(inputs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Labels and example ids taken out of a batch: no model is to see either."""
    return inputs.pop("labels"), inputs.pop(EXAMPLE_ID, None)


def takes_images_by_name(model: nn.Module) -> bool:
    """Whether `model` takes `pixel_values` by keyword, as transformers' models do; a bare module takes images by position."""
    own = without_adapter(model)  # PEFT's wrapper takes anything, and passes it on as it is
    known = _BY_NAME.get(type(own))
    if known is None:
        parameters = inspect.signature(own.forward).parameters
        known = IMAGES in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        _BY_NAME[type(own)] = known
    return known


def forward(model: nn.Module, inputs: Mapping[str, Any], by_name: bool) -> Any:
    """The (wrapped) model on a batch without labels, so that it computes no loss of its own."""
    if by_name or IMAGES not in inputs:
        return model(**inputs)
    return model(inputs[IMAGES], **{key: value for key, value in inputs.items() if key != IMAGES})


@torch.no_grad()
def penultimate_batches(trainer: Any, dataset: Any = None) -> Iterator[PenultimateBatch]:
    """This process's share of the evaluation loop over `dataset` (None: the trainer's evaluation set), batch by batch.

    In eval mode, each example once: the rows that pad the last batch to equal size on every process are dropped.
    Raises InputError when no single layer says the logits.
    """
    if is_sharded(trainer.model):
        refuse_whole("the penultimate pass")
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        model.to(trainer.args.device)  # which a trainer leaves undone there
    by_name = takes_images_by_name(model)
    reading = reading_decoder if is_encoder_decoder(model) else models.reading_classifier
    training = [module for module in model.modules() if module.training]  # some may be frozen in eval mode
    model.eval()
    try:
        with reading(model) as embeddings_behind:
            for batch in trainer.get_eval_dataloader(dataset):
                inputs = dict(trainer._prepare_inputs(batch))
                labels, ids = pop_targets(inputs)
                logits = logits_of(forward(model, trainer.student_inputs(inputs, labels), by_name))
                mine = slice(real_rows(trainer.accelerator, labels.shape[0]))
                rows = embeddings_behind(logits)[mine], logits[mine], labels[mine]
                if logits.dim() == 3:
                    yield PenultimateBatch(
                        *items_only(*rows), None if ids is None else item_ids(ids[mine], labels[mine])
                    )
                else:
                    yield PenultimateBatch(*rows, None if ids is None else ids[mine])
    finally:
        for module in training:
            module.training = True


def items_only(features: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`[B, L, D]`, `[B, L, V]` and `[B, L]` as rows of the labels that are not ignored: `[N, D]`, `[N, V]`, `[N]`."""
    keep = labels.ne(IGNORE_INDEX)
    return features[keep], logits[keep], labels[keep]


def item_ids(ids: Tensor, labels: Tensor) -> Tensor:
    """The example `[N]` that each label of `[B, L]` that is not ignored belongs to."""
    return ids.unsqueeze(1).expand_as(labels)[labels.ne(IGNORE_INDEX)]


def refuse_whole(what: str) -> None:
    """Raise InputError for what needs the whole model, under FSDP or DeepSpeed, where no process holds it."""
    raise InputError(
        f"{what} of a sharded model (FSDP or DeepSpeed)",
        "one process, or several with the whole model each (DDP)",
        "Save the model, then read it in one process.",
    )


def real_rows(accelerator: Any, rows: int) -> int:
    """How many of this process's rows of the current batch are not padding of the data loader's last batch."""
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
        return rows
    return min(max(state.remainder - accelerator.process_index * rows, 0), rows)


def class_statistics(trainer: Any, dataset: Any = None) -> ClassStatistics:
    """Per-class sums of the penultimate embeddings over `dataset`, merged over processes; no features are gathered.

    Raises InputError as `penultimate_batches` does, and when a process has no example.
    """
    sums = ClassSums()
    for batch in trainer.penultimate(dataset):
        sums.add(batch)
    statistics = sums.total()
    if statistics is None:
        raise InputError("an empty data set", "at least one example a process")
    return merged(trainer.accelerator, statistics)


class ClassSums:
    """Class statistics of small batches: added are many of them together, since adding is a dozen small operations."""

    def __init__(self) -> None:
        self._statistics: ClassStatistics | None = None
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._numbers = 0

    def add(self, batch: PenultimateBatch) -> None:
        if self._statistics is None:
            self._statistics = ClassStatistics(batch.logits.shape[-1], batch.features.shape[-1])
        self._waiting.append((batch.features, batch.labels))
        self._numbers += batch.features.numel()
        if self._numbers >= SLAB:
            self._flush()

    def total(self) -> ClassStatistics | None:
        """The statistics of all that was added; None when nothing was."""
        if self._waiting:
            self._flush()
        return self._statistics

    def _flush(self) -> None:
        assert self._statistics is not None
        features, labels = (torch.cat(part) for part in zip(*self._waiting))
        self._statistics.update(features, labels)
        self._waiting, self._numbers = [], 0


def merged(accelerator: Any, part: Any) -> Any:
    """One thing from the parts of all processes, by its own `merge`."""
    first, *others = gathered(accelerator, [part])
    for other in others:
        first.merge(other)
    return first


def gathered(accelerator: Any, parts: list) -> list:
    """The parts of all processes, in the order of their ranks."""
    if accelerator.num_processes == 1:
        return parts
    from accelerate.utils import gather_object

    return gather_object(parts)

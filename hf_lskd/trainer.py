"""The two trainers: `transformers.Trainer` and `Seq2SeqTrainer` with α and T."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import Seq2SeqTrainer, Trainer

from hf_lskd.data.token_batches import TokenBatchSampler
from hf_lskd.distillation import DistillationMixin
from hf_lskd.errors import InputError
from hf_lskd.losses import IGNORE_INDEX
from hf_lskd.models.sequence import decoder_inputs, is_encoder_decoder, load_seq2seq
from hf_lskd.penultimate import EXAMPLE_ID
from hf_lskd.seq2seq import DECODER_IDS, DECODER_KEYS, check_starts, prepare_seq2seq_teacher
from hf_lskd.teacher import Teacher


class DistillationTrainer(DistillationMixin, Trainer):
    """`transformers.Trainer` for image (and other single-label) classification, distilling from `teacher_model` when given.

    Takes the stock trainer's parameters in its order; `model` may also be a name or path or a bare timm module.
    `args` may be a plain `TrainingArguments`: the `kd_*` of `hf_lskd.DistillationArguments` then have their defaults.
    Without a teacher it trains with cross-entropy smoothed by `label_smoothing_factor`: this is how teachers are made.
    Where our loss does not apply (labels that are no class indices or probabilities, multi-label, causal language models,
    a `compute_loss_func`) the stock loss does, and a teacher is an InputError.
    Paper: Chandrasegaran et al., ICML 2022. See `DistillationMixin` for what differs from the stock trainer.
    """


class Seq2SeqDistillationTrainer(DistillationMixin, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer` for encoder-decoders, distilling token by token from `teacher_model` when given.

    Takes the stock trainer's parameters in its order. The loss is the same function for every α, summed over the target
    tokens of the whole accumulated, all-process batch and divided by their number. (The stock trainer's gradient grows with
    accumulation at α = 0 and does not at α > 0.) Each model's decoder reads the labels, unchanged, behind its own start
    token, so `DataCollatorForSeq2Seq(tokenizer)` works without a model; a batch that brings `decoder_input_ids` is taken as
    it is, where student and teacher start alike. Teacher and student need the same token map (`processing_class`, and the
    tokenizer in the teacher's folder); rows that only pad an embedding are cut off.

    Further differences from the stock trainer: `evaluate` and `predict` give each example once, in order, on any number of
    processes; with `predict_with_generate` the predictions hold pad in place of −100; `max_tokens` makes batches by tokens.
    Raises InputError for models that are no encoder-decoders. See `DistillationMixin` for the rest.
    """

    takes_sequences = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not is_encoder_decoder(self.model):
            raise InputError(
                f"{type(self.model).__name__}", "an encoder-decoder", "For classifiers use DistillationTrainer."
            )
        if self.compute_metrics is not None:
            self._user_metrics, self.compute_metrics = self.compute_metrics, self._metrics_without_ignored

    @staticmethod
    def load_student(name: str) -> nn.Module:
        """The student behind a name or path."""
        return load_seq2seq(name)

    def prepare_teacher(self, source: Any) -> Teacher:
        """The teacher, its token map compared with the student's."""
        tokenizer = self.processing_class if hasattr(self.processing_class, "get_vocab") else None
        dtype = getattr(self.args, "teacher_dtype", None)
        return prepare_seq2seq_teacher(source, self.model, tokenizer, device=self.args.device, dtype=dtype)

    def student_inputs(self, inputs: Mapping[str, Any], labels: Tensor) -> Mapping[str, Any]:
        """The batch with decoder inputs, and without a cache, which training has no use for."""
        given = inputs.get(DECODER_IDS)
        return {
            **inputs,
            DECODER_IDS: decoder_inputs(self.accelerator.unwrap_model(self.model), labels) if given is None else given,
            "use_cache": False,
        }

    def teacher_inputs(self, inputs: Mapping[str, Any], labels: Tensor) -> Mapping[str, Any]:
        """The batch with its labels, which each teacher's decoder reads behind its own start."""
        if self.teacher is not None and inputs.get(DECODER_IDS) is not None:
            check_starts(self.accelerator.unwrap_model(self.model), self.teacher)
        return {**inputs, "labels": labels}

    # ---- Batches

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        most = getattr(self.args, "max_tokens", None)
        if most is None:
            return super()._get_train_sampler(train_dataset)
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        self._epoch_sampler = TokenBatchSampler(
            token_lengths(dataset),
            most,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            multiple=self.args.world_size,
        )
        return self._epoch_sampler

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> Any:
        if not is_training or getattr(self.args, "max_tokens", None) is None:
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
        config = self.accelerator.dataloader_config
        if config.split_batches or config.dispatch_batches:
            raise InputError("max_tokens with split_batches or dispatch_batches", "neither of the two")
        loader: Any = DataLoader(
            dataset,
            batch_sampler=self._get_train_sampler(dataset),
            collate_fn=self._get_collator_with_removed_columns(self.data_collator, description=description),
            num_workers=self.args.dataloader_num_workers,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            generator=torch.Generator().manual_seed(self.args.seed),  # of workers only: the order is the sampler's
        )
        even, config.even_batches = config.even_batches, False  # batches differ in size; their number is even already
        try:
            return self.accelerator.prepare(loader)
        finally:
            config.even_batches = even

    # ---- Evaluation

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.gather_function = self.accelerator.gather_for_metrics  # the stock one keeps the last batch's padding
        output = super().evaluation_loop(*args, **kwargs)
        if getattr(self.args, "predict_with_generate", False) and output.predictions is not None:
            output = output._replace(predictions=self._padded(output.predictions))
        return output

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None, **gen_kwargs: Any
    ) -> Any:
        if not getattr(self.args, "predict_with_generate", False) or prediction_loss_only:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        mine = {key: value for key, value in inputs.items() if key not in (*DECODER_KEYS, "labels", EXAMPLE_ID)}
        _, tokens, _ = Seq2SeqTrainer.prediction_step(self, model, mine, False, ignore_keys, **gen_kwargs)
        labels = inputs.get("labels")
        if labels is None:
            return None, tokens, None
        loss, _, _ = super().prediction_step(model, inputs, True, ignore_keys)
        return loss, tokens, labels.to(self.args.device)

    def _metrics_without_ignored(self, prediction: Any, **others: Any) -> dict[str, float]:
        if getattr(self.args, "predict_with_generate", False):
            prediction.predictions = self._padded(prediction.predictions)
        return self._user_metrics(prediction, **others)

    def _padded(self, predictions: Any) -> Any:
        """Generated ids with pad where batches of other lengths were filled up by −100, which no tokenizer decodes."""
        pad = getattr(self.processing_class, "pad_token_id", None)
        pad = self.model.config.pad_token_id if pad is None else pad
        if isinstance(predictions, Tensor):  # of one batch, with batch_eval_metrics
            return predictions.masked_fill(predictions == IGNORE_INDEX, pad)
        return np.where(predictions == IGNORE_INDEX, pad, predictions)


def token_lengths(dataset: Any) -> np.ndarray:
    """`[N, 2]` tokens of source and target: the data set's own `lengths`, or counted from `input_ids` and `labels`."""
    own = getattr(dataset, "lengths", None)
    if own is not None:
        return np.asarray(own)
    if not hasattr(dataset, "__len__"):
        raise InputError("max_tokens with data of unknown length", "a data set with __len__")
    sides = ["input_ids", "labels"]
    lost = [side for side in sides if len(dataset) and side not in dataset[0]]
    if lost:
        raise InputError(f"max_tokens with rows that have no {' and no '.join(lost)}", "rows of input_ids and labels")
    if set(sides) <= set(getattr(dataset, "column_names", None) or ()):
        dataset = dataset.select_columns(sides)  # spares a table its other columns
    return np.array([[len(row[side]) for side in sides] for row in (dataset[i] for i in range(len(dataset)))])

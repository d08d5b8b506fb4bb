"""What image and sequence trainers share: α and T in the stock trainer's own loop."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother
from transformers.trainer_utils import has_length

from hf_lskd import losses, models, schedule
from hf_lskd.arguments import PROBABILITIES, check_distillation
from hf_lskd.caching import take_cache
from hf_lskd.checkpoints import Checkpoints
from hf_lskd.clock import SaveByClock
from hf_lskd.ema import EmaCallback
from hf_lskd.errors import InputError
from hf_lskd.evaluation import Evaluation
from hf_lskd.host_memory import keep_freed_memory
from hf_lskd.penultimate import (
    EXAMPLE_ID,
    PenultimateBatch,
    class_statistics,
    forward,
    penultimate_batches,
    pop_targets,
    real_rows,
    refuse_whole,
    takes_images_by_name,
)
from hf_lskd.pushing import PushMixin
from hf_lskd.sharding import check_sharding, check_teacher_whole, check_tied, launched_with, zero_stage
from hf_lskd.stock import EpochCallback, LeanSteps, SmoothingHidden, Stock, as_stock_outputs
from hf_lskd.teacher import Teacher, check_classes, check_separate, logits_of, prepare_teacher
from hf_lskd.teacher_accuracy import report_teacher
from hf_lskd.teacher_cache import IMAGES

if TYPE_CHECKING:
    from hf_lskd.analysis.statistics import ClassStatistics

logger = logging.getLogger(__name__)

LOGGED = ("hard_loss", "soft_loss", "target_entropy", "agreement")


class DistillationMixin(PushMixin, LeanSteps, Evaluation, Checkpoints, Stock):
    """What image and sequence trainers share; put it before a `transformers.Trainer` class.

    Differences from the stock trainer, all deliberate:

    * Items are counted over the whole accumulated, all-process batch, ragged windows included; the stock trainer averages
      the micro-batches of models that take no `num_items_in_batch`.
    * With `average_tokens_across_devices=False` items are local and the loss is not multiplied by the world size.
    * `eval_nll` (α = 0) is always reported. `eval_loss` without a teacher is the stock trainer's; with one it is the
      student's hard loss, and the teacher is not run in evaluation.
    * A checkpoint whose weights transformers saved under other names is read back whole (`models.checkpoint`).
    * `example_id` survives `remove_unused_columns` and never reaches the model.
    * A data set that has `train_sampler()` is read in that order.
    * `optim="sgd"` is torch's fused SGD where the parameters allow it (`stock`); the same to rounding.
    * From `train()` on a CPU on, the process keeps the memory that it frees (`host_memory`, which says how to turn it off).
    * `create_model_card` and `push_to_hub` give the project's card, and upload no pickle (`pushing`).

    Logged with each training log, beside the stock names: `hard_loss`, and with a teacher `soft_loss`, `target_entropy`
    (mean entropy of the tempered targets, nats) and `agreement` (share of items whose top class is the teacher's).
    """

    takes_sequences = False  # labels `[B, L]` rather than `[B]`

    def __init__(
        self,
        model: nn.Module | str | None = None,
        args: TrainingArguments | None = None,
        *rest: Any,
        teacher_model: nn.Module | str | Sequence[nn.Module | str] | Teacher | None = None,
        **kwargs: Any,
    ) -> None:
        if args is not None:
            check_distillation(args)
        student = self.load_student(model) if isinstance(model, str) else model
        student = None if student is None else models.as_transformers(student)
        self.teacher: Teacher | None = None
        with SmoothingHidden(args, student):
            super().__init__(student, args, *rest, **kwargs)
        if student is None and hasattr(self.model, "config") and self.args.label_smoothing_factor:
            self.label_smoother = LabelSmoother(epsilon=self.args.label_smoothing_factor)
        self._logged = torch.zeros(len(LOGGED), device=self.args.device)
        self._logged_steps = 0
        self._eval_rows: list[Tensor] | None = None
        self._float_labels_are_probabilities: bool | None = None
        self._epoch_sampler: Any = None
        self.batch_source: Callable[[Iterator[Any]], Iterator[Any]] | None = None  # trainers in lockstep set one
        self.add_callback(EpochCallback(self))
        self._ema = EmaCallback(self) if getattr(self.args, "model_ema", None) is not None else None
        if self._ema is not None:
            self.add_callback(self._ema)
        if (minutes := getattr(self.args, "save_minutes", None)) is not None:
            self.add_callback(SaveByClock(minutes))
        self.model = self.model_wrapped = self._placed(self.model)
        if not self.label_names:  # a model whose forward takes no labels: the stock trainer would drop them
            self.label_names = ["labels"]
        if teacher_model is not None:
            self._take_teacher(teacher_model)

    # ---- What differs between kinds of models

    @staticmethod
    def load_student(name: str) -> nn.Module:
        """The student behind a name or path, ready to be trained."""
        return models.load_image_classifier(name)

    def prepare_teacher(self, source: Any) -> Teacher:
        """The teacher behind a module, a name or path, or a list of these, checked against the student."""
        return prepare_teacher(
            source,
            self.model,
            device=self.args.device,
            dtype=getattr(self.args, "teacher_dtype", None),
            data_statistics=self._data_statistics(),
        )

    def student_inputs(self, inputs: Mapping[str, Any], labels: Tensor) -> Mapping[str, Any]:
        """What the student is called with: a batch without its labels, and what the model would have made of them."""
        return inputs

    def teacher_logits(self, inputs: Mapping[str, Any], labels: Tensor, temperature: float = 1.0) -> Tensor:
        """The teacher's logits for the same batch, of the student's shape."""
        assert self.teacher is not None
        of = getattr(self.args, "kd_ensemble_of", PROBABILITIES)
        return self.teacher.logits(self.teacher_inputs(inputs, labels), temperature, of)

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """The precision of training for whatever a step computes: accelerate's own autocast covers the student alone."""
        return self.accelerator.autocast()

    def teacher_inputs(self, inputs: Mapping[str, Any], labels: Tensor) -> Mapping[str, Any]:
        """What a teacher is called with: a batch without its labels, and what it needs in their place."""
        return inputs

    # ---- Student and teacher

    def _placed(self, student: nn.Module) -> nn.Module:
        """The student with the batch norms and the memory format that the arguments ask for."""
        if getattr(self.args, "sync_batch_norm", False) and self.args.world_size > 1:
            student = nn.SyncBatchNorm.convert_sync_batchnorm(student)
        if getattr(self.args, "channels_last", False):
            student.to(memory_format=torch.channels_last)
        return student

    def _take_teacher(self, source: Any) -> None:
        if self.compute_loss_func is not None:
            raise InputError(
                "teacher_model together with compute_loss_func",
                "one of the two",
                "A custom loss leaves no place for the distillation loss; call hf_lskd.losses from your own function instead.",
            )
        if isinstance(source, Teacher):  # another trainer's: checked, placed and compiled there
            self.teacher = source
            return
        check_teacher_whole(zero_stage(self))
        with torch.random.fork_rng(devices=[]):  # reading a model draws weights: no chance of the student's
            self.teacher = self.prepare_teacher(source)
        for member in self.teacher.members if getattr(self.args, "channels_last", False) else ():
            member.model.to(memory_format=torch.channels_last)
        if self.args.torch_compile:
            self.teacher.compile()

    def _data_statistics(self) -> Any:
        """(mean, std) that the images were prepared with: the data set's own word, else the image processor's."""
        for source in (self.train_dataset, self.eval_dataset, self.processing_class):
            found = models.normalization_of(source)
            if found is not None:
                return found
        return None

    def call_model_init(self, trial: Any = None) -> nn.Module:
        student = models.as_transformers(super().call_model_init(trial))
        for member in self.teacher.members if self.teacher is not None else ():
            check_separate(member.model, student)
            check_classes(member.model, student)
        return self._placed(student)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        check_distillation(self.args)
        if self.args.device.type == "cpu":
            keep_freed_memory()
        self._logged.zero_()
        self._logged_steps = 0
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        asked = launched_with() or ("FSDP" if self.args.fsdp else None)
        check_sharding(asked, sharded, getattr(self.args, "channels_last", False))
        if self.is_fsdp_enabled:
            check_tied(self.model)
        if self._ema is not None and sharded:
            refuse_whole("model_ema")
        if self.teacher is not None:
            self._begin_teacher(self.teacher)
        return super().train(*args, **kwargs)

    def _begin_teacher(self, teacher: Teacher) -> None:
        if not teacher.reported and self.model is not None:  # None: a search's second trial
            report_teacher(self)
            teacher.reported = True
        if self.batch_source is None:
            teacher.store = None  # of an earlier run, whose data may have been others
        if teacher.store is None and getattr(self.args, "teacher_cache", None):
            take_cache(self)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], *args: Any) -> Any:
        batches = epoch_iterator if self.batch_source is None else self.batch_source(epoch_iterator)
        return super().get_batch_samples(batches, *args)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        fresh = self.lr_scheduler is None
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if fresh:
            schedule.reshape(scheduler, self.args, num_training_steps, self._steps_per_epoch(num_training_steps))
        return scheduler

    def _steps_per_epoch(self, total: int) -> float:
        if self.args.max_steps <= 0:
            return total / self.args.num_train_epochs
        if getattr(self.args, "lr_step_epochs", None) is None:
            return 1.0  # nothing counts epochs
        loader = self.get_train_dataloader()
        if not has_length(loader):
            raise InputError(
                "lr_step_epochs with data of unknown length",
                "a data set with __len__",
                "For a stream use a schedule over max_steps, such as lr_scheduler_type.",
            )
        return len(loader) / self.args.gradient_accumulation_steps

    # ---- Which loss applies

    def owns(self, labels: Any) -> bool:
        """Whether our loss applies to a batch with these labels, as far as can be told before the forward pass."""
        if not isinstance(labels, Tensor) or self.compute_loss_func is not None or self._loss_shifts_labels:
            return False
        config = getattr(self.model, "config", None)
        problem = getattr(config, "problem_type", None)
        if problem not in (None, "single_label_classification") or getattr(config, "num_labels", 2) == 1:
            return False
        if labels.is_floating_point():
            return labels.dim() == 2 and self._are_probabilities(labels, problem)
        return labels.dim() == 1 or (labels.dim() == 2 and bool(getattr(config, "is_encoder_decoder", False)))

    def _are_probabilities(self, labels: Tensor, problem: str | None) -> bool:
        """Float labels: distributions (mixup) where the task says single-label, else told from the first batch's row sums."""
        if problem == "single_label_classification":
            return True
        if self._float_labels_are_probabilities is None:
            sums = labels.sum(-1)
            self._float_labels_are_probabilities = bool(
                (labels >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
            )
            logger.warning(
                "Labels are floating point: taken for %s, from the first batch. Set config.problem_type to say which.",
                "probabilities" if self._float_labels_are_probabilities else "the model's own kind of targets",
            )
        return self._float_labels_are_probabilities

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        if (
            not batch_samples
            or not isinstance(batch_samples[0], Mapping)
            or not self.owns(batch_samples[0].get("labels"))
        ):
            return super()._get_num_items_in_batch(batch_samples, device)
        items = torch.stack([losses.count_items(batch["labels"]) for batch in batch_samples]).sum().to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            items = self.accelerator.reduce(items, "sum")
        return items

    # ---- The loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not self.owns(inputs.get("labels")):
            return self._stock_loss(model, inputs, return_outputs, num_items_in_batch)
        model_inputs = dict(inputs)
        labels, _ = pop_targets(model_inputs)
        outputs = forward(model, self.student_inputs(model_inputs, labels), takes_images_by_name(self.model))
        logits = logits_of(outputs)
        if logits.shape[:-1] != labels.shape[: logits.dim() - 1] or (
            labels.is_floating_point() and labels.shape != logits.shape
        ):
            return self._stock_loss(model, inputs, return_outputs, num_items_in_batch)
        evaluating = self._eval_rows is not None
        if evaluating:
            self._note_rows(logits, labels)
            num_items_in_batch = None  # the evaluation loop weighs batches itself
            mine = max(1, real_rows(self.accelerator, len(labels)))  # of padding alone the loop drops the loss
            logits, labels = logits[:mine], labels[:mine]
        terms, readings = self._terms(logits, model_inputs, labels, num_items_in_batch, with_teacher=not evaluating)
        self.loss_is_scaled_for_ga = True if num_items_in_batch is not None else None
        loss = terms.total
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients over processes
        if not evaluating and model.training:
            self._note_terms(terms, readings, num_items_in_batch)
        return (loss, as_stock_outputs(outputs)) if return_outputs else loss

    def _terms(
        self, logits: Tensor, inputs: Mapping[str, Any], labels: Tensor, items: Any, with_teacher: bool
    ) -> tuple[losses.LossTerms, losses.Readings | None]:
        args = self.args
        temperature = getattr(args, "kd_temperature", 1.0)
        taught = self.teacher is not None and with_teacher
        teacher_logits = self.teacher_logits(inputs, labels, temperature) if taught else None
        return losses.distillation_terms(
            logits,
            teacher_logits,
            labels,
            temperature=temperature,
            kd_weight=getattr(args, "kd_weight", 1.0),
            smoothing=args.label_smoothing_factor,
            num_items=items,
            scale_student=getattr(args, "kd_scale_student", True),
            top_k=getattr(args, "kd_top_k", None),
            loss_scale=getattr(args, "kd_loss_scale", 1.0),
        )

    def _stock_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool, num_items_in_batch: Any
    ) -> Any:
        if self.teacher is not None:
            labels = inputs.get("labels")
            shape = f"labels {tuple(labels.shape)} of {labels.dtype}" if isinstance(labels, Tensor) else "no labels"
            raise InputError(
                f"distillation of {type(self.model).__name__} with {shape}",
                "single-label classification (integer labels [N] or probabilities [N, C]) or an encoder-decoder with labels [B, L]",
                "Without teacher_model this batch is trained with the model's own loss.",
            )
        self.loss_is_scaled_for_ga = None
        inputs.pop(EXAMPLE_ID, None)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _prepare_inputs(self, inputs: Any) -> Any:
        inputs = super()._prepare_inputs(inputs)
        if getattr(self.args, "channels_last", False) and isinstance(inputs, Mapping) and IMAGES in inputs:
            inputs = {**inputs, IMAGES: inputs[IMAGES].contiguous(memory_format=torch.channels_last)}
        return inputs

    # ---- Logging, without a further pass or a synchronisation a step

    def _note_terms(self, terms: losses.LossTerms, readings: losses.Readings | None, items: Any) -> None:
        values = [terms.hard] if terms.soft is None or readings is None else [terms.hard, terms.soft, *readings]
        row = torch.stack([value.detach().float() for value in values])
        self._logged[: len(values)] += row if items is not None else row / self.args.gradient_accumulation_steps
        self._logged_steps += bool(self.accelerator.gradient_state.sync_gradients)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._logged_steps:
            shares = self.args.average_tokens_across_devices
            total = self.accelerator.reduce(self._logged, "sum" if shares else "mean") / self._logged_steps
            names = LOGGED if self.teacher is not None else LOGGED[:1]
            logs.update(zip(names, total.tolist()))
            self._logged.zero_()
            self._logged_steps = 0
        super().log(logs, *args, **kwargs)

    # ---- The penultimate layer

    def penultimate(self, dataset: Any = None) -> Iterator[PenultimateBatch]:
        """This process's share of the evaluation loop, batch by batch: the classifier's input beside logits and labels.

        In eval mode, each example once: the rows that pad the last batch to equal size on every process are dropped.
        `dataset` None: the evaluation set. Raises InputError when no single layer says the logits.
        """
        return penultimate_batches(self, dataset)

    def class_statistics(self, dataset: Any = None) -> "ClassStatistics":
        """Per-class sums of the penultimate embeddings over `dataset` (None: the evaluation set), merged over processes.

        In eval mode, each example once; no features are gathered. Raises InputError when no classifier can be found and
        when a process has no example.
        """
        return class_statistics(self, dataset)

    # ---- Data

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        wanted = [EXAMPLE_ID] if takes_images_by_name(self.model) else [EXAMPLE_ID, IMAGES, "labels"]
        self._signature_columns += [name for name in wanted if name not in self._signature_columns]

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        own = getattr(dataset, "train_sampler", None)
        if own is None:
            return super()._get_train_sampler(train_dataset)
        self._epoch_sampler = own()
        return self._epoch_sampler

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        loader: Any = super()._get_dataloader(*args, **kwargs)
        if hasattr(self.train_dataset, "train_sampler"):
            # A loader draws its workers' seed from the global generator whenever workers start. Persistent ones start anew
            # after a resume, which would shift every later dropout mask; such a data set needs no worker's seed.
            loader.base_dataloader.generator = torch.Generator().manual_seed(self.args.seed)
        return loader

"""Training arguments with the temperature, weight and scale of distillation beside Hugging Face's own fields."""

from dataclasses import dataclass, field

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from hf_lskd import losses
from hf_lskd.errors import InputError, nearest

TEACHER_DTYPES = ("float32", "bfloat16", "float16")
ENSEMBLES = (PROBABILITIES, LOGITS) = ("probabilities", "logits")


@dataclass
class DistillationFields:
    """What distillation adds to training arguments, for every kind of model; put it before a `TrainingArguments` class.

    Smoothing is Hugging Face's own `label_smoothing_factor`: it smooths the hard loss of the model that is being trained.
    All of these are read at each step, so a callback or a hyper-parameter search may change them.
    Raises InputError for values outside their range.
    """

    kd_temperature: float = field(
        default=1.0, metadata={"help": "Temperature T that divides the logits of both sides; the loss carries T²."}
    )
    kd_weight: float = field(
        default=1.0, metadata={"help": "Weight of the soft loss; 1 − kd_weight is the hard loss's. 1 is the paper's."}
    )
    kd_scale_student: bool = field(
        default=True,
        metadata={"help": "Whether T divides the student's logits too (the paper), or not (Müller et al.)."},
    )
    kd_top_k: int | None = field(
        default=None,
        metadata={"help": "Distil only the teacher's k most probable classes, renormalised; none for all."},
    )
    kd_loss_scale: float = field(
        default=1.0, metadata={"help": "A constant factor on the soft loss, beside T². 1 is the paper's loss."}
    )
    kd_ensemble_of: str = field(
        default=PROBABILITIES,
        metadata={
            "help": "What several teachers' targets are the mean of: tempered probabilities (Hinton et al.) or logits."
        },
    )
    lr_step_epochs: float | None = field(
        default=None,
        metadata={"help": "Multiply the learning rate by lr_step_factor after every so many epochs; none: never."},
    )
    lr_step_factor: float = field(default=0.1, metadata={"help": "What lr_step_epochs multiplies by."})
    warmup_init_lr: float = field(
        default=0.0, metadata={"help": "Learning rate that the warm-up begins at (fairseq's warmup-init-lr)."}
    )
    teacher_dtype: str | None = field(
        default=None, metadata={"help": "Precision the teacher runs in: float32, bfloat16 or float16; none: as loaded."}
    )
    teacher_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder for the teacher's logits on the training set, computed once and then read; none: off. For data "
            "that look the same in every epoch, or in every k-th (a data set with augmentation_versions)."
        },
    )
    teacher_cache_top_k: int | None = field(
        default=None,
        metadata={"help": "Keep only the teacher's k most probable classes there, and the rest's total; none: all."},
    )
    model_ema: float | None = field(
        default=None,
        metadata={"help": "Decay of an exponential moving average of the student, which is evaluated and saved."},
    )
    save_minutes: float | None = field(
        default=None,
        metadata={"help": "Write a checkpoint every so many minutes of the first process's clock; none: do not."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # of the stock class that follows
        check_distillation(self)  # type: ignore[arg-type]


@dataclass
class DistillationArguments(DistillationFields, TrainingArguments):
    """`transformers.TrainingArguments` and what distillation adds (see `DistillationFields`), for images."""

    sync_batch_norm: bool = field(
        default=False, metadata={"help": "Batch statistics over all processes (torch.nn.SyncBatchNorm)."}
    )
    channels_last: bool = field(
        default=False, metadata={"help": "Keep image tensors and convolution weights in channels-last memory format."}
    )


@dataclass
class Seq2SeqDistillationArguments(DistillationFields, Seq2SeqTrainingArguments):
    """`transformers.Seq2SeqTrainingArguments` and what distillation adds (see `DistillationFields`)."""

    max_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Training batches of at most this many padded tokens a process (the longer side counts), in place of "
            "per_device_train_batch_size sentences; none: batches of sentences."
        },
    )


def check_distillation(args: TrainingArguments) -> None:
    """Raise InputError for an α, T, weight, k or scale out of range, as the losses would, before anything runs."""
    losses.check_smoothing(args.label_smoothing_factor)
    losses.check_temperature(getattr(args, "kd_temperature", 1.0))
    losses.check_kd_weight(getattr(args, "kd_weight", 1.0))
    losses.check_top_k(getattr(args, "kd_top_k", None))
    losses.check_top_k(getattr(args, "teacher_cache_top_k", None))
    losses.check_loss_scale(getattr(args, "kd_loss_scale", 1.0))
    ensemble = getattr(args, "kd_ensemble_of", PROBABILITIES)
    if ensemble not in ENSEMBLES:
        raise InputError(f"kd_ensemble_of = {ensemble!r}", ", ".join(ENSEMBLES), nearest(str(ensemble), ENSEMBLES))
    dtype, decay = getattr(args, "teacher_dtype", None), getattr(args, "model_ema", None)
    most, minutes = getattr(args, "max_tokens", None), getattr(args, "save_minutes", None)
    if minutes is not None and minutes <= 0:
        raise InputError(f"save_minutes = {minutes}", "a number of minutes above 0, or none", "10 is usual.")
    if most is not None and most < 1:
        raise InputError(f"max_tokens = {most}", "a whole number from 1, or none", "The paper uses 4096.")
    check_schedule(args)
    if dtype not in (None, *TEACHER_DTYPES):
        raise InputError(f"teacher_dtype = {dtype!r}", ", ".join(TEACHER_DTYPES), nearest(str(dtype), TEACHER_DTYPES))
    if decay is not None and not 0 < decay < 1:
        raise InputError(
            f"model_ema = {decay}", "a decay between 0 and 1, or none", "0.999 is usual for long training."
        )


def check_schedule(args: TrainingArguments) -> None:
    """Raise InputError for a stepwise learning rate or a start of the warm-up out of range."""
    every, factor = getattr(args, "lr_step_epochs", None), getattr(args, "lr_step_factor", 0.1)
    start = getattr(args, "warmup_init_lr", 0.0)
    if every is not None and every <= 0:
        raise InputError(
            f"lr_step_epochs = {every}", "a number of epochs above 0, or none", "The paper uses 30 and 80."
        )
    if not 0 < factor <= 1:
        raise InputError(f"lr_step_factor = {factor}", "a number above 0, at most 1", "0.1 divides by ten.")
    if not 0 <= start <= args.learning_rate:
        raise InputError(f"warmup_init_lr = {start}", f"a number from 0 to learning_rate, {args.learning_rate}")

"""What every kind of work has in common: a recipe's data opened once, the models of its cells, seeds and training arguments."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from hf_lskd.analysis.gradient import TargetGradient
from hf_lskd.analysis.semantics import SimilarSets
from hf_lskd.analysis.statistics import ClassStatistics
from hf_lskd.errors import InputError, nearest
from hf_lskd.penultimate import ClassSums, gathered, merged
from hf_lskd.recipe import EtaSpec, ModelSpec, Recipe
from hf_lskd.record import CACHE, Cell, model_folder
from hf_lskd.teacher import Teacher, ensemble_logits
from hf_lskd.teacher_pass import taught_batches

SPLITS = ("train", "validation")  # of statistics: what was trained on, and what models are judged on


class SplitReading(NamedTuple):
    """One evaluation pass over a split: the statistics of the embeddings, and per item what was said of it."""

    statistics: ClassStatistics
    predictions: dict[str, Tensor]  # label, prediction, confidence, nll, …: each [N], in the data's order
    targets: TargetGradient | None


class TaughtReading(NamedTuple):
    """One pass of an ensemble over a split: per item what it said, and by T what its targets are like."""

    predictions: dict[str, Tensor]  # label, prediction, confidence, nll, …: each [N], in the data's order
    targets: dict[float, TargetGradient]


class Judged(NamedTuple):
    """A split as models are judged on it: `say` makes rows of a batch's logits, labels and example ids; g is of each
    `stride`-th row of logits."""

    dataset: Any
    say: Callable[[Tensor, Tensor, Tensor | None], dict[str, Tensor]]
    stride: int = 1


class Features(NamedTuple):
    """Penultimate embeddings `[N, D]` of some classes, their labels `[N]`, and the last layer that reads them."""

    features: Tensor
    labels: Tensor
    weight: Tensor  # [C, D]
    bias: Tensor | None  # [C]


class Task(ABC):
    """The data of a recipe, opened once, and everything that a cell of its study does with them.

    `metric` is what models are judged by, higher is better; `curve_metric` what the best epoch is chosen by, the highest
    where `curve_sign` is 1, the lowest where it is −1.
    """

    metric: ClassVar[str]
    curve_metric: ClassVar[str]
    curve_sign: ClassVar[int]
    class_names: Sequence[str]
    fingerprint: str
    groups: Sequence[str] | None = None  # a semantic group for each class, where the data have some
    synsets: Sequence[str] | None = None  # a WordNet 3.0 id for each class, where the data say them

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.data = recipe.data.to_dict()

    def class_index(self, name: str) -> int:
        """The index of a class by name. Raises InputError with the nearest names."""
        names = list(self.class_names)
        if name not in names:
            raise InputError(f"class {name!r}", f"one of the data's {len(names)} classes", nearest(name, names))
        return names.index(name)

    def eta_targets(self, eta: EtaSpec) -> list[int] | None:
        """The indices of the target classes that the recipe names; None: all that have S1 and S2. Errors as `class_index`."""
        return None if eta.targets == "all" else [self.class_index(name) for name in eta.targets]

    def spec(self, cell: Cell) -> ModelSpec:
        """The model that a cell trains, or the finished teacher that the recipe brings in its place."""
        if cell.role == "teacher":
            path = (self.recipe.teacher.path or {}).get(cell.label_smoothing)
            return (
                self.recipe.teacher
                if path is None
                else replace(self.recipe.teacher, model=str(model_folder(Path(path))))
            )
        return next(student for student in self.recipe.students if student.name == cell.student)

    def data_seed(self, cell: Cell) -> int:
        """What the order and the augmentation of a cell's data are drawn from: the recipe's seed for all cells, or its own."""
        return self.recipe.data_seed(cell.seed)

    def batches_of(self, cell: Cell) -> dict[str, Any]:
        """All that decides which batches a student reads, and what its teachers say of them, beside who these are."""
        training = self.recipe.training_of(self.spec(cell))
        return {
            "data_seed": self.data_seed(cell),
            "training": {key: value for key, value in training.items() if key not in LEARNING},
        }

    def grid_arguments(self, cell: Cell, loss_scale: float) -> dict[str, Any]:
        """What the cell's point of the grid means as training arguments."""
        if cell.role == "teacher":
            return {"label_smoothing_factor": cell.label_smoothing}
        return {
            "label_smoothing_factor": cell.student_label_smoothing,
            "kd_temperature": cell.temperature,
            "kd_weight": cell.kd_weight,
            "kd_scale_student": cell.scale_student,
            "kd_top_k": cell.kd_top_k,
            "kd_ensemble_of": self.recipe.teacher.ensemble_of,
            "kd_loss_scale": loss_scale,
        }

    def cell_arguments(self, cell: Cell, folder: Path, loss_scale: float, others: Mapping[str, Any]) -> dict[str, Any]:
        """The cell's training arguments: the recipe's, the model's own, what the grid says, and `others` on top."""
        own = self.recipe.training_of(self.spec(cell))
        return {
            "output_dir": str(folder),
            "seed": derived_seed(cell.seed, "training"),
            "data_seed": derived_seed(self.data_seed(cell), "data"),
            "model_ema": self.recipe.switches.ema,
            **QUIET,
            **({} if own.get("save_minutes") is None else {"save_total_limit": 2}),
            **own,
            **self.grid_arguments(cell, loss_scale),
            **others,
        }

    def cache_arguments(self, teachers: Sequence[Path]) -> dict[str, Any]:
        """Where the logits of the model in the folder are kept, beside it, where the recipe wants that."""
        kept = self.recipe.switches.teacher_cache
        if not teachers or kept == "none":
            return {}
        return {
            "teacher_cache": str(teachers[0].parent / CACHE),
            "teacher_cache_top_k": None if kept == "logits" else kept,
        }

    # ---- What a kind of work brings

    @abstractmethod
    def check(self, spec: ModelSpec) -> None:
        """Raise InputError for a model that the recipe names and that cannot be had or does not fit the data."""

    @abstractmethod
    def check_teacher(self, path: Path) -> None:
        """Raise InputError for a finished teacher in `path` that cannot be read or does not fit the students."""

    @abstractmethod
    def build(self, cell: Cell) -> Any:
        """The cell's model before training; its initial weights depend on the cell's seed and role alone, not on α or T."""

    @abstractmethod
    def trainer(
        self,
        cell: Cell,
        folder: Path,
        *,
        teachers: Sequence[Path] = (),
        loss_scale: float = 1.0,
        callbacks: Any = (),
        prepared: Teacher | None = None,
    ) -> Any:
        """A trainer ready to train the cell, distilling from the models in these folders when it is a student.

        `prepared` are those teachers where another trainer of the same student has read them already.
        """

    @abstractmethod
    def reader(self, cell: Cell, folder: Path) -> Any:
        """A trainer around the finished model in `folder`, for reading only."""

    @abstractmethod
    def save(self, model: Any, spec: ModelSpec, folder: Path) -> None:
        """The model with what prepares its input."""

    @abstractmethod
    def judged(self, spec: ModelSpec, split: str) -> Judged:
        """A split as the model of `spec` is judged on it."""

    def read_split(
        self,
        trainer: Any,
        spec: ModelSpec,
        split: str,
        temperatures: Iterable[float] = (),
        top_k: Iterable[int | None] = (None,),
    ) -> SplitReading:
        """One pass over a split in evaluation mode: embeddings' statistics, predictions, and g of its logits."""
        return reading(trainer, self.judged(spec, split), temperatures, top_k)

    def read_teachers(
        self,
        trainer: Any,
        teachers: Sequence[Path],
        spec: ModelSpec,
        split: str,
        temperatures: Iterable[float] = (),
        top_k: Iterable[int | None] = (None,),
    ) -> TaughtReading:
        """One pass of an ensemble, the models in these folders, over a split: what it says at T = 1, and g of its targets."""
        rows = self.judged(spec, split)
        trainer.eval_dataset = rows.dataset  # whose normalisation each teacher's own is told from
        trainer.teacher = trainer.prepare_teacher([str(folder) for folder in teachers])
        return teachers_reading(trainer, rows, self.recipe.teacher.ensemble_of, temperatures, top_k)

    @abstractmethod
    def metrics(self, predictions: Mapping[str, Tensor]) -> dict[str, float]:
        """The metrics of one split's predictions."""

    def output(self, trainer: Any, folder: Path) -> dict[str, Any]:
        """What the model makes of the held-out data beyond predictions: files in `folder`, further metrics and facts."""
        return {"metrics": {}}

    def check_eta(self, eta: EtaSpec) -> None:  # noqa: B027  # a hook: most have nothing to check
        """Raise InputError, before any training, for what `eta` names and the data do not have."""

    def sets_of_teacher(self, eta: EtaSpec, folder: Path) -> dict[int, SimilarSets] | None:
        """S1 and S2 from the finished teacher's cell in `folder`, where `eta.sets` takes them from there; None: it does not."""
        return None

    @abstractmethod
    def features(self, cell: Cell, folder: Path, classes: Sequence[int], split: str, most: int) -> Features:
        """Embeddings of the first `most` items of each class, from the model saved in `folder`."""


# Training arguments that a study sets unless the recipe says otherwise: silent, no checkpoints, one evaluation an epoch.
QUIET: dict[str, Any] = {
    "report_to": "none",
    "disable_tqdm": True,
    "eval_strategy": "epoch",
    "logging_strategy": "epoch",
    "save_strategy": "no",
    "per_device_eval_batch_size": 256,
    "dataloader_pin_memory": torch.cuda.is_available(),
}

# Training arguments of the optimizer and its schedule: students may differ in them and read the same batches.
LEARNING = (
    *("optim", "optim_args", "learning_rate", "weight_decay", "max_grad_norm"),
    *("adam_beta1", "adam_beta2", "adam_epsilon"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_init_lr", "lr_step_epochs", "lr_step_factor"),
)

# What a trainer that only reads needs of its own: nothing that asks for an evaluation set or a schedule.
READING: dict[str, Any] = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "lr_scheduler_type": "constant",
    "lr_scheduler_kwargs": None,
}


def reading(
    trainer: Any, rows: Judged, temperatures: Iterable[float] = (), top_k: Iterable[int | None] = (None,)
) -> SplitReading:
    """One pass of a trainer's model, merged over processes: statistics by class, what `rows.say` makes of each batch, and g of
    the logits at these temperatures, for the targets of each `top_k`."""
    sums = ClassSums()
    temperatures = tuple(temperatures)
    targets = TargetGradient(temperatures, top_k) if temperatures else None
    said: list[dict[str, Tensor]] = []
    for batch in trainer.penultimate(rows.dataset):
        sums.add(batch)
        said.append(rows.say(batch.logits, batch.labels, batch.example_id))
        if targets is not None:
            targets.update(batch.logits[:: rows.stride])
    statistics = sums.total()
    assert statistics is not None  # a source refuses an empty split
    statistics = merged(trainer.accelerator, statistics)
    targets = None if targets is None else merged(trainer.accelerator, targets)
    return SplitReading(statistics, in_order(gathered(trainer.accelerator, said)), targets)


def teachers_reading(
    trainer: Any, rows: Judged, of: str, temperatures: Iterable[float] = (), top_k: Iterable[int | None] = (None,)
) -> TaughtReading:
    """One pass of a trainer's teachers together, merged over processes. What they say is at T = 1; at another T the logits of
    an ensemble of probabilities are others, so each T has its own."""
    targets = {t: TargetGradient([t], top_k) for t in temperatures}
    said: list[dict[str, Tensor]] = []
    for batch in taught_batches(trainer, rows.dataset):
        said.append(rows.say(ensemble_logits(batch.outputs, 1.0, of), batch.labels, batch.example_id))
        sample = [z[:: rows.stride] for z in batch.outputs]
        for t, seen in targets.items():
            seen.update(ensemble_logits(sample, t, of))
    found = {t: merged(trainer.accelerator, seen) for t, seen in targets.items()}
    return TaughtReading(in_order(gathered(trainer.accelerator, said)), found)


def said(logits: Tensor, labels: Tensor, example_id: Tensor | None) -> dict[str, Tensor]:
    """What one batch of logits `[N, C]` says of each item, on the CPU: its label, the top class and its probability, nll in nats."""
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    confidence, prediction = log_probs.max(-1)
    rows = {
        "label": labels,
        "prediction": prediction,
        "confidence": confidence.exp(),
        "nll": -log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1),
        "example_id": example_id if example_id is not None else torch.arange(len(labels)),
    }
    return {key: value.cpu() for key, value in rows.items()}


def as_teacher_model(folders: Sequence[Path]) -> str | list[str] | None:
    """The models in these folders as a trainer takes them: none, one, or several at once."""
    paths = [str(folder) for folder in folders]
    return paths if len(paths) > 1 else paths[0] if paths else None


def derived_seed(seed: int, *use: str) -> int:
    """A seed for one use, so that what two uses draw from one seed is unrelated."""
    return int.from_bytes(hashlib.sha256(repr((seed, *use)).encode()).digest()[:4], "big") % 2**31


def in_order(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Batches of all processes as one table in the data's order; the items of one example stay in theirs."""
    table = {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
    order = table.pop("example_id").argsort(stable=True)
    return {key: value[order] for key, value in table.items()}

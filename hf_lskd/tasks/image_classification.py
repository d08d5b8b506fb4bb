"""Image classification as one kind of work: data, models and metrics for teachers and students, and how a cell is trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Subset
from transformers import PrinterCallback

from hf_lskd import models
from hf_lskd.analysis.calibration import expected_calibration_error
from hf_lskd.analysis.semantics import SimilarSets, sets_from_centroids, sets_from_confusion
from hf_lskd.analysis.statistics import ClassStatistics
from hf_lskd.arguments import DistillationArguments
from hf_lskd.data.dataset import ImageDataset
from hf_lskd.data.images import ImageSource, load_images
from hf_lskd.errors import InputError
from hf_lskd.recipe import EtaSpec, ModelSpec, Recipe
from hf_lskd.record import PREDICTIONS, STATISTICS, Cell
from hf_lskd.tasks.task import READING, Features, Judged, Task, as_teacher_model, derived_seed, said
from hf_lskd.teacher import Teacher, check_classes
from hf_lskd.trainer import DistillationTrainer


class ImageClassification(Task):
    """The data of a recipe, opened once, and everything that a cell of its study does with them."""

    metric = "top1"
    curve_metric = "top1"
    curve_sign = 1

    def __init__(self, recipe: Recipe, cache_dir: Path | None = None) -> None:
        super().__init__(recipe)
        self.source: ImageSource = load_images(self.data, cache_dir=cache_dir)
        self.class_names = self.source.class_names
        self.groups = self.source.groups
        self.synsets = self.source.synsets
        self.fingerprint = self.source.fingerprint

    # ---- What a cell is made of

    def check(self, spec: ModelSpec) -> None:
        """Raise InputError for a model that is not known, and for weights that are not there."""
        self.data_config(spec)
        if isinstance(spec.pretrained, str) and not Path(spec.pretrained).exists():
            raise InputError(f"pretrained: {spec.pretrained} does not exist", "true, false, or the path of weights")

    def check_teacher(self, path: Path) -> None:
        """Raise InputError for a finished teacher of other classes than the students'."""
        first = Cell("student", 0.0, self.recipe.grid.seed[0], self.recipe.students[0].name)
        check_classes(models.load_trained(str(path)), self.build(first))

    def data_config(self, spec: ModelSpec) -> dict[str, Any]:
        """How images are prepared for a model (timm's keys): its own configuration, and what the recipe says otherwise."""
        import timm.data

        data = self.data
        own = models.pretrained_cfg(str(spec.model))
        if not own and not (data.get("mean") and data.get("std")):
            models.check_readable(str(spec.model))
            raise InputError(
                f"model {spec.model} does not say how its images are prepared",
                "a folder with preprocessor_config.json, or data.mean and data.std in the recipe",
            )
        config = timm.data.resolve_data_config({"in_chans": 3}, own, verbose=False)
        pixels = (
            self.source.train.pixels
        )  # a split held as one array of small pictures is not blown up to the model's usual size
        native = None if pixels is None else pixels.shape[1:3]
        size = data.get("image_size") or spec.model_args.get("img_size") or native
        if size is not None:
            config["input_size"] = (3, size, size) if isinstance(size, int) else (3, *size)
            config["crop_pct"] = 1.0
        for key in ("mean", "std", "crop_pct"):
            if data.get(key) is not None:
                config[key] = tuple(data[key]) if key != "crop_pct" else data[key]
        return config

    def build(self, cell: Cell) -> Any:
        """The cell's model before training; its initial weights depend on the cell's seed and role alone, not on α or T."""
        spec = self.spec(cell)
        with torch.random.fork_rng():
            torch.manual_seed(derived_seed(cell.seed, "model", cell.role, cell.student))
            return models.load_image_classifier(
                str(spec.model),
                class_names=self.class_names,
                pretrained=spec.pretrained,
                model_args=spec.model_args,
                data_config={k: v for k, v in self.data_config(spec).items() if k != "crop_mode"},
            )

    def batches_of(self, cell: Cell) -> dict[str, Any]:
        """How images are prepared decides too: models of another size or normalisation read other batches."""
        return {**super().batches_of(cell), "images": self.data_config(self.spec(cell))}

    def dataset(
        self, spec: ModelSpec, split: str, *, train: bool, seed: int = 0, versions: int | None = None
    ) -> ImageDataset:
        """`split` as a torch data set: under the training transform (pure in seed, epoch and index; `versions` of it an image
        where not None) or the evaluation one."""
        data = self.data
        images = getattr(self.source, split)
        if not train:
            return ImageDataset(images, self.data_config(spec), num_classes=len(self.class_names))
        mix = {key: data.get(key) or 0.0 for key in ("mixup", "cutmix")}
        return ImageDataset(
            images,
            self.data_config(spec),
            augmentation=data.get("augmentation") or "none",
            augmentation_versions=versions,
            train=True,
            data_seed=derived_seed(seed, "data"),
            mix=mix if any(mix.values()) else None,
            num_classes=len(self.class_names),
        )

    def versions(self, cell: Cell) -> int | None:
        """How many augmented versions of each image the cell is trained on; None: ever new ones, as every teacher."""
        versions: int | None = self.data.get("augmentation_versions") if cell.role == "student" else None
        return versions

    def arguments(self, cell: Cell, folder: Path, loss_scale: float = 1.0, **others: Any) -> DistillationArguments:
        """The cell's training arguments: the recipe's, the model's own, what the grid says, and `others` on top."""
        switches = self.recipe.switches
        return DistillationArguments(
            sync_batch_norm=switches.sync_batchnorm,
            channels_last=switches.channels_last,
            **self.cell_arguments(cell, folder, loss_scale, others),
        )

    def trainer(
        self,
        cell: Cell,
        folder: Path,
        *,
        teachers: Sequence[Path] = (),
        loss_scale: float = 1.0,
        callbacks: Sequence[Any] = (),
        prepared: Teacher | None = None,
    ) -> DistillationTrainer:
        """A trainer ready to train the cell, distilling from the models in these folders when it is a student.

        `prepared` are those teachers where another trainer of the same student has read them already.
        """
        spec = self.spec(cell)
        model, args = self.build(cell), self.arguments(cell, folder, loss_scale, **self.cache_arguments(teachers))
        trainer = DistillationTrainer(
            model,
            args,
            processing_class=self.processor(model, spec),
            train_dataset=self.dataset(
                spec, "train", train=True, seed=self.data_seed(cell), versions=self.versions(cell)
            ),
            eval_dataset=self.dataset(spec, "validation", train=False),
            compute_metrics=top_accuracies,
            preprocess_logits_for_metrics=label_ranks,
            callbacks=list(callbacks),
            teacher_model=prepared or as_teacher_model(teachers),
        )
        trainer.remove_callback(PrinterCallback)  # the study has its own progress line, the record its own curve
        return trainer

    # ---- What is measured of a trained cell

    def judged(self, spec: ModelSpec, split: str) -> Judged:
        """A split under the evaluation transform."""
        return Judged(self.dataset(spec, split, train=False), say)

    def metrics(self, predictions: Mapping[str, Tensor]) -> dict[str, float]:
        """top1, top5 and ece in percent, nll in nats, over one split's predictions."""
        correct = predictions["prediction"] == predictions["label"]
        return {
            "top1": 100 * float(correct.double().mean()),
            "top5": 100 * float((predictions["rank"] < 5).double().mean()),
            "ece": expected_calibration_error(predictions["confidence"], correct),
            "nll": float(predictions["nll"].double().mean()),
        }

    def save(self, model: Any, spec: ModelSpec, folder: Path) -> None:
        """The model with what prepares its images."""
        model.save_pretrained(folder)
        processor = self.processor(model, spec)
        if processor is not None:
            processor.save_pretrained(folder)

    def processor(self, model: Any, spec: ModelSpec) -> Any:
        """What is saved beside a model to prepare its images; None for timm's wrapper, whose configuration says it."""
        return None if hasattr(model, "timm_model") else models.image_processor(self.data_config(spec))

    def reader(self, cell: Cell, folder: Path, dataset: Any = None) -> DistillationTrainer:
        """A trainer around the finished model in `folder`, for reading only."""
        args = self.arguments(cell, folder, **READING)
        return DistillationTrainer(models.load_trained(str(folder)), args, eval_dataset=dataset)

    def sets_of_teacher(self, eta: EtaSpec, folder: Path) -> dict[int, SimilarSets] | None:
        """S1 and S2 by the teacher's centroids over the training split, which nothing is judged on, or by the mistakes that it
        makes on the validation split: on what it was trained on it may make none."""
        targets, sizes = self.eta_targets(eta), {"similar": eta.min_similar, "dissimilar": eta.dissimilar}
        if eta.sets == "centroids":
            means = ClassStatistics.from_tensors(load_file(folder / STATISTICS), "train.").mean
            return sets_from_centroids(means, targets=targets, **sizes)
        if eta.sets == "confusion":
            said = load_file(folder / PREDICTIONS)
            classes = len(self.class_names)
            return sets_from_confusion(
                said["label"], said["prediction"], classes, seed=eta.seed, targets=targets, **sizes
            )
        return None

    def features(self, cell: Cell, folder: Path, classes: Sequence[int], split: str, most: int) -> Features:
        """Embeddings of the first `most` examples of each class, from the model saved in `folder`."""
        labels = np.asarray(getattr(self.source, split).labels)
        wanted = np.concatenate([np.flatnonzero(labels == c)[:most] for c in classes])
        dataset = Subset(self.dataset(self.spec(cell), split, train=False), wanted.tolist())
        trainer = self.reader(cell, folder, dataset)
        batches = list(trainer.penultimate())
        head = models.find_classifier(trainer.model)
        return Features(
            torch.cat([batch.features for batch in batches]).cpu(),
            torch.cat([batch.labels for batch in batches]).cpu(),
            *classifier_weights(head),
        )


def classifier_weights(head: Any) -> tuple[Tensor, Tensor | None]:
    """Weight `[C, D]` and bias `[C]` (or None) of a linear layer or 1x1 convolution, on the CPU."""
    return head.weight.detach().flatten(1).cpu(), None if head.bias is None else head.bias.detach().cpu()


def label_ranks(logits: Any, labels: Tensor) -> Tensor:
    """`[N]`: how many classes a model puts before the right one. All that top-k accuracies need of `[N, C]` logits."""
    logits = logits[0] if isinstance(logits, tuple) else logits
    right = logits.gather(-1, labels.unsqueeze(-1))
    return (
        (logits > right).sum(-1)
        + (logits == right).float().cumsum(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1).long()
        - 1
    )


def top_accuracies(prediction: Any) -> dict[str, float]:
    """top-1 and top-5 in percent from `label_ranks`."""
    ranks = np.asarray(prediction.predictions)
    return {"top1": 100 * float((ranks < 1).mean()), "top5": 100 * float((ranks < 5).mean())}


def say(logits: Tensor, labels: Tensor, example_id: Tensor | None) -> dict[str, Tensor]:
    """What one batch of logits says of each example, on the CPU: `said`, and how many classes come before the right one."""
    return {**said(logits, labels, example_id), "rank": label_ranks(logits, labels).cpu()}

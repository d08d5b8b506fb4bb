"""transformers' way of fine-tuning an image classifier, with the trainer's class replaced and nothing else.

The shape of the library's image-classification guide and example script: an `imagefolder` data set from disk, an image
processor, torchvision transforms by `set_transform`, a collator that stacks, accuracy by `compute_metrics`, evaluation and
checkpoints each epoch, the best model at the end.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    set_seed,
)

from hf_lskd import DistillationArguments, DistillationTrainer
from tests.conftest import assert_same_weights, weights

CLASSES = ("zero", "one", "two", "three")
PER_CLASS = {"train": 32, "validation": 8}
STEPS = len(CLASSES) * PER_CLASS["train"] // 16  # an epoch
OURS = ("hard_loss", "soft_loss", "target_entropy", "agreement", "eval_nll")
TIMINGS = ("runtime", "per_second", "total_flos")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """<split>/<class>/<n>.png, from scikit-learn's digits."""
    from PIL import Image
    from sklearn.datasets import load_digits

    folder, bunch = tmp_path_factory.mktemp("pictures"), load_digits()
    for label, name in enumerate(CLASSES):
        members = iter(np.flatnonzero(bunch.target == label))
        for split, count in PER_CLASS.items():
            (folder / split / name).mkdir(parents=True)
            for n in range(count):
                pixels = (bunch.images[next(members)] * 15).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{n:02}.png")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder as a Hub repository would be: a small ViT with dropout, and its image processor."""
    folder = tmp_path_factory.mktemp("vit")
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=4,
        hidden_dropout_prob=0.05, attention_probs_dropout_prob=0.05,
    )  # fmt: skip
    torch.manual_seed(0)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)  # without a head, as a pretrained encoder is
    ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.3] * 3, image_std=[0.35] * 3).save_pretrained(
        folder
    )
    return str(folder)


@pytest.fixture(scope="module")
def example(pictures: Path, checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """The example as a function of the trainer's class, of further arguments of it, and of the arguments' class and values."""
    from datasets import load_dataset
    from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, Resize, ToTensor

    cache = tmp_path_factory.mktemp("cache")
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    data = load_dataset("imagefolder", data_dir=str(pictures), cache_dir=str(cache))
    names = data["train"].features["label"].names
    label2id, id2label = {name: str(i) for i, name in enumerate(names)}, {str(i): name for i, name in enumerate(names)}
    normalize = Normalize(mean=processor.image_mean, std=processor.image_std)
    size = (processor.size["height"], processor.size["width"])
    augment = Compose([RandomResizedCrop(size, scale=(0.85, 1.0)), RandomHorizontalFlip(0.1), ToTensor(), normalize])
    prepare = Compose([Resize(size), ToTensor(), normalize])

    def train_transforms(batch: dict[str, list]) -> dict[str, list]:
        batch["pixel_values"] = [augment(image.convert("RGB")) for image in batch["image"]]
        return batch

    def validation_transforms(batch: dict[str, list]) -> dict[str, list]:
        batch["pixel_values"] = [prepare(image.convert("RGB")) for image in batch["image"]]
        return batch

    data["train"].set_transform(train_transforms)
    data["validation"].set_transform(validation_transforms)

    def collate_fn(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images = torch.stack([example["pixel_values"] for example in examples])
        return {"pixel_values": images, "labels": torch.tensor([example["label"] for example in examples])}

    def compute_metrics(prediction: Any) -> dict[str, float]:
        return {"accuracy": float((np.argmax(prediction.predictions, axis=1) == prediction.label_ids).mean())}

    def run(
        kind: type[Trainer],
        folder: Path,
        arguments: type[TrainingArguments] = TrainingArguments,
        further: Any = None,
        resume: str | None = None,
        **more: Any,
    ) -> Trainer:
        usual = {
            "remove_unused_columns": False,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "learning_rate": 5e-3,
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 16,
            "num_train_epochs": 4,
            "warmup_steps": 2,
            "logging_steps": 1,
            "load_best_model_at_end": True,
            "metric_for_best_model": "accuracy",
            "push_to_hub": False,
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        args = arguments(output_dir=str(folder), **{**usual, **more})
        set_seed(args.seed)  # the new head's weights
        model = AutoModelForImageClassification.from_pretrained(
            checkpoint, num_labels=len(names), id2label=id2label, label2id=label2id
        )
        trainer = kind(
            model=model,
            args=args,
            data_collator=collate_fn,
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            processing_class=processor,
            compute_metrics=compute_metrics,
            **(further or {}),
        )
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_model()
        return trainer

    return run


def curve(trainer: Trainer) -> list[dict[str, float]]:
    """The log without what only our trainer writes and without timings."""
    return [
        {key: value for key, value in entry.items() if key not in OURS and not any(part in key for part in TIMINGS)}
        for entry in trainer.state.log_history
    ]


ACCUMULATED = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 8}


@pytest.mark.parametrize("more", [{}, ACCUMULATED], ids=["plain", "accumulated"])
def test_replacing_the_trainer_changes_nothing(
    more: dict[str, Any], example: Callable[..., Any], tmp_path: Path
) -> None:
    stock = example(Trainer, tmp_path / "stock", **more)
    ours = example(DistillationTrainer, tmp_path / "ours", **more)
    assert len(curve(stock)) == 4 * STEPS + 4 + 1
    for expected, found in zip(curve(stock), curve(ours), strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert ours.state.best_global_step == stock.state.best_global_step
    last = f"checkpoint-{ours.state.global_step}"
    theirs = weights(AutoModelForImageClassification.from_pretrained(tmp_path / "stock" / last))
    for key, value in weights(AutoModelForImageClassification.from_pretrained(tmp_path / "ours" / last)).items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-3, atol=1e-5)
    assert tuple(AutoImageProcessor.from_pretrained(tmp_path / "ours").image_mean) == (0.3, 0.3, 0.3)


def test_the_best_model_at_the_end_is_the_best_one_saved(example: Callable[..., Any], tmp_path: Path) -> None:
    """transformers 5.23 saves a ViT under older names and then reads back, by name, only what was not renamed."""
    worst = {"metric_for_best_model": "loss", "greater_is_better": True}  # so that the best is not the last
    trainer = example(DistillationTrainer, tmp_path, **worst)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses.index(max(losses)) < len(losses) - 1
    assert trainer.evaluate()["eval_loss"] == pytest.approx(max(losses), rel=1e-5)
    best = AutoModelForImageClassification.from_pretrained(trainer.state.best_model_checkpoint)
    final = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert_same_weights(weights(best), weights(trainer.model))
    assert_same_weights(weights(final), weights(trainer.model))


def test_trap_19_a_transformers_model_resumes_from_the_weights_it_saved(
    example: Callable[..., Any], tmp_path: Path
) -> None:
    """At an epoch's end and without augmentation by workers, so that stock data resume too; the model is the library's own ViT."""
    whole = example(DistillationTrainer, tmp_path / "whole")
    middle = str(tmp_path / "whole" / f"checkpoint-{2 * STEPS}")
    resumed = example(DistillationTrainer, tmp_path / "resumed", resume=middle)
    assert resumed.state.global_step == whole.state.global_step
    assert_same_weights(weights(resumed.model), weights(whole.model))


def test_adding_a_teacher_distils(example: Callable[..., Any], tmp_path: Path) -> None:
    """A teacher made by the example itself; the student learns from its folder, and from a plain TrainingArguments too."""
    teacher = example(DistillationTrainer, tmp_path / "teacher", num_train_epochs=15)
    assert teacher.evaluate()["eval_accuracy"] > 0.5
    student = example(
        DistillationTrainer,
        tmp_path / "student",
        DistillationArguments,
        {"teacher_model": str(tmp_path / "teacher")},
        kd_temperature=2.0,
        num_train_epochs=12,
    )
    logged = [entry for entry in student.state.log_history if "soft_loss" in entry]
    first, last = logged[:STEPS], logged[-STEPS:]
    assert np.mean([entry["soft_loss"] for entry in last]) < 0.7 * np.mean([entry["soft_loss"] for entry in first])
    assert np.mean([entry["agreement"] for entry in last]) > np.mean([entry["agreement"] for entry in first])
    assert all(entry["loss"] == pytest.approx(entry["soft_loss"], rel=1e-3) for entry in logged)  # kd_weight is 1
    assert student.evaluate()["eval_accuracy"] > 0.4
    plain = example(
        DistillationTrainer, tmp_path / "plain", further={"teacher_model": teacher.model}, num_train_epochs=1
    )
    assert all("soft_loss" in entry for entry in plain.state.log_history if "loss" in entry)

"""One small training run in which everything that draws chance is on; as a script, the run that is killed.

python -m tests.resume_run FOLDER STEP '{"workers": 2}'     killed with SIGKILL when STEP is done
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from hf_lskd import DistillationArguments, DistillationTrainer
from hf_lskd.data import ImageDataset
from hf_lskd.data.images import ArrayImages
from tests.conftest import VIT, tiny

EXAMPLES, CLASSES = 44, 5
STEPS_PER_EPOCH, EPOCHS, SAVE_STEPS = 6, 3, 3  # 11 batches of 4, two a step: the last window of an epoch is short
MAPPING = {"horizontal_flip": 0.5, "rotation": 15, "shift": 2, "color_jitter": {"brightness": 0.3}}


class StoppedError(Exception):
    """A run that was stopped from within."""


class StopAfter(TrainerCallback):
    """Stops when `step` is done, before that step is logged or saved: by an exception, or by SIGKILL."""

    def __init__(self, step: int, kill: bool = False) -> None:
        self.step, self.kill = step, kill

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise StoppedError


def pictures(n: int, seed: int) -> ArrayImages:
    """Grey 16x16 pictures, one blurred prototype a class and noise, from the digits' own pixels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    chosen = [i for i, label in enumerate(bunch.target) if label < CLASSES][seed : seed + n]
    pixels = (bunch.images[chosen] * 15).astype("uint8").repeat(2, axis=1).repeat(2, axis=2)
    return ArrayImages(pixels, bunch.target[chosen])


def make_trainer(
    folder: Path,
    *,
    workers: int = 0,
    persistent: bool = False,
    augmentation: Any = "standard",
    augmentation_versions: int | None = None,
    mix: dict[str, float] | None = None,
    data_seed: int = 7,
    ema: float | None = 0.8,
    teacher: bool = True,
    members: int = 1,
    accumulation: int = 2,
    batch: int = 4,
    architecture: tuple[str, dict] = VIT,
    callbacks: Any = (),
    **more: Any,
) -> DistillationTrainer:
    """A ViT (or another tiny architecture) with dropout on augmented digits, evaluated and saved every third step."""
    config = {
        "input_size": (3, 16, 16),
        "mean": (0.3,) * 3,
        "std": (0.4,) * 3,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    train = ImageDataset(
        pictures(EXAMPLES, 0),
        config,
        augmentation=augmentation,
        augmentation_versions=augmentation_versions,
        train=True,
        data_seed=data_seed,
        mix=mix,
        num_classes=CLASSES,
    )
    held_out = ImageDataset(pictures(20, 100), config, num_classes=CLASSES)
    usual = {
        "report_to": "none",
        "disable_tqdm": True,
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": SAVE_STEPS,
        "eval_strategy": "steps",
        "eval_steps": SAVE_STEPS,
        "dataloader_num_workers": workers,
        "dataloader_persistent_workers": persistent,
        "dataloader_pin_memory": False,
        "label_smoothing_factor": 0.1,
        "kd_temperature": 2.0,
        "kd_weight": 0.5,
        "model_ema": ema,
    }
    teachers = [tiny(architecture, 2 + member) for member in range(members)]
    dropout = {"drop_rate": 0.2, **({"attn_drop_rate": 0.2} if architecture is VIT else {})}
    student: nn.Module = tiny(architecture, 1, **dropout)
    return DistillationTrainer(
        student,
        DistillationArguments(output_dir=str(folder), **{**usual, **more}),
        train_dataset=train,
        eval_dataset=held_out,
        teacher_model=None if not teacher else teachers[0] if members == 1 else teachers,
        callbacks=list(callbacks),
    )


def end_workers(trainer: DistillationTrainer) -> None:
    """Persistent workers end at once when told; left to the garbage collector, torch waits five seconds for each."""
    loaders = [trainer.callback_handler.train_dataloader, *getattr(trainer, "_eval_dataloaders", {}).values()]
    for loader in filter(None, loaders):
        if loader.base_dataloader._iterator is not None:
            loader.base_dataloader._iterator._shutdown_workers()


if __name__ == "__main__":
    torch.set_num_threads(1)
    output, step, settings = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    make_trainer(output, callbacks=[StopAfter(step, kill=True)], **settings).train()
    sys.exit("the run was not killed")

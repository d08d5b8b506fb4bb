"""What a training step, an evaluation and a resumed run come to on however many processes run this.

python -m tests.process_run FOLDER      under RANK, WORLD_SIZE, … or `accelerate launch`; writes FOLDER/rank<k>.pt
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from hf_lskd import DistillationArguments, DistillationTrainer
from tests.conftest import CONVNEXT, VIT, Examples, tiny, weights
from tests.resume_run import StopAfter, StoppedError, make_trainer

GLOBAL_BATCH = 8  # examples in a micro-batch, over all processes
QUIET = {
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "optim": "sgd",
    "learning_rate": 0.1,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "num_train_epochs": 1,
    "train_sampling_strategy": "sequential",
    "dataloader_pin_memory": False,
    "gradient_accumulation_steps": 2,
    "kd_temperature": 2.0,
    "kd_weight": 0.5,
}
STEPS = {
    "plain": {"which": VIT},
    "smoothed": {"which": VIT, "label_smoothing_factor": 0.1},
    "distilled": {"which": VIT, "teacher": True},
    "distilled and smoothed": {"which": VIT, "teacher": True, "label_smoothing_factor": 0.1},
    "convnext": {"which": CONVNEXT, "size": 32, "teacher": True, "label_smoothing_factor": 0.1},
    "local items": {"which": VIT, "teacher": True, "average_tokens_across_devices": False},
    "masked": {"which": VIT, "teacher": True, "label_smoothing_factor": 0.1, "masked": (0, 1, 2, 9)},
    "masked, shared items": {"which": VIT, "masked": (0, 1, 2, 9)},
    "masked, local items": {"which": VIT, "masked": (0, 1, 2, 9), "average_tokens_across_devices": False},
}


class Masked(Examples):
    """Examples of which some count for nothing (label -100), so that the processes hold unequal numbers of items."""

    def __init__(self, *args: Any, masked: tuple[int, ...] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.masked = masked

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = super().__getitem__(index)
        return {**example, "labels": -100 if index in self.masked else example["labels"]}


def world() -> int:
    """How many processes were asked for; how many came up is the trainer's word."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def two_steps(
    folder: Path, which: Any, teacher: bool = False, size: int = 16, masked: tuple[int, ...] = (), **more: Any
) -> dict:
    """Weights and logs after a window of 16 examples and a short one of 8, whatever the number of processes."""
    args = DistillationArguments(
        output_dir=str(folder), per_device_train_batch_size=GLOBAL_BATCH // world(), **{**QUIET, **more}
    )
    data = Masked(24, size=size, masked=masked)
    trainer = DistillationTrainer(
        tiny(which, 1), args, train_dataset=data, teacher_model=tiny(which, 2) if teacher else None
    )
    trainer.train()
    assert trainer.state.global_step == 2
    return {
        "world": trainer.accelerator.num_processes,
        "weights": weights(trainer.model),
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
    }


def reading(folder: Path, examples: int) -> dict[str, Any]:
    """Class statistics and evaluation over a number of examples that the processes cannot share evenly."""
    args = DistillationArguments(output_dir=str(folder), **QUIET, per_device_eval_batch_size=4)
    data = Examples(examples, 5)
    trainer = DistillationTrainer(tiny(VIT, 1), args, train_dataset=Examples(8), eval_dataset=data)
    statistics = trainer.class_statistics()
    ids = [batch.example_id.tolist() for batch in trainer.penultimate()]
    predicted = trainer.predict(data)
    evaluated = trainer.evaluate()
    return {
        "statistics": statistics.to_tensors(),
        "ids": [example for batch in ids for example in batch],
        "nll": evaluated["eval_nll"],
        "loss": evaluated["eval_loss"],
        "logits": torch.from_numpy(predicted.predictions),
        "labels": torch.from_numpy(predicted.label_ids),
    }


class Seen(TrainerCallback):
    """Which examples this process trained on, epoch by epoch."""

    def __init__(self) -> None:
        self.epochs: list[list[int]] = []

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.epochs.append([])


class Watching(DistillationTrainer):
    """Notes the ids of the examples that it trains on."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if model.training:
            seen = next(callback for callback in self.callback_handler.callbacks if isinstance(callback, Seen))
            seen.epochs[-1] += inputs["example_id"].tolist()
        return super().compute_loss(model, inputs, *args, **kwargs)


def shares(folder: Path) -> list[list[int]]:
    """The ids that this process sees in each of two epochs of a data set with a sampler of its own."""
    made = make_trainer(
        folder, ema=None, teacher=False, save_strategy="no", eval_strategy="no", num_train_epochs=2, batch=2
    )
    seen = Seen()
    Watching(made.model, made.args, train_dataset=made.train_dataset, callbacks=[seen]).train()
    return seen.epochs


def resumed(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Weights of a run and of the same run stopped in the middle of its second epoch and resumed."""
    settings: dict[str, Any] = {"batch": 2, "accumulation": 2, "eval_strategy": "no"}
    whole = make_trainer(folder / "whole", **settings)
    whole.train()
    stopped = make_trainer(folder / "stopped", callbacks=[StopAfter(10)], **settings)
    with contextlib.suppress(StoppedError):
        stopped.train()
    stopped.accelerator.wait_for_everyone()
    again = make_trainer(folder / "stopped", **settings)
    torch.manual_seed(999 + again.args.process_index)
    again.train(resume_from_checkpoint=str(folder / "stopped" / "checkpoint-9"))
    return {"whole": weights(whole.model), "resumed": weights(again.model)}


def run(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["steps"] = {name: two_steps(folder / "steps", **settings) for name, settings in STEPS.items()}
    found["readings"] = {n: reading(folder / "reading", n) for n in (21, 3)}
    found["shares"] = shares(folder / "shares")
    found["resumed"] = resumed(folder / "resumed")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    output = Path(sys.argv[1])
    result = run(output)
    from accelerate import PartialState

    torch.save(result, output / f"rank{PartialState().process_index}.pt")
    PartialState().destroy_process_group()

"""An exponential moving average of the student: updated each step, evaluated, saved, resumed."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

FILE = "ema.safetensors"


class EmaCallback(TrainerCallback):
    """Averages the weights as w̄ ← d·w̄ + (1 − d)·w after each optimizer step; buffers (batch statistics) are copied.

    The average stands in for the student during every evaluation and after training, so metrics, best epoch and the final
    model are its. Checkpoints hold the raw student beside `ema.safetensors`, so a resumed run continues both exactly.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.average: dict[str, Tensor] = {}
        self.raw: dict[str, Tensor] | None = None

    def state(self) -> dict[str, Tensor]:
        return self.trainer.accelerator.unwrap_model(self.trainer.model).state_dict()

    @torch.no_grad()
    def copy_into_model(self, values: dict[str, Tensor]) -> None:
        for key, value in self.state().items():
            value.copy_(values[key])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        saved = Path(self.trainer._get_output_dir(None)) / f"checkpoint-{state.global_step}" / FILE
        if state.global_step and saved.is_file():
            self.average = {key: value.to(args.device) for key, value in load_file(saved).items()}
        else:
            self.average = {key: value.detach().clone() for key, value in self.state().items()}

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        decay = args.model_ema
        for key, value in self.state().items():
            if value.is_floating_point() and "running_" not in key:
                self.average[key].lerp_(value, 1 - decay)
            else:
                self.average[key].copy_(value)

    def swap_in(self) -> None:
        """Put the average into the model, keeping the raw weights for `swap_out`."""
        if self.average and self.raw is None:
            self.raw = {key: value.detach().clone() for key, value in self.state().items()}
            self.copy_into_model(self.average)

    def swap_out(self) -> None:
        if self.raw is not None:
            self.copy_into_model(self.raw)
            self.raw = None

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(self.trainer._get_output_dir(None)) / f"checkpoint-{state.global_step}"
        if args.should_save and folder.is_dir() and self.average:
            save_file({key: value.contiguous() for key, value in self.average.items()}, folder / FILE)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.average:
            self.copy_into_model(self.average)
            self.average = {}

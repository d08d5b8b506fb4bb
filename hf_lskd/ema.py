"""An exponential moving average of the student: updated each step, evaluated, saved, resumed."""

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

logger = logging.getLogger(__name__)

FILE = "ema.safetensors"


class EmaCallback(TrainerCallback):
    """Averages the weights as w̄ ← d·w̄ + (1 − d)·w after each optimizer step; buffers (batch statistics) are copied.

    The average stands in for the student during every evaluation and after training, so metrics, best epoch and the final
    model (with `load_best_model_at_end`, the best one) are its. Checkpoints hold the raw student beside `ema.safetensors`,
    so a resumed run continues both exactly; the trainer calls `save` and `load` with the checkpoint's folder.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.average: dict[str, Tensor] = {}
        self.loaded: dict[str, Tensor] = {}
        self.raw: dict[str, Tensor] | None = None

    def state(self) -> dict[str, Tensor]:
        return self.trainer.accelerator.unwrap_model(self.trainer.model).state_dict()

    @torch.no_grad()
    def copy_into_model(self, values: dict[str, Tensor]) -> None:
        for key, value in self.state().items():
            value.copy_(values[key])

    # ---- In checkpoints

    def save(self, folder: str | Path) -> None:
        """Write the average, if training has begun one, into a checkpoint's folder. On one process only."""
        if self.average and self.trainer.args.should_save:
            save_file({key: value.contiguous() for key, value in self.average.items()}, Path(folder) / FILE)

    def load(self, folder: str | Path) -> None:
        """Take the average of the checkpoint that training is about to be resumed from."""
        saved = Path(folder) / FILE
        if saved.is_file():
            self.loaded = self._read(saved)
        else:
            logger.warning("%s holds no %s: the average begins anew from the weights of the checkpoint.", folder, FILE)

    def _read(self, file: Path) -> dict[str, Tensor]:
        return {key: value.to(self.trainer.args.device) for key, value in load_file(file).items()}

    # ---- In training

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.average = self.loaded or {key: value.detach().clone() for key, value in self.state().items()}
        self.loaded = {}

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
        """Put the raw weights back."""
        if self.raw is not None:
            self.copy_into_model(self.raw)
            self.raw = None

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        best = Path(state.best_model_checkpoint or "") / FILE
        if args.load_best_model_at_end and best.is_file():  # the stock trainer has loaded that checkpoint's raw weights
            self.average = self._read(best)
        if self.average:
            self.copy_into_model(self.average)
            self.average = {}

"""Checkpoints that are whole when their last file is there, and that are read back whole."""

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from hf_lskd.models.checkpoint import load_renamed
from hf_lskd.record import follow_umask
from hf_lskd.stock import Stock

if TYPE_CHECKING:
    from hf_lskd.ema import EmaCallback


class Checkpoints(Stock):
    """Put it before a `transformers.Trainer` class: the moving average is saved and read too, and so are weights that
    transformers saved under other names."""

    _ema: "EmaCallback | None"

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            follow_umask(Path(output_dir or self.args.output_dir))
        if self._ema is not None and _internal_call and output_dir is not None:
            self._ema.save(output_dir)  # before trainer_state.json, which marks a checkpoint as complete

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # each process writes one; trainer_state.json, which comes next, says they are all there

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._load_renamed(resume_from_checkpoint, model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._ema is not None:
            self._ema.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if not self._load_renamed(str(self.state.best_model_checkpoint)):
            super()._load_best_model()

    def _load_renamed(self, folder: str, model: nn.Module | None = None) -> bool:
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return not sharded and load_renamed(self.model if model is None else model, folder)

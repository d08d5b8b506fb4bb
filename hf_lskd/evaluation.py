"""The stock evaluation, with `nll` beside its loss, bare models without labels, and the moving average in the student's place."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_lskd import losses
from hf_lskd.penultimate import EXAMPLE_ID, forward, takes_images_by_name
from hf_lskd.stock import Stock
from hf_lskd.teacher import logits_of

if TYPE_CHECKING:
    from hf_lskd.ema import EmaCallback


class Evaluation(Stock):
    """Put it before a `transformers.Trainer` class; the trainer that it is part of fills `_eval_rows` from `compute_loss`."""

    _ema: "EmaCallback | None"
    _eval_rows: list[Tensor] | None

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        if not isinstance(inputs, Mapping) or inputs.get("labels") is not None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        unlabelled = {key: value for key, value in inputs.items() if key not in (EXAMPLE_ID, "labels")}
        if takes_images_by_name(self.model):
            return super().prediction_step(model, unlabelled, prediction_loss_only, ignore_keys)
        with torch.no_grad():
            logits = logits_of(forward(model, self._prepare_inputs(unlabelled), by_name=False))
        return None, None if prediction_loss_only else logits, None

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        self._eval_rows = []
        if self._ema is not None:
            self._ema.swap_in()
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            if self._eval_rows and output.metrics is not None:
                nll, items = torch.cat(self._eval_rows).double().sum(0).tolist()
                output.metrics[f"{metric_key_prefix}_nll"] = nll / max(items, 1)
        finally:
            self._eval_rows = None
            if self._ema is not None:
                self._ema.swap_out()
        return output

    def _note_rows(self, logits: Tensor, labels: Tensor) -> None:
        """Per-example negative log-likelihoods of this batch, from all processes, the padded tail dropped."""
        assert self._eval_rows is not None
        rows = losses.nll_rows(logits.detach(), labels)
        self._eval_rows.append(self.accelerator.gather_for_metrics(rows))

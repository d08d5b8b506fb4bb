"""What the stock trainer's own code needs to hear so that it goes well with our loss."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments


class SmoothingHidden:
    """While the stock constructor runs on a model without `config`, or on none yet, α is 0.

    It reads `model.config` to set up its own smoother, which our loss does not use. (transformers 5.23; drop this when its
    constructor accepts plain modules.)
    """

    def __init__(self, args: TrainingArguments | None, model: nn.Module | None) -> None:
        self.args = args if not hasattr(model, "config") else None

    def __enter__(self) -> None:
        if self.args is not None:
            self.smoothing, self.args.label_smoothing_factor = self.args.label_smoothing_factor, 0.0

    def __exit__(self, *_: object) -> None:
        if self.args is not None:
            self.args.label_smoothing_factor = self.smoothing


class EpochCallback(TrainerCallback):
    """Tells the data set's own sampler which epoch begins, also where accelerate's wrappers do not pass it on."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer._epoch_sampler is not None:
            self.trainer._epoch_sampler.set_epoch(int((state.epoch or 0) + 1e-6))


def as_stock_outputs(outputs: Any) -> Any:
    """Outputs as the stock evaluation reads them: a mapping, or a tuple whose first entry it drops as the loss."""
    if isinstance(outputs, Tensor):
        return {"logits": outputs}
    return outputs if isinstance(outputs, Mapping) else (None, *outputs)

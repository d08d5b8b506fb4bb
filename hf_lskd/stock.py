"""What the stock trainer's own code needs to hear so that it goes well with our loss."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.training_args import OptimizerNames

from hf_lskd.sharding import launched_with

if TYPE_CHECKING:

    class Stock(Trainer):  # what a mixin may rely on; at run time the subclass brings its own stock trainer
        args: Any
        model: Any
        _signature_columns: Any

else:
    Stock = object


class LeanSteps:
    """What the stock trainer works out anew at each step, once or only when it is read; put before a `transformers.Trainer`.

    Of a small classifier's step these were 8 % (profile in docs/bench.md). Logs and states are the stock trainer's to the last bit.
    """

    _parameters_of: tuple[int, int] | None = None  # identity of a model, number of its parameters

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: TrainingArguments, model: Any = None) -> tuple[Any, Any]:
        """The stock optimizer; SGD in torch's fused form, one kernel a step in place of several a weight, where that can be.

        transformers 5.23 reads no `fused` for SGD; drop this when it does.
        """
        kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if args.optim != OptimizerNames.SGD or args.fsdp or args.deepspeed or launched_with():
            return kind, kwargs
        if args.device.type not in ("cpu", "cuda") or not can_be_fused(model):
            return kind, kwargs
        return kind, {**kwargs, "fused": True}

    def floating_point_ops(self: Any, inputs: Mapping[str, Any]) -> int:
        """The stock figure, 6 · inputs · parameters; the parameters are counted when the model is new, not at each step."""
        images = inputs.get(getattr(self.model, "main_input_name", "input_ids"))
        if images is None or not hasattr(self.model, "num_parameters"):
            return super().floating_point_ops(inputs)  # type: ignore[misc]
        if self._parameters_of is None or self._parameters_of[0] != id(self.model):
            self._parameters_of = id(self.model), self.model.num_parameters(exclude_embeddings=True)
        return 6 * images.numel() * self._parameters_of[1]

    def _get_grad_norm(self: Any, model: nn.Module, grad_norm: Any = None) -> Any:
        """Without clipping the norm is only logged: it is taken at the steps whose log has it."""
        if grad_norm is None and not self._is_logged_next():
            return None
        return super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]

    def _is_logged_next(self: Any) -> bool:
        """Whether the log that follows the coming update may hold its gradient norm; True where that cannot be told."""
        args, step = self.args, self.state.global_step + 1
        if (
            getattr(self, "batch_source", None) is not None
        ):  # in lockstep another trainer's loader knows where the epoch ends
            return True
        if self.control.should_log or args.logging_strategy not in ("no", "steps", "epoch"):
            return True
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or self.accelerator.scaler is not None:
            return True
        if args.logging_strategy == "steps":
            return step % self.state.logging_steps == 0 or (step == 1 and args.logging_first_step)
        if args.logging_strategy == "epoch":
            return self.accelerator.gradient_state.end_of_dataloader or step >= self.state.max_steps
        return step == 1 and args.logging_first_step


def can_be_fused(model: nn.Module | None) -> bool:
    """Whether torch's fused SGD can train the model: plain dense parameters of real numbers, no embedding with `sparse=True`.

    On a CPU its kernel reads a parameter as one block of memory, whatever its strides: of a slice of columns it would write
    into, and past, the tensor that the slice is of.
    """
    embeddings = nn.Embedding | nn.EmbeddingBag
    if model is None:
        return True
    if any(isinstance(part, embeddings) and part.sparse for part in model.modules()):
        return False
    return all(is_one_block(parameter) for parameter in model.parameters() if parameter.requires_grad)


def is_one_block(parameter: Tensor) -> bool:
    """Whether it is a plain tensor of real numbers, in any order of dimensions, without gaps or overlaps."""
    plain = type(parameter) in (Tensor, nn.Parameter) and parameter.is_floating_point()
    return plain and torch.empty_like(parameter, device="meta").stride() == parameter.stride()


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

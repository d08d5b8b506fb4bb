"""Learning rates that transformers' schedules do not have: divided every so many epochs, and warmed up from above zero."""

import math
from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from hf_lskd.errors import InputError


def reshape(scheduler: Any, args: Any, total_steps: int, steps_per_epoch: float) -> None:
    """Put `lr_step_epochs` and `warmup_init_lr` of the arguments on top of a fresh schedule of transformers.

    Raises InputError for a schedule that is no function of the step (reduce_lr_on_plateau and the like).
    """
    every, start = getattr(args, "lr_step_epochs", None), getattr(args, "warmup_init_lr", 0.0)
    if every is None and not start:
        return
    if not isinstance(scheduler, LambdaLR):
        raise InputError(
            f"lr_step_epochs or warmup_init_lr with lr_scheduler_type {args.lr_scheduler_type}",
            "a schedule that is a function of the step, such as constant_with_warmup, linear or inverse_sqrt",
        )
    warmup = args.get_warmup_steps(total_steps)
    step_length = None if every is None else every * steps_per_epoch
    scheduler.lr_lambdas = [
        shaped(given, step_length, args.lr_step_factor, warmup, start / float(peak))
        for given, peak in zip(scheduler.lr_lambdas, scheduler.base_lrs)
    ]
    for group, peak, factor in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas):
        group["lr"] = peak * factor(0)
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]


def shaped(
    given: Callable[[int], float], step_length: float | None, factor: float, warmup: int, start: float
) -> Callable[[int], float]:
    """The share of the peak at each step: that of `given`, begun at `start` in place of 0 over the `warmup` steps, and
    multiplied by `factor` after every `step_length` steps (counted from the first step, as PyTorch's StepLR counts epochs)."""

    def share(step: int) -> float:
        value = given(step)
        if step < warmup:
            value = start + (1 - start) * value
        if step_length is not None:
            value *= factor ** math.floor(step / step_length + 1e-9)  # a whole number of epochs, whatever its rounding
        return value

    return share

"""Checkpoints by the clock: whatever ends a run, and whenever, costs so many minutes of it and no more."""

import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import broadcast
from transformers import TrainerCallback


class SaveByClock(TrainerCallback):
    """Asks for a checkpoint every `minutes` of the first process's clock, in all processes at the same step.

    They look together, at a step that the first one has told all of them before: half as many steps ahead as its pace leaves
    until the next checkpoint is due, so that a step without a look costs nothing. So do trainers of one process that take
    the same steps in turn and share `decided`: the first of them to reach a step decides for all. At the end of an epoch the
    checkpoint is written after the evaluation, or a resumed run would miss that; none is written after the last step, since
    the Trainer would go on past its end from there.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.clock = minutes * 60, clock
        self.decided: dict[int, tuple[bool, int]] = {}  # by step: whether a checkpoint is due, and when to look again

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.decided.clear()  # of an earlier run; in turn all begin before the first of them takes a step
        self.saved = self.looked = self.clock()
        self.looked_at, self.next_look = state.global_step, state.global_step + 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not float(state.epoch).is_integer():
            self.look(args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.look(args, state, control)

    def look(self, args: Any, state: Any, control: Any) -> None:
        """Note in `control` whether a checkpoint is due, when it is time to look."""
        if state.global_step < self.next_look or state.global_step >= state.max_steps:
            return
        if state.global_step not in self.decided:
            self.decided.clear()
            self.decided[state.global_step] = self.decision(state.global_step)
        due, ahead = self.decided[state.global_step]
        if args.world_size > 1:
            told = broadcast(torch.tensor([int(due), ahead], device=args.device), from_process=0)
            due, ahead = bool(told[0].item()), int(told[1].item())
        self.next_look = state.global_step + ahead
        if due:
            self.saved = self.clock()
            control.should_save = True

    def decision(self, step: int) -> tuple[bool, int]:
        """Whether a checkpoint is due by this process's clock, and after how many steps to look again."""
        now = self.clock()
        due = now - self.saved >= self.seconds
        left = self.seconds if due else self.saved + self.seconds - now
        pace = max(now - self.looked, 1e-9) / max(step - self.looked_at, 1)
        self.looked, self.looked_at = now, step
        return due, max(1, min(int(left / pace / 2), 1_000_000))

"""Functions that take turns in one thread: each pauses anywhere in its calls, and finds its world as it left it."""

import time
from collections.abc import Callable
from typing import Any

import torch
from greenlet import getcurrent, greenlet

from hf_lskd.shared import Generators


class StoppedError(BaseException):
    """Ends a strand at its pause; no `except Exception` keeps it."""


class World:
    """What trainers share through globals and each must have for itself: random generators, accelerate's note of the data
    loader and the accumulation window that it is in, whether torch records gradients, and its autocast."""

    def __init__(self) -> None:
        from accelerate.state import GradientState

        self.generators = Generators.now()
        self.gradients = dict(GradientState._shared_state)
        self.records_gradients = torch.is_grad_enabled()
        self.autocast = {kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds()}

    def restore(self) -> None:
        from accelerate.state import GradientState

        self.generators.restore()
        GradientState._shared_state.clear()
        GradientState._shared_state.update(self.gradients)
        torch.set_grad_enabled(self.records_gradients)
        for kind, (enabled, dtype) in self.autocast.items():
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)


def kinds() -> list[str]:
    """The types of device of this machine."""
    accelerator = torch.accelerator.current_accelerator()
    return ["cpu"] if accelerator is None else ["cpu", accelerator.type]


class Strand:
    """`work` on a stack of its own, that runs only while `advance` waits for it, from pause to pause, in a world of its own.

    All strands of a thread share it, and so its OpenMP workers, its library handles and the memory that it has freed: a
    thread for each would have workers for each, more than there are cores. `seconds` is the time that a strand has run;
    `error` what ended it, `result` what it returned.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work: Callable[[], Any] | None = work  # until it has ended: work and its strand may hold each other
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended = False
        self._world: World | None = None  # that of its first turn is the one it is begun in
        self._stopped = False
        self._spent, self._since = 0.0, time.perf_counter()
        self._stack = greenlet(self._run)

    @property
    def seconds(self) -> float:
        """How long it has run, its present turn included: to be read in the strand."""
        return self._spent + time.perf_counter() - self._since

    def advance(self) -> None:
        """Let it run to its next pause or its end. The caller's own world is as before."""
        outer = World()
        if self._world is not None:
            self._world.restore()
        self._since = time.perf_counter()
        self._stack.parent = getcurrent()
        try:
            self._stack.switch()
        finally:
            self._spent = self.seconds
            self._world = None if self.ended else World()
            outer.restore()

    def pause(self) -> None:
        """In the strand: let others run until the next `advance`."""
        if not self._stopped:
            self._stack.parent.switch()
        if self._stopped:
            raise StoppedError

    def stop(self) -> None:
        """End it, where it has not ended, at the pause that it is in."""
        self._stopped = True
        if not self.ended:
            self.advance()

    def _run(self) -> None:
        try:
            if not self._stopped and self._work is not None:
                self.result = self._work()
        except BaseException as error:  # handed to whoever advances it
            self.error = error
        self._work, self.ended = None, True

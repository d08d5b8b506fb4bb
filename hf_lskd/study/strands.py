"""Functions that take turns in one process: each pauses anywhere in its calls, and finds its world as it left it."""

import threading
import time
from collections.abc import Callable
from typing import Any

from hf_lskd.shared import Generators

PATIENCE = 30.0  # seconds that a strand which is being stopped has to reach its next pause


class StoppedError(BaseException):
    """Ends a strand at its pause; no `except Exception` keeps it."""


class World:
    """What trainers share through globals and each must have for itself: random generators, and accelerate's note of the
    data loader and the accumulation window that it is in."""

    def __init__(self) -> None:
        from accelerate.state import GradientState

        self.generators = Generators.now()
        self.gradients = dict(GradientState._shared_state)

    def restore(self) -> None:
        from accelerate.state import GradientState

        self.generators.restore()
        GradientState._shared_state.clear()
        GradientState._shared_state.update(self.gradients)


class Strand:
    """`work` in a thread that runs only while `advance` waits for it, from pause to pause, in a world of its own.

    `seconds` is the time that it has run; `error` what ended it, `result` what it returned.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended = False
        self._world: World | None = None  # that of its first turn is the one it is begun in
        self._stopped = False
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._spent, self._since = 0.0, time.perf_counter()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

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
        self._go.release()
        try:
            self._paused.acquire()
        finally:
            self._spent = self.seconds
            self._world = World()
            outer.restore()

    def pause(self) -> None:
        """In the strand: let others run until the next `advance`."""
        if not self._stopped:
            self._paused.release()
            self._go.acquire()
        if self._stopped:
            raise StoppedError

    def stop(self) -> None:
        """End it, where it has not ended, at its next pause, and wait for that."""
        self._stopped = True
        self._go.release()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._stopped:
                self.result = self.work()
        except BaseException as error:  # handed to whoever advances it
            self.error = error
        self.ended = True
        self._paused.release()

"""One line a cell with the time left, on a terminal only."""

import shutil
import time
from collections.abc import Mapping
from typing import Any, TextIO

CLEAR = "\x1b[2K"  # the whole line


class Progress:
    """Writes to `stream` when it is a terminal: a moving line for the cell at work, and one that stays for each that ends.

    `done` of the `total` cells are finished already. Leaving the context clears a moving line that was cut short.
    """

    def __init__(self, total: int, stream: TextIO, done: int = 0) -> None:
        self.total, self.stream, self.done = total, stream, done
        self.live = stream.isatty()
        self.spent: list[float] = []
        self.name, self.started, self.shown = "", 0.0, 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.stream.write(CLEAR)
            self.stream.flush()

    def start(self, name: str) -> None:
        self.name, self.started = name, time.perf_counter()
        self.step(0.0)

    def step(self, share: float) -> None:
        """The cell at work has done `share` of its steps."""
        now = time.perf_counter()
        if self.live and (now - self.shown > 0.5 or share in (0.0, 1.0)):
            self.shown = now
            self._line(self.name, f"{share:4.0%}", self._left(share, now - self.started), end="\r")

    def finish(self, name: str, record: Mapping[str, Any]) -> None:
        """A cell is complete or has failed; one that was never started took no time."""
        self.done += 1
        seconds = time.perf_counter() - self.started if name == self.name else None
        if seconds is not None:
            self.spent.append(seconds)
        if self.live:
            error = record["error"]
            result = score(record["metrics"]) if error is None else f"failed: {error['message'].partition(chr(10))[0]}"
            took = "" if seconds is None else duration(seconds)
            self._line(f"{self.done:3d}/{self.total} {name}", result, took, self._left(0.0, 0.0), end="\n")

    def _left(self, share: float, running: float) -> str:
        """Time left, from the mean of the finished cells, or from the running one alone."""
        open_cells = self.total - self.done
        mean = sum(self.spent) / len(self.spent) if self.spent else (running / share if share > 0.05 else None)
        if mean is None or open_cells == 0:
            return ""
        return f"about {duration(max(mean * open_cells - running, 0.0))} left"

    def _line(self, *parts: str, end: str) -> None:
        """One line, never wrapped: a moving line that wraps cannot be taken back."""
        text = "  ".join(part for part in parts if part)
        self.stream.write(f"{CLEAR}{text[: shutil.get_terminal_size().columns - 1]}{end}")
        self.stream.flush()


def score(metrics: Mapping[str, float]) -> str:
    return f"top-1 {metrics['top1']:.1f} %"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"

"""One line a cell with the time left, on a terminal only."""

import shutil
import time
from collections.abc import Mapping
from typing import Any, TextIO

CLEAR = "\x1b[2K"  # the whole line


class Progress:
    """Writes to `stream` when it is a terminal: a moving line for the cells at work, and one that stays for each that ends.

    `done` of the `total` cells are finished already; `jobs` of them may be at work at once. Leaving the context clears a
    moving line that was cut short.
    """

    def __init__(self, total: int, stream: TextIO, done: int = 0, jobs: int = 1) -> None:
        self.total, self.stream, self.done, self.jobs = total, stream, done, jobs
        self.live = stream.isatty()
        self.spent: list[float] = []
        self.running: dict[str, tuple[float, float]] = {}  # cell -> when it began, share of its steps that is done
        self.shown = 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.stream.write(CLEAR)
            self.stream.flush()

    def start(self, name: str) -> None:
        self.running[name] = (time.perf_counter(), 0.0)
        self.step(name, 0.0)

    def step(self, name: str, share: float) -> None:
        """A cell at work has done `share` of its steps."""
        now = time.perf_counter()
        self.running[name] = (self.running[name][0], share)
        if self.live and (now - self.shown > 0.5 or share in (0.0, 1.0)):
            self.shown = now
            cells = (f"{cell}  {done:4.0%}" for cell, (_, done) in self.running.items())
            self._line(*cells, self._left(now), end="\r")

    def finish(self, name: str, record: Mapping[str, Any]) -> None:
        """A cell is complete or has failed; one that was never started took no time, one among others its own time only."""
        self.done += 1
        now = time.perf_counter()
        seconds = now - self.running.pop(name)[0] if name in self.running else None
        if seconds is not None and (record.get("lockstep") or 1) > 1:
            seconds = record["durations"]["total"]
        if seconds is not None:
            self.spent.append(seconds)
        if self.live:
            error = record["error"]
            result = score(record["metrics"]) if error is None else f"failed: {error['message'].partition(chr(10))[0]}"
            took = "" if seconds is None else duration(seconds)
            self._line(f"{self.done:3d}/{self.total} {name}", result, took, self._left(now), end="\n")

    def _left(self, now: float) -> str:
        """Time left, from the mean of the finished cells, or from those at work."""
        open_cells = self.total - self.done
        begun = [(now - began, share) for began, share in self.running.values()]
        guesses = self.spent or [seconds / share for seconds, share in begun if share > 0.05]
        if not guesses or open_cells == 0:
            return ""
        work = sum(guesses) / len(guesses) * open_cells - sum(seconds for seconds, _ in begun)
        return f"about {duration(max(work / self.jobs, 0.0))} left"

    def _line(self, *parts: str, end: str) -> None:
        """One line, never wrapped: a moving line that wraps cannot be taken back."""
        text = "  ".join(part for part in parts if part)
        self.stream.write(f"{CLEAR}{text[: shutil.get_terminal_size().columns - 1]}{end}")
        self.stream.flush()


def score(metrics: Mapping[str, float]) -> str:
    """What models of its kind are judged by."""
    return f"BLEU {metrics['bleu']:.1f}" if "bleu" in metrics else f"top-1 {metrics['top1']:.1f} %"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"

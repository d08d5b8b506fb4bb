"""One line a cell with the time left, on a terminal only."""

import time
from collections.abc import Mapping
from typing import Any, TextIO


class Progress:
    """Writes to `stream` when it is a terminal: a moving line for the cell at work, and one that stays for each finished cell."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self.total, self.stream = total, stream
        self.live = stream.isatty()
        self.done = 0
        self.spent: list[float] = []
        self.name, self.started, self.shown = "", 0.0, 0.0

    def start(self, name: str) -> None:
        self.name, self.started = name, time.perf_counter()
        self.step(0.0)

    def step(self, share: float) -> None:
        """The cell at work has done `share` of its steps."""
        now = time.perf_counter()
        if self.live and (now - self.shown > 0.5 or share in (0.0, 1.0)):
            self.shown = now
            self._line(f"{self.name}  {share:4.0%}  {self._left(share, now - self.started)}", end="\r")

    def skip(self, name: str) -> None:
        self.done += 1

    def finish(self, name: str, record: Mapping[str, Any], seconds: float) -> None:
        self.done += 1
        if seconds:
            self.spent.append(seconds)
        if self.live:
            result = f"failed: {record['error']['message']}" if record["error"] else score(record["metrics"])
            self._line(
                f"{self.done:3d}/{self.total} {name}  {result}  {seconds:.0f} s  {self._left(0.0, 0.0)}", end="\n"
            )

    def close(self) -> None:
        if self.live:
            self.stream.flush()

    def _left(self, share: float, running: float) -> str:
        """Time left, from the mean of the finished cells, or from the running one alone."""
        open_cells = self.total - self.done
        mean = sum(self.spent) / len(self.spent) if self.spent else (running / share if share > 0.05 else None)
        if mean is None or open_cells == 0:
            return ""
        return f"about {duration(max(mean * open_cells - running, 0.0))} left"

    def _line(self, text: str, end: str) -> None:
        self.stream.write(f"\x1b[2K{text}{end}")
        self.stream.flush()


def score(metrics: Mapping[str, float]) -> str:
    return f"top-1 {metrics['top1']:.1f} %" if "top1" in metrics else ""


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"

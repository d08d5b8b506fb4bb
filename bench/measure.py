"""How rows are measured: contestants in turn, in short slices of one run, and the median of the ratios of neighbours.

A machine that does other work slows neighbours alike, so their ratio stays; what hits one slice alone is an outlier that the median
leaves out. Nothing but ratios is kept.
"""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

Slice = Callable[[], float]  # does a little of the work and returns the seconds a unit of it took


@dataclass(frozen=True)
class Result:
    """One row: `ratio` is the median over rounds of `better / worse`, as `meaning` says."""

    row: str
    meaning: str
    peer: str
    aim: str
    ratio: float | None
    met: bool | None
    spread: tuple[float, float] | None = None  # quartiles
    extremes: tuple[float, float] | None = None
    rounds: int = 0
    memory: dict[str, float] = field(default_factory=dict)  # peak above what was there, in units of the row
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def alternate(slices: dict[str, Slice], rounds: int) -> dict[str, list[float]]:
    """Seconds a unit of each contestant, round by round after one for warming up; the order turns with every round."""
    seconds: dict[str, list[float]] = {name: [] for name in slices}
    names = list(slices)
    for round_ in range(rounds + 1):
        for name in names if round_ % 2 else reversed(names):
            found = slices[name]()
            if round_:
                seconds[name].append(found)
    return seconds


def now(device: str = "cpu") -> float:
    """The clock, once the device has done what it was asked."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(run: Callable[[], Any], times: int = 1, device: str = "cpu") -> Slice:
    """A slice that is so many calls."""

    def slice_() -> float:
        started = now(device)
        for _ in range(times):
            run()
        return (now(device) - started) / times

    return slice_


def compared(
    row: str, meaning: str, peer: str, aim: float, over: list[float], under: list[float], *, at_most: bool, **more: Any
) -> Result:
    """The row that says over/under, whose aim is a most (`at_most`) or a least."""
    ratios = sorted(a / b for a, b in zip(over, under, strict=True))
    middle = statistics.median(ratios)
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (middle, middle, middle)
    met = middle <= aim if at_most else middle >= aim
    return Result(row, meaning, peer, f"{'≤' if at_most else '≥'} {aim:g}", middle, met, (low, high),
                  (ratios[0], ratios[-1]), len(ratios), **more)  # fmt: skip


def absent(row: str, meaning: str, peer: str, why: str) -> Result:
    """A row that cannot be measured here."""
    return Result(row, meaning, peer, "", None, None, note=why)


def peak_memory(run: Callable[[], Any], device: str = "cpu") -> int | None:
    """Bytes by which a call raises the device's memory, or this process's resident one, at its highest; None where nobody tells."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps for later would be used without being seen
        before = _kilobytes(status, "VmRSS")
        reset.write_text("5")  # the highest mark is now what is there
        run()
        return 1024 * max(_kilobytes(status, "VmHWM") - before, 0)
    except (OSError, AttributeError):
        return None


def _kilobytes(status: Path, name: str) -> int:
    return int(next(line for line in status.read_text().splitlines() if line.startswith(name)).split()[1])

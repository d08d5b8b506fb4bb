"""How costs grow, as pictures in docs: the loss with rows and classes, the statistics pass with examples, a column with
its students."""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import column
from bench.loss import naive, ours, run_of
from bench.measure import alternate, timed
from bench.step import DEMO, statistics_slices

DOCS = Path(__file__).resolve().parents[1] / "docs"


def draw(rounds: int) -> None:
    classes = [100, 1000, 10_000, 32_000]
    chart("classes", "classes (256 rows)", classes, [loss_ratio(256, count, rounds) for count in classes],
          "naive / ours, time of the loss")  # fmt: skip
    batches = [16, 64, 256, 1024]
    chart("batch", "rows (1,000 classes)", batches, [loss_ratio(count, 1000, rounds) for count in batches],
          "naive / ours, time of the loss")  # fmt: skip
    examples = [256, 1024, 4096]
    chart("examples", "examples", examples, [pass_ratio(count, rounds) for count in examples],
          "statistics pass / plain forward pass")  # fmt: skip
    students = [1, 2, 4, 8]
    chart("students", "students in lockstep (letters, the demo's models)", students,
          [column_ratio(count, rounds) for count in students], "lockstep / separate, time of training")  # fmt: skip


def loss_ratio(rows: int, classes: int, rounds: int) -> list[float]:
    times = max(1, 4_000_000 // (rows * classes))
    slices = {"naive": timed(run_of(naive, rows, classes), times), "ours": timed(run_of(ours, rows, classes), times)}
    seconds = alternate(slices, rounds)
    return [a / b for a, b in zip(seconds["naive"], seconds["ours"])]


def pass_ratio(examples: int, rounds: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        seconds = alternate(statistics_slices(examples, {**DEMO, "batch": 128}, folder), rounds)
    return [a / b for a, b in zip(seconds["statistics"], seconds["plain"])]


def column_ratio(count: int, rounds: int) -> list[float]:
    temperatures = [1.0 + step for step in range(count)]
    seconds = column.seconds_of(column.recipe_for(column.RECIPE, ()), temperatures, rounds)
    return [a / b for a, b in zip(seconds["lockstep"], seconds["separate"])]


def chart(name: str, axis: str, at: Sequence[int], ratios: Sequence[Sequence[float]], what: str) -> None:
    """`docs/bench_NAME.png`: the median of the ratios at each size, with their quartiles."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    middle = [statistics.median(some) for some in ratios]
    low, high = ([statistics.quantiles(some, n=4)[k] for some in ratios] for k in (0, 2))
    axes.fill_between(at, low, high, alpha=0.25, linewidth=0)
    axes.plot(at, middle, marker="o")
    axes.axhline(1, color="0.6", linewidth=0.8)
    axes.set(xscale="log", xlabel=axis, ylabel=what, ylim=(0, None))
    figure.savefig(DOCS / f"bench_{name}.png", dpi=110, metadata={"Software": None})

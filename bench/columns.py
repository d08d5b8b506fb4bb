"""What students of one teacher cost together, as ratios of processor time measured side by side in one run.

    python -m bench.columns RECIPE [STEPS] [ROUNDS] [KEY=VALUE…]

Four students of one teacher (T = 1, 2, 3, 64) of the recipe, trained for STEPS without evaluation: one after another, in lockstep,
and, where the data are without chance, in lockstep with the teacher's logits read from a cache; then one student with a cached
teacher beside one without any teacher. The teacher is as initialised: its answers cost what a trained one's do. Filling the
cache is not counted.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hf_lskd.recipe import Recipe, load_recipe
from hf_lskd.record import MODEL, Cell
from hf_lskd.study.bench import Bench, open_bench
from hf_lskd.study.lockstep import Seat, run_group
from hf_lskd.study.quiet import quiet_libraries

TEMPERATURES = (1.0, 2.0, 3.0, 64.0)
QUIET = ("training.eval_strategy='no'", "training.logging_strategy='no'", "training.save_strategy='no'")


def recipe_for(path: Path, steps: int, settings: list[str]) -> Recipe:
    recipe = load_recipe(path, None, [*QUIET, f"training.max_steps={steps}", *settings])
    students = tuple(replace(student, training={}) for student in recipe.students[:1])
    return replace(recipe, teacher=replace(recipe.teacher, training={}), students=students)


def students(recipe: Recipe) -> list[Cell]:
    common = {"kd_weight": 1.0, "kd_loss_scale": 1.0, "scale_student": True, "student_label_smoothing": 0.0}
    return [Cell("student", 0.1, 0, student=recipe.students[0].name, temperature=t, **common) for t in TEMPERATURES]


def trained(bench: Bench, folder: Path, teacher: Path | None, cached: bool) -> Callable[..., dict[str, Any]]:
    """A function that trains one student, from a seat or alone."""
    recipe = bench.recipe
    switches = replace(recipe.switches, teacher_cache="logits" if cached else "none")

    def train(cell: Cell, seat: Seat | None = None) -> dict[str, Any]:
        bench.task.recipe = replace(recipe, switches=switches)
        trainer = bench.task.trainer(cell, folder / cell.name, teacher=teacher, prepared=seat and seat.teacher)
        if trainer.teacher is not None:
            trainer.teacher.reported = True  # the steps are measured, not the check before the first one
        if seat is not None:
            seat.take(trainer)
        trainer.train()
        if seat is not None:
            seat.leave()
        return {}

    return train


def runs(bench: Bench, folder: Path) -> dict[str, Callable[[], Any]]:
    cells = students(bench.recipe)
    teacher = folder / "teacher" / MODEL
    teacher.parent.mkdir()
    bench.task.save(bench.task.build(cells[0].teacher), bench.task.spec(cells[0].teacher), teacher)
    alone = trained(bench, folder, teacher, cached=False)
    found: dict[str, Callable[[], Any]] = {
        "four students, one by one": lambda: [alone(cell) for cell in cells],
        "in lockstep": lambda: run_group(cells, None, alone),
        "one student without a teacher": lambda: trained(bench, folder, None, cached=False)(cells[0]),
        "one student": lambda: alone(cells[0]),
    }
    if bench.task.data.get("augmentation") in (None, "none"):
        cached = trained(bench, folder, teacher, cached=True)
        found["in lockstep, teacher cached"] = lambda: run_group(cells, None, cached)
        found["one student, teacher cached"] = lambda: cached(cells[0])
    return found


def measure(work: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of the processor for each, in turn, after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for round_ in range(rounds + 1):
        for name, run in work.items():
            started = time.process_time()
            run()
            if round_:
                seconds[name].append(time.process_time() - started)
    return seconds


def main() -> None:
    quiet_libraries()
    path, *rest = sys.argv[1:]
    numbers, settings = [int(word) for word in rest if word.isdecimal()], [word for word in rest if "=" in word]
    steps, rounds = [*numbers, *(30, 5)[len(numbers) :]]
    bench = open_bench(recipe_for(Path(path), steps, settings))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {path}, {steps} steps, {rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(runs(bench, Path(folder)), rounds)
    for name, times in seconds.items():
        base = "one student without a teacher" if name.startswith("one") else "four students, one by one"
        ratios = [a / b for a, b in zip(times, seconds[base])]
        print(f"{name:32s} {statistics.median(ratios):5.2f} x {base}   (min {min(ratios):.2f}, max {max(ratios):.2f})")


if __name__ == "__main__":
    main()

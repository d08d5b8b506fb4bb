"""A column of four temperatures in lockstep, with the teacher asked or its answers cached, beside the same students one by one.

What is measured is training: from a student's making to its last step, without evaluation, tables and report, which cost the
same either way. The teacher is as initialised: its answers cost what a trained one's do. A cache is filled before the clock runs.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.measure import Result, absent, alternate, compared, timed
from hf_lskd.recipe import Recipe, load_recipe
from hf_lskd.record import MODEL, Cell
from hf_lskd.study.bench import Bench, open_bench
from hf_lskd.study.lockstep import Seat, run_group
from hf_lskd.study.quiet import quiet_libraries

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "quickstart" / "glyphs.yaml"
CHANGES = ("training.max_steps=40", "training.eval_strategy='no'", "training.logging_strategy='no'",
           "training.save_strategy='no'")  # fmt: skip
# The paper's pair, whose teacher is larger than its student: few steps, since each takes half a second on one thread.
RESNETS = ("teacher.model=resnet50", "students.0.model=resnet18", "data.size=64", "data.variants=0",
           "training.per_device_train_batch_size=32", "training.max_steps=8")  # fmt: skip
TEMPERATURES = (1.0, 2.0, 3.0, 64.0)
NAME, PEER = "column of 4 temperatures", "four separate runs"
LOCKSTEP = "lockstep / separate, time of training"
CACHED = "lockstep with a cached teacher / separate, time of training"


def table_rows(rounds: int) -> list[Result]:
    """The demo's column, and the same letters at 64 px from ResNet-50 to ResNet-18."""
    return [*rows(rounds), *rows(rounds, RECIPE, RESNETS)]


def rows(rounds: int, path: Path = RECIPE, settings: Sequence[str] = ()) -> list[Result]:
    """Both rows for a recipe's first student; the cached one only where no image is ever new."""
    recipe = recipe_for(path, settings)
    seconds = seconds_of(recipe, TEMPERATURES, rounds)
    name = f"{NAME}, {path.stem}, {recipe.teacher.model} → {recipe.students[0].model}"
    base, note = seconds["separate"], f"{recipe.training.get('max_steps')} steps a student, its making included"
    found = [compared(name, LOCKSTEP, PEER, 0.72, seconds["lockstep"], base, at_most=True, note=note)]
    if "cached" not in seconds:
        return [*found, absent(name, CACHED, PEER, "the recipe's data are augmented")]
    return [*found, compared(name, CACHED, PEER, 0.6, seconds["cached"], base, at_most=True, note=note)]


def seconds_of(recipe: Recipe, temperatures: Sequence[float], rounds: int) -> dict[str, list[float]]:
    """Seconds that a column takes separate, in lockstep and, where the recipe's data allow it, in lockstep with a cache."""
    quiet_libraries()
    bench = open_bench(recipe)
    cells = students(recipe, temperatures)
    data = bench.task.data
    with tempfile.TemporaryDirectory() as temporary:
        teacher = Path(temporary) / "teacher" / MODEL
        teacher.parent.mkdir()
        bench.task.save(bench.task.build(cells[0].teacher), bench.task.spec(cells[0].teacher), teacher)
        asked, cached = (trained(bench, Path(temporary), teacher, kept) for kept in ("none", "logits"))
        slices = {"separate": timed(lambda: [asked(cell) for cell in cells]),
                  "lockstep": timed(lambda: run_group(cells, None, asked))}  # fmt: skip
        if data.get("augmentation") in (None, "none") or data.get("augmentation_versions") is not None:
            slices["cached"] = timed(lambda: run_group(cells, None, cached))
        return alternate(slices, rounds)


def recipe_for(path: Path, settings: Sequence[str]) -> Recipe:
    """The recipe with its first student alone and no training arguments of its models, which may bring back evaluation."""
    recipe = load_recipe(path, None, [*CHANGES, *settings])
    first = replace(recipe.students[0], training={})
    return replace(recipe, teacher=replace(recipe.teacher, training={}), students=(first,))


def students(recipe: Recipe, temperatures: Sequence[float] | None = None) -> list[Cell]:
    common = {"kd_weight": 1.0, "kd_loss_scale": 1.0, "scale_student": True, "student_label_smoothing": 0.0}
    return [
        Cell("student", 0.1, 0, student=recipe.students[0].name, temperature=t, **common)
        for t in temperatures or TEMPERATURES
    ]


def trained(bench: Bench, folder: Path, teacher: Path, kept: str) -> Callable[..., dict[str, Any]]:
    """A function that trains one student, from a seat or alone; `kept` is what the recipe's `teacher_cache` says."""
    recipe = replace(bench.recipe, switches=replace(bench.recipe.switches, teacher_cache=kept))

    def train(cell: Cell, seat: Seat | None = None) -> dict[str, Any]:
        bench.task.recipe = recipe
        trainer = bench.task.trainer(cell, folder / cell.name, teachers=[teacher], prepared=seat and seat.teacher)
        trainer.teacher.reported = True  # the steps are measured, not the check before the first one
        if seat is not None:
            seat.take(trainer)
        trainer.train()
        if seat is not None:
            seat.leave()
        return {}

    return train

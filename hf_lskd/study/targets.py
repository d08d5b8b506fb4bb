"""What a teacher's tempered targets are like: g(T) and their entropy, kept beside the teacher's record."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_lskd.analysis.gradient import TargetGradient, equalised_loss_scale
from hf_lskd.record import MODEL, Cell, exact, write_json
from hf_lskd.study.bench import Bench

FILE = "targets.json"


def write_targets(folder: Path, targets: TargetGradient, temperatures: Iterable[float]) -> None:
    """Add to `folder` what `targets` has seen, for these temperatures."""
    found = {exact(t): {"gradient": targets.value(t), "entropy": targets.entropy(t)} for t in temperatures}
    write_json(folder / FILE, {**read_targets(folder), **found})


def read_targets(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def targets_of(bench: Bench, cell: Cell, teacher: Path | None) -> dict[str, float | None]:
    """g(T) and the mean entropy of a student's targets over the training images under the evaluation transform.

    `teacher` is the teacher's finished cell. A temperature that joined the grid after it was finished is measured now, in
    one pass for all that are missing. None and None for a teacher's own cell.
    """
    if teacher is None or cell.temperature is None:
        return {"target_gradient": None, "target_entropy": None}
    known = read_targets(teacher)
    if exact(cell.temperature) not in known:
        trainer = bench.task.reader(cell.teacher, teacher / MODEL)
        missing = [t for t in {cell.temperature, *bench.recipe.grid.temperature} if exact(t) not in known]
        reading = bench.task.read_split(trainer, bench.task.spec(cell.teacher), "train", missing)
        assert reading.targets is not None  # there is at least one temperature
        if trainer.accelerator.is_main_process:
            write_targets(teacher, reading.targets, missing)
        trainer.accelerator.wait_for_everyone()
        known = read_targets(teacher)
    found = known[exact(cell.temperature)]
    return {"target_gradient": found["gradient"], "target_entropy": found["entropy"]}


def loss_scale(cell: Cell, gradient: float | None) -> float:
    """`kd_loss_scale` as a number: `equalised` is 1 over the size of the first gradient on the student's logits.

    That is g(T) where T divides the student's logits; where it does not, T²·KL has a gradient T times as large.
    """
    if cell.kd_loss_scale == "equalised":
        assert gradient is not None  # only students have this axis
        assert cell.temperature is not None
        return equalised_loss_scale(gradient if cell.scale_student else gradient * cell.temperature)
    return 1.0 if cell.kd_loss_scale is None else float(cell.kd_loss_scale)

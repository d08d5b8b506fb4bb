"""What a teacher's tempered targets are like: g(T) and their entropy, kept beside the teacher's record."""

import json
from pathlib import Path
from typing import Any

from hf_lskd.analysis.gradient import TargetGradient, equalised_loss_scale
from hf_lskd.record import MODEL, Cell, exact, write_json
from hf_lskd.study.bench import Bench

FILE = "targets.json"


def write_targets(folder: Path, targets: TargetGradient) -> None:
    """Add to `folder` what `targets` has seen."""
    found = {
        point(t, k): {"gradient": targets.value(t, k), "entropy": targets.entropy(t, k)}
        for t in targets.temperatures
        for k in targets.top_k
    }
    write_json(folder / FILE, {**read_targets(folder), **found})


def point(temperature: float, top_k: int | None) -> str:
    """The name of a temperature, and of how many classes are kept where not all are."""
    return exact(temperature) if top_k is None else f"{exact(temperature)} top {top_k}"


def read_targets(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def targets_of(bench: Bench, cell: Cell, teacher: Path | None) -> dict[str, float | None]:
    """g(T) and the mean entropy of a student's targets over the training images under the evaluation transform.

    With `kd_top_k` the targets are those k classes alone. `teacher` is the teacher's finished cell. A temperature that joined
    the grid after it was finished is measured now, in one pass with all of the grid. None and None for a teacher's own cell.
    """
    if teacher is None or cell.temperature is None:
        return {"target_gradient": None, "target_entropy": None}
    wanted = point(cell.temperature, cell.kd_top_k)
    if wanted not in read_targets(teacher):
        grid = bench.recipe.grid
        temperatures, top_k = {cell.temperature, *grid.temperature}, {cell.kd_top_k, *grid.kd_top_k}
        trainer = bench.task.reader(cell.teacher, teacher / MODEL)
        reading = bench.task.read_split(trainer, bench.task.spec(cell.teacher), "train", temperatures, top_k)
        assert reading.targets is not None  # there is at least one temperature
        if trainer.accelerator.is_main_process:
            write_targets(teacher, reading.targets)
        trainer.accelerator.wait_for_everyone()
    found = read_targets(teacher)[wanted]
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

"""What a teacher's tempered targets are like: g(T) and their entropy, kept beside the teacher's record."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from hf_lskd.analysis.gradient import TargetGradient, equalised_loss_scale
from hf_lskd.recipe import signature
from hf_lskd.record import MODEL, PREDICTIONS, TARGETS, Cell, follow_umask, read_record, target_point, write_json
from hf_lskd.study.bench import Bench

METRICS = "metrics.json"  # of an ensemble, beside it


def write_targets(folder: Path, targets: TargetGradient) -> None:
    """Add to `folder` what `targets` has seen."""
    found = {
        target_point(t, k): {"gradient": targets.value(t, k), "entropy": targets.entropy(t, k)}
        for t in targets.temperatures
        for k in targets.top_k
    }
    write_json(folder / TARGETS, {**read_targets(folder), **found})


def read_targets(folder: Path) -> dict[str, Any]:
    path = folder / TARGETS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def targets_of(bench: Bench, cell: Cell, teachers: Sequence[Path]) -> dict[str, float | None]:
    """g(T) and the mean entropy of a student's targets over the training images under the evaluation transform.

    With `kd_top_k` the targets are those k classes alone. `teachers` are the teachers' finished cells; of several the targets
    are those that they give together. A temperature that joined the grid after a teacher was finished is measured now, in
    one pass with all of the grid. None and None for a teacher's own cell.
    """
    if not teachers or cell.temperature is None:
        return {"target_gradient": None, "target_entropy": None}
    place, wanted = lessons(teachers, bench.recipe.teacher.ensemble_of), target_point(cell.temperature, cell.kd_top_k)
    if wanted not in read_targets(place) or not (place / PREDICTIONS).is_file():
        measure_teachers(bench, cell, teachers, place)
    found = read_targets(place)[wanted]
    return {"target_gradient": found["gradient"], "target_entropy": found["entropy"]}


def lessons(teachers: Sequence[Path], ensemble_of: str) -> Path:
    """Where it stands what these teachers teach (`targets.json`, predictions): a teacher's own cell, and for an ensemble a
    folder of its own in the first one's."""
    if len(teachers) == 1:
        return teachers[0]
    signatures = [(read_record(teacher) or {})["signature"] for teacher in teachers]
    return teachers[0] / f"ensemble-{signature({ensemble_of: signatures})[:12]}"


def measure_teachers(bench: Bench, cell: Cell, teachers: Sequence[Path], place: Path) -> None:
    """Measure what a student's teachers teach, at every temperature of the grid and its own, and keep it in `place`."""
    task, grid, teacher = bench.task, bench.recipe.grid, cell.teacher
    temperatures, top_k = {cell.temperature or 1.0, *grid.temperature}, {cell.kd_top_k, *grid.kd_top_k}
    trainer, spec = task.reader(teacher, teachers[0] / MODEL), task.spec(teacher)
    if len(teachers) == 1:
        targets = task.read_split(trainer, spec, "train", temperatures, top_k).targets
        assert targets is not None  # there is at least one temperature
        found, said = [targets], None
    else:
        models = [folder / MODEL for folder in teachers]
        found = list(task.read_teachers(trainer, models, spec, "train", temperatures, top_k).targets.values())
        said = task.read_teachers(trainer, models, spec, "validation").predictions
    if trainer.accelerator.is_main_process:
        place.mkdir(exist_ok=True)
        for targets in found:
            write_targets(place, targets)
        if said is not None:
            write_json(place / METRICS, task.metrics(said))
            write_predictions(place, said)
            follow_umask(place)
    trainer.accelerator.wait_for_everyone()


def write_predictions(folder: Path, predictions: Mapping[str, Tensor]) -> None:
    """What a model says of each held-out item, whole or not at all."""
    kept = ("label", "prediction", "confidence", "nll")
    temporary = folder / f".{PREDICTIONS}.{os.getpid()}"
    save_file({key: predictions[key].contiguous() for key in kept}, temporary)
    os.replace(temporary, folder / PREDICTIONS)


def loss_scale(cell: Cell, gradient: float | None) -> float:
    """`kd_loss_scale` as a number: `equalised` is 1 over the size of the first gradient on the student's logits.

    That is g(T) where T divides the student's logits; where it does not, T²·KL has a gradient T times as large.
    """
    if cell.kd_loss_scale == "equalised":
        assert gradient is not None  # only students have this axis
        assert cell.temperature is not None
        return equalised_loss_scale(gradient if cell.scale_student else gradient * cell.temperature)
    return 1.0 if cell.kd_loss_scale is None else float(cell.kd_loss_scale)

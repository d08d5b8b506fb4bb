"""One cell, from nothing to its finished folder: trained, measured, recorded, then renamed into place."""

import gc
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_lskd.analysis.gradient import TargetGradient
from hf_lskd.analysis.semantics import SimilarSets
from hf_lskd.analysis.separation import class_geometry
from hf_lskd.errors import InputError
from hf_lskd.recipe import Recipe, signature
from hf_lskd.record import (
    FILE,
    FORMAT,
    MODEL,
    PREDICTIONS,
    STATISTICS,
    Cell,
    file_sha256,
    hardware,
    peak_memory_mb,
    read_record,
    versions,
    write_json,
)
from hf_lskd.tasks.image_classification import SPLITS, ImageClassification

WORK = "trainer"  # the Trainer's own folder inside an unfinished cell: checkpoints
TARGETS = "targets.json"  # g(T) and the entropy of a teacher's tempered targets, beside its record


@dataclass(frozen=True)
class Bench:
    """What every cell of a study is made with."""

    recipe: Recipe
    task: ImageClassification
    sets: Mapping[int, SimilarSets] | None = None
    on_step: Callable[[float], None] | None = None  # told the share of the cell's steps that is done


def cell_signature(bench: Bench, cell: Cell) -> str:
    """Hash of everything that can change the cell's numbers: data, model, training, switches, the cell, and its teacher's."""
    recipe = bench.recipe.to_dict()
    spec = bench.task.spec(cell)
    parts: dict[str, Any] = {
        "task": recipe["task"],
        "data": recipe["data"],
        "fingerprint": bench.task.source.fingerprint,
        "training": bench.recipe.training_of(spec),
        "model": [spec.model, spec.pretrained, dict(spec.model_args)],
        "switches": recipe["switches"],
        "cell": cell.to_dict(),
    }
    if cell.role == "student":
        parts["teacher"] = cell_signature(bench, cell.teacher)
    return signature(parts)


def run_cell(bench: Bench, cell: Cell, folder: Path, teacher: Path | None) -> dict[str, Any]:
    """Train and measure one cell; `folder` appears, complete, when it is done. Returns the record.

    `teacher` is the finished cell of the teacher (it is read back from there, also when this process has just trained it:
    a model in memory and the same one on disk differ in the last bits). An interrupted run of the same cell continues from
    its last checkpoint.
    """
    started = time.perf_counter()
    reset_process_state()
    sign = cell_signature(bench, cell)
    work = unfinished(folder, sign)
    loss_scale = resolved_loss_scale(bench, cell, teacher)
    trainer = trained(bench, cell, work / WORK, teacher, loss_scale)
    train_end = time.perf_counter()
    measured = measure(bench, cell, trainer, work)
    if trainer.accelerator.is_main_process:
        trainer.model.save_pretrained(work / MODEL)
        record = {
            **base_record(bench.recipe, cell, sign),
            **measured,
            **targets_of(bench, cell, teacher),
            **history(trainer.state.log_history),
            "kd_loss_scale_value": loss_scale if cell.role == "student" else None,
            "teacher": None
            if teacher is None
            else {"name": cell.teacher.name, "record_sha256": file_sha256(teacher / FILE)},
            "hardware": hardware(trainer.accelerator.num_processes),
            "durations": {
                "train": train_end - started,
                "evaluate": time.perf_counter() - train_end,
                "total": time.perf_counter() - started,
            },
            "peak_memory_mb": peak_memory_mb(),
        }
        write_json(work / FILE, record)
        finish(work, folder)
    trainer.accelerator.wait_for_everyone()
    record = read_record(folder) or {}
    del trainer
    gc.collect()
    return record


def trained(bench: Bench, cell: Cell, work: Path, teacher: Path | None, loss_scale: float) -> Any:
    """The trainer after its training; around a finished teacher, where the recipe brings one, no training is left to do."""
    spec = bench.task.spec(cell)
    if cell.role == "teacher" and bench.recipe.teacher.path is not None:
        return bench.task.reader(cell, Path(str(spec.model)))
    trainer = bench.task.trainer(
        cell,
        work,
        teacher=None if teacher is None else teacher / MODEL,
        loss_scale=loss_scale,
        callbacks=[] if bench.on_step is None else [StepCallback(bench.on_step)],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)) if work.is_dir() else None)
    return trainer


def measure(bench: Bench, cell: Cell, trainer: Any, work: Path) -> dict[str, Any]:
    """Both splits under the evaluation transform: statistics and predictions to files, metrics and geometry to the record."""
    task, spec = bench.task, bench.task.spec(cell)
    tensors, found = {}, {}
    for split in SPLITS:
        temperatures = bench.recipe.grid.temperature if (cell.role, split) == ("teacher", "train") else ()
        reading = task.read_split(trainer, spec, split, temperatures)
        tensors.update(reading.statistics.to_tensors(f"{split}."))
        if split == "train":
            found["class_geometry"] = class_geometry(reading.statistics, bench.sets)
            found["train_top1"] = task.metrics(reading.predictions)["top1"]
            if reading.targets is not None and trainer.accelerator.is_main_process:
                write_json(work / TARGETS, target_values(reading.targets, temperatures))
        else:
            found["metrics"] = task.metrics(reading.predictions)
            predictions = reading.predictions
    if trainer.accelerator.is_main_process:
        save_file(tensors, work / STATISTICS)
        save_file(
            {key: predictions[key].contiguous() for key in ("label", "prediction", "confidence", "nll")},
            work / PREDICTIONS,
        )
    found["metrics"]["train_top1"] = found.pop("train_top1")
    return found


# ---- The teacher's targets: g(T) and entropy


def target_values(targets: TargetGradient, temperatures: Any) -> dict[str, Any]:
    return {f"{t:g}": {"gradient": targets.value(t), "entropy": targets.entropy(t)} for t in temperatures}


def teacher_targets(bench: Bench, cell: Cell, teacher: Path, temperature: float) -> dict[str, float]:
    """g(T) and the mean entropy of the teacher's tempered targets over the training images under the evaluation transform.

    Kept beside the teacher's record; a temperature that joined the grid later is measured now, in one pass for the whole grid.
    """
    import json

    path = teacher / TARGETS
    known = json.loads(path.read_text()) if path.is_file() else {}
    if f"{temperature:g}" not in known:
        trainer = bench.task.reader(cell.teacher, teacher / MODEL)
        wanted = sorted({temperature, *bench.recipe.grid.temperature})
        reading = bench.task.read_split(trainer, bench.task.spec(cell.teacher), "train", wanted)
        assert reading.targets is not None
        known = {**known, **target_values(reading.targets, wanted)}
        if trainer.accelerator.is_main_process:
            write_json(path, known)
    return known[f"{temperature:g}"]


def targets_of(bench: Bench, cell: Cell, teacher: Path | None) -> dict[str, float | None]:
    if teacher is None or cell.temperature is None:
        return {"target_gradient": None, "target_entropy": None}
    found = teacher_targets(bench, cell, teacher, cell.temperature)
    return {"target_gradient": found["gradient"], "target_entropy": found["entropy"]}


def resolved_loss_scale(bench: Bench, cell: Cell, teacher: Path | None) -> float:
    """`kd_loss_scale` as a number: `equalised` is 1/g(T) of this teacher."""
    from hf_lskd.analysis.gradient import equalised_loss_scale

    if teacher is None or cell.temperature is None or cell.kd_loss_scale != "equalised":
        return float(cell.kd_loss_scale) if isinstance(cell.kd_loss_scale, int | float) else 1.0
    return equalised_loss_scale(teacher_targets(bench, cell, teacher, cell.temperature)["gradient"])


# ---- The folder


def unfinished(folder: Path, sign: str) -> Path:
    """The hidden folder that a cell is made in: kept when an earlier run of the very same cell left it, else new."""
    work = folder.with_name(f".{folder.name}.partial")
    mark = work / "signature"
    if work.is_dir() and (not mark.is_file() or mark.read_text() != sign):
        shutil.rmtree(work)
    try:
        work.mkdir(parents=True, exist_ok=True)
        mark.write_text(sign)
    except OSError as error:
        raise InputError(
            f"{folder.parent} cannot be written ({error.strerror})", "a folder that this user may write to"
        ) from error
    return work


def finish(work: Path, folder: Path) -> None:
    """Rename the complete cell into place: a folder with a record is finished, whatever happens next."""
    shutil.rmtree(work / WORK, ignore_errors=True)
    (work / "signature").unlink()
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(work, folder)


def fail_cell(recipe: Recipe, cell: Cell, folder: Path, error: BaseException) -> dict[str, Any]:
    """Record that a cell failed, and why; running the study again tries it again."""
    record = {
        **base_record(recipe, cell, ""),
        "status": "failed",
        "error": {"type": type(error).__name__, "message": str(error)},
        "metrics": {},
        "curve": [],
        "best": None,
        "teacher": None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, record)
    return record


def base_record(recipe: Recipe, cell: Cell, sign: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": cell.name,
        "status": "complete",
        "error": None,
        **cell.to_dict(),
        "signature": sign,
        "recipe": recipe.to_dict(),
        "study": {"name": recipe.name},
        "versions": versions(),
    }


def history(log: list[dict[str, Any]]) -> dict[str, Any]:
    """The training curve (training and evaluation logs, evaluation keys without their prefix) and the best epoch on validation."""
    curve = []
    for entry in log:
        kept = {
            key.removeprefix("eval_"): value
            for key, value in entry.items()
            if not key.endswith(("runtime", "_per_second"))
        }
        if "loss" in entry or any(key.startswith("eval_") for key in entry):
            curve.append({**kept, "split": "validation" if "eval_loss" in entry else "train"})
    scored = [point for point in curve if "top1" in point]
    best = max(scored, key=lambda point: point["top1"]) if scored else None
    return {"curve": curve, "best": None if best is None else {"epoch": best["epoch"], "top1": best["top1"]}}


def reset_process_state() -> None:
    """Forget what an earlier cell of this process left in accelerate's shared state, so that a cell is the same run alone."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state()
    GradientState._reset_state()


class StepCallback(TrainerCallback):
    """Tells the progress line how far a cell is."""

    def __init__(self, on_step: Callable[[float], None]) -> None:
        self.tell = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tell(state.global_step / max(state.max_steps, 1))

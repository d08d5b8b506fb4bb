"""One cell, from nothing to its finished folder: trained, saved, measured as saved, recorded, then renamed into place."""

import contextlib
import gc
import json
import os
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from hf_lskd.errors import InputError
from hf_lskd.host_memory import give_back_freed_memory
from hf_lskd.recipe import Recipe
from hf_lskd.record import (
    FILE,
    FORMAT,
    MODEL,
    PREDICTIONS,
    STATISTICS,
    Cell,
    file_sha256,
    follow_umask,
    hardware,
    model_folder,
    peak_memory_mb,
    read_record,
    reset_peak_memory,
    versions,
    without_times,
    write_json,
)
from hf_lskd.sharding import whole_model
from hf_lskd.study.batch import check_batch
from hf_lskd.study.bench import Bench, cell_signature, process_state, world_size
from hf_lskd.study.claims import agreed, is_first, not_writable
from hf_lskd.study.sharing import take_teacher
from hf_lskd.study.targets import METRICS, lessons, loss_scale, targets_of, write_predictions, write_targets
from hf_lskd.tasks.task import SPLITS, Task

CHECKPOINTS = "trainer"  # the Trainer's own folder inside an unfinished cell
MARK = "signature"  # of the cell that an unfinished folder is being made for


def run_cell(bench: Bench, cell: Cell, folder: Path, teachers: Sequence[Path]) -> dict[str, Any]:
    """Train and measure one cell; `folder` appears, complete, when it is done. Returns the record.

    `teachers` are the finished cells of a student's teachers. They are read back from there, also when this process has just
    trained them, and so is the cell's own model before it is measured: a model in memory and the same one on disk differ in the
    last bits. An interrupted run of the same cell continues from its last whole checkpoint; one that left nothing to continue
    from leaves no folder. With `bench.seat` other students of the same teachers are trained at the same time (`lockstep`).
    """
    try:
        return make_cell(bench, cell, folder, teachers)
    except BaseException:
        if is_first(bench.recipe):
            remove_untouched(partial_folder(folder))
        raise


def make_cell(bench: Bench, cell: Cell, folder: Path, teachers: Sequence[Path]) -> dict[str, Any]:
    """`run_cell`, which leaves a hidden folder behind when it fails."""
    seat = bench.seat
    clock = time.perf_counter if seat is None else seat.clock
    started = clock()
    forget_earlier_cells()
    reset_peak_memory()
    sources = [teacher_source(teacher) for teacher in teachers]
    sign = cell_signature(bench, cell, [source["signature"] for source in sources])
    work = partial_folder(folder)
    first = world_size() == 1 or process_state(bench.recipe).is_main_process
    shared = cell.role == "teacher" and bench.recipe.teacher.shared
    if first and not (shared and take_teacher(cell, folder, sign)):
        claim_unfinished(work, sign)
    if world_size() > 1:
        process_state(bench.recipe).wait_for_everyone()
    if shared and (record := read_record(folder)) is not None and record["status"] == "complete":
        return record
    targets = targets_of(bench, cell, teachers)
    factor = loss_scale(cell, targets["target_gradient"])
    trainer = trained(bench, cell, work / CHECKPOINTS, teachers, factor)
    train_end = clock()
    if seat is not None:
        seat.leave()
    measured = measure(bench, cell, work, teachers)
    if trainer.accelerator.is_main_process:
        record = {
            **base_record(bench.recipe, cell, sign),
            **measured,
            **targets,
            **history(trainer.state.log_history, bench.task),
            "kd_loss_scale_value": factor if cell.role == "student" else None,
            "teacher": teacher_entry(bench, teachers, sources),
            "hardware": hardware(trainer.accelerator.num_processes),
            "lockstep": 1 if seat is None else seat.students,
            "durations": {"train": train_end - started, "evaluate": clock() - train_end, "total": clock() - started},
            "peak_memory_mb": peak_memory_mb(),
        }
        write_json(work / FILE, record)
        finish(work, folder)
    trainer.accelerator.wait_for_everyone()
    del trainer
    gc.collect()
    return read_record(folder) or {}


def teacher_source(teacher: Path) -> dict[str, Any]:
    """Name, signature and the record's hash of a teacher's finished cell."""
    record = read_record(teacher) or {}
    return {"name": record["name"], "signature": record["signature"], "record_sha256": file_sha256(teacher / FILE)}


def teacher_entry(
    bench: Bench, teachers: Sequence[Path], sources: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """A student's teacher as its record names it; of an ensemble its members, and its own metrics on the held-out data."""
    named = [{key: source[key] for key in ("name", "record_sha256")} for source in sources]
    if len(named) < 2:
        return named[0] if named else None
    of = bench.recipe.teacher.ensemble_of
    metrics = json.loads((lessons(teachers, of) / METRICS).read_text(encoding="utf-8"))
    return {"name": " + ".join(one["name"] for one in named), "of": of, "members": named, "metrics": metrics}


def trained(bench: Bench, cell: Cell, work: Path, teachers: Sequence[Path], factor: float) -> Any:
    """The trainer after its training, its model saved beside `work`; a finished teacher that the recipe brings is copied."""
    if cell.role == "teacher" and bench.recipe.teacher.path is not None:
        trainer = bench.task.reader(cell, model_folder(Path(bench.recipe.teacher.path[cell.label_smoothing])))
    else:
        if bench.seat is not None and bench.seat.resume is not None:
            drop_later(work, bench.seat.resume)
        trainer = bench.task.trainer(
            cell,
            work,
            teachers=[teacher / MODEL for teacher in teachers],
            loss_scale=factor,
            callbacks=[] if bench.on_step is None else [StepCallback(bench.on_step)],
            prepared=None if bench.seat is None else bench.seat.teacher,
        )
        if bench.seat is not None:
            bench.seat.take(trainer)
        said = check_batch(trainer.args, bench.processes)
        checkpoint = agreed(bench.recipe, partial(last_whole_checkpoint, work))
        if bench.say is not None:
            bench.say(said if checkpoint is None else f"{said}; goes on from {Path(checkpoint).name}")
        trainer.train(resume_from_checkpoint=checkpoint)
        refuse_diverged(trainer.model)
    model = whole_model(trainer, lambda: bench.task.build(cell))
    if trainer.accelerator.is_main_process:
        bench.task.save(model, bench.task.spec(cell), work.parent / MODEL)
    trainer.accelerator.wait_for_everyone()
    return trainer


class DivergedError(RuntimeError):
    """The run went wrong, not the input."""


def refuse_diverged(model: torch.nn.Module) -> None:
    """Weights that are not finite have no accuracy, no η and nothing to teach."""
    for name, parameter in model.named_parameters():
        weight = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if not bool(torch.isfinite(weight).all()):
            raise DivergedError(
                f"training diverged: {name} has values that are not finite. Lower learning_rate, or raise warmup_steps."
            )


def measure(bench: Bench, cell: Cell, work: Path, teachers: Sequence[Path]) -> dict[str, Any]:
    """The saved model on both splits under the evaluation transform: statistics and predictions to files, the rest returned."""
    task, spec = bench.task, bench.task.spec(cell)
    reader = task.reader(cell, work / MODEL)
    temperatures = bench.recipe.grid.temperature if cell.role == "teacher" else ()
    train = task.read_split(reader, spec, "train", temperatures, bench.recipe.grid.kd_top_k)
    validation = task.read_split(reader, spec, "validation")
    if reader.accelerator.is_main_process:
        tensors: dict[str, torch.Tensor] = {}
        for split, reading in zip(SPLITS, (train, validation)):
            tensors.update(reading.statistics.to_tensors(f"{split}."))
        save_file(tensors, work / STATISTICS)
        write_predictions(work, validation.predictions)
        if train.targets is not None:
            write_targets(work, train.targets)
    made = task.output(reader, work)
    on_train = task.metrics(train.predictions)[task.curve_metric]
    metrics: dict[str, float | None] = {
        **task.metrics(validation.predictions),
        f"train_{task.curve_metric}": on_train,
        **made["metrics"],
    }
    if teachers:
        said = load_file(lessons(teachers, bench.recipe.teacher.ensemble_of) / PREDICTIONS)
        metrics["agreement"] = agreement(validation.predictions, said)
    return {**made, "metrics": metrics}


def agreement(student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor]) -> float | None:
    """Share of the validation examples whose top class is the teacher's; None where the two have not seen the same ones."""
    if not torch.equal(student["label"], teacher["label"]):
        return None
    return float((student["prediction"] == teacher["prediction"]).double().mean())


# ---- The folder


def claim_unfinished(work: Path, sign: str) -> None:
    """Make the hidden folder that a cell is made in; what an earlier run of the very same cell left there is kept."""
    try:
        if work.is_dir() and read_mark(work) != sign:
            shutil.rmtree(work)
        work.mkdir(parents=True, exist_ok=True)
        if read_mark(work) != sign:
            (work / MARK).write_text(sign)
    except OSError as error:
        raise not_writable(work.parent, error) from error


def remove_untouched(work: Path) -> None:
    """Remove an unfinished folder that holds no file but its mark: its cell was refused before its first step."""
    if work.is_dir() and all(path.is_dir() or path == work / MARK for path in work.rglob("*")):
        shutil.rmtree(work, ignore_errors=True)


def partial_folder(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def read_mark(work: Path) -> str | None:
    """The signature of the cell that an unfinished folder is of."""
    return (work / MARK).read_text() if (work / MARK).is_file() else None


def finished(folder: Path) -> dict[str, Any] | None:
    """The record of a complete cell; None of one that failed or is not there."""
    record = read_record(folder)
    return record if record is not None and record["status"] == "complete" else None


def last_whole_checkpoint(work: Path) -> str | None:
    """The newest whole checkpoint in `work`."""
    found = whole_checkpoints(work)
    return str(found[max(found)]) if found else None


def drop_later(work: Path, step: int) -> None:
    """Remove the checkpoints after `step`: students that go on from it together keep the same ones again."""
    for later, checkpoint in whole_checkpoints(work).items():
        if later > step:
            shutil.rmtree(checkpoint)


def whole_checkpoints(work: Path) -> dict[int, Path]:
    """Step and folder of each checkpoint in `work` whose last file, the Trainer's state, is whole: a kill may leave half of
    one."""
    found = {}
    for checkpoint in work.glob("checkpoint-*"):
        with contextlib.suppress(OSError, ValueError):
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            found[int(checkpoint.name.rpartition("-")[2])] = checkpoint
    return found


def finish(work: Path, folder: Path) -> None:
    """Rename the complete cell into place: a folder with a record is finished, whatever happens next."""
    shutil.rmtree(work / CHECKPOINTS, ignore_errors=True)
    for made in (work, work / MODEL):
        follow_umask(made)
    (work / MARK).unlink()
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(work, folder)


# ---- The record


def fail_cell(recipe: Recipe, cell: Cell, folder: Path, error: BaseException) -> dict[str, Any]:
    """Record that a cell failed, and why; running the study again tries it again."""
    record = {
        **base_record(recipe, cell, ""),
        "status": "failed",
        "error": {
            "type": type(error).__name__,
            "message": str(error),
            "input": isinstance(error, InputError),
            "traceback": "".join(traceback.format_exception(error)),
        },
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
        "data_seed": recipe.data_seed(cell.seed),
        "signature": sign,
        "recipe": recipe.to_dict(),
        "study": {"name": recipe.name},
        "versions": versions(),
    }


def history(log: list[dict[str, Any]], task: Task) -> dict[str, Any]:
    """The training curve (training and evaluation logs, evaluation keys without their prefix) and the best epoch on validation."""
    curve = []
    for entry in log:
        evaluation = "eval_loss" in entry
        if evaluation or "loss" in entry:
            kept = {key.removeprefix("eval_"): value for key, value in without_times(entry).items()}
            curve.append({**kept, "split": "validation" if evaluation else "train"})
    metric, sign = task.curve_metric, task.curve_sign
    scored = [point for point in curve if metric in point]
    best: Mapping[str, Any] = max(scored, key=lambda point: sign * point[metric], default={})
    return {"curve": curve, "best": {"epoch": best["epoch"], metric: best[metric]} if best else None}


def forget_earlier_cells() -> None:
    """Drop what a cell that failed in the middle of an epoch left in accelerate's shared state: its data loader, and where in
    an accumulation window it stood. (The rest of that state is made anew with every trainer's arguments.) And the memory that
    earlier cells have freed, which would count in this one's peak."""
    from accelerate.state import GradientState

    GradientState._reset_state()
    give_back_freed_memory()


class StepCallback(TrainerCallback):
    """Tells the progress line how far a cell is."""

    def __init__(self, on_step: Callable[[float], None]) -> None:
        self.tell = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tell(state.global_step / max(state.max_steps, 1))

"""What every cell of a study is made with, opened and checked before the first one, and the signature of a cell."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from hf_lskd.analysis.semantics import SimilarSets
from hf_lskd.errors import InputError
from hf_lskd.recipe import ModelSpec, Recipe, StudentSpec, signature
from hf_lskd.record import MODEL, Cell, exact, model_folder, read_record
from hf_lskd.study.classes import similar_sets, three_classes
from hf_lskd.study.grid import teachers_of
from hf_lskd.tasks import open_task
from hf_lskd.tasks.task import Task


@dataclass(frozen=True)
class Bench:
    """The recipe, its data, and S1 and S2 of each target class (None: no η)."""

    recipe: Recipe
    task: Task
    sets: Mapping[int, SimilarSets] | None = None
    on_step: Callable[[float], None] | None = None  # told the share of the cell's steps that is done
    processes: int = field(default_factory=lambda: world_size())  # that make a cell together
    make: Callable[..., dict[str, Any]] | None = (
        None  # makes a cell elsewhere, called as `cell.run_cell`; None: in this process
    )
    say: Callable[[str], None] | None = None  # told what a cell's step is made of, before the first one
    lockstep: bool = True  # whether students of one teacher may be trained together
    seat: Any = None  # the student's place among those that are trained together


def open_bench(recipe: Recipe, cache_dir: Path | None = None) -> Bench:
    """Open the data and check against them what the recipe names, so that bad input costs no training.

    Raises InputError for data that cannot be read, unknown classes under `eta` or `projection`, targets without similar
    classes, and unknown models.
    """
    task = open_task(recipe, cache_dir)
    sets = similar_sets(recipe, task)
    if recipe.eta is not None:
        task.check_eta(recipe.eta)
    if recipe.projection is not None and (task.groups is not None or recipe.projection.classes != "auto"):
        three_classes(recipe, task)
    trained_teacher = [recipe.teacher] if recipe.teacher.path is None else []
    for spec in [*trained_teacher, *recipe.students]:
        task.check(spec)
    return Bench(recipe, task, sets)


def check_given_teacher(bench: Bench, label_smoothing: float, path: str) -> None:
    """Refuse a finished teacher that cannot be read, has other classes, or is one of ours made with another α."""
    folder = Path(path)
    record = read_record(folder.parent if folder.name == MODEL else folder)
    if record is not None and record["role"] == "teacher" and record["label_smoothing"] != label_smoothing:
        raise InputError(
            f"teacher.path: {path} was trained with label smoothing {exact(record['label_smoothing'])}",
            f"a teacher of label smoothing {exact(label_smoothing)}, which the recipe gives this path for",
        )
    bench.task.check_teacher(model_folder(folder))


def check_cache(recipe: Recipe, processes: int) -> None:
    """Refuse a teacher cache for cells that several processes make together, before any of them is trained."""
    kept = recipe.switches.teacher_cache
    if kept != "none" and processes > 1:
        raise InputError(f"switches.teacher_cache: {kept} with {processes} processes a cell", "one, or none kept")


# ---- Signatures


def cell_signature(bench: Bench, cell: Cell, teachers: Sequence[str] = ()) -> str:
    """Hash of everything that can change the cell's numbers: data, model, training, switches, the cell, and its teachers'.

    `teachers` are the signatures of the teachers that a student learns from; none: of its own ones in this study.
    Versions and hardware stand in the record beside it: a study may go on after an update or on another machine.
    """
    recipe = bench.recipe.to_dict()
    spec = bench.task.spec(cell)
    training = bench.recipe.training_of(spec)
    parts: dict[str, Any] = {
        "task": recipe["task"],
        "data": {
            key: value
            for key, value in recipe["data"].items()
            if key != "augmentation_versions" or cell.role == "student"  # a teacher's augmentation is ever new
        },
        "fingerprint": bench.task.fingerprint,
        "training": {key: value for key, value in training.items() if key != "save_minutes"},
        "model": model_identity(spec),
        "switches": {
            key: value
            for key, value in recipe["switches"].items()
            if key != "teacher_cache" or (value != "none" and cell.role == "student")
        },
        "cell": cell.to_dict(),
        "processes": bench.processes,  # they multiply the batch
    }
    if recipe.get("decoding") is not None:
        parts["decoding"] = recipe["decoding"]
    if isinstance(spec, StudentSpec) and spec.targets != "gold":
        parts["targets"] = spec.targets
    if cell.role == "student":
        own = teachers or [cell_signature(bench, one) for one in teachers_of(bench.recipe, cell)]
        parts["teacher"] = own[0] if len(own) == 1 else {bench.recipe.teacher.ensemble_of: list(own)}
        precision = [key for key in ("bf16", "fp16") if training.get(key)]
        if precision and training.get("teacher_dtype") is None:
            parts["teacher_precision"] = precision  # an earlier version's teachers computed in float32 all the same
    return signature(parts)


def process_state(recipe: Recipe) -> Any:
    """accelerate's state of the processes that were launched together, begun as the training arguments will begin it."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    on_cpu = bool(recipe.training.get("use_cpu")) or parse_flag_from_env("ACCELERATE_USE_CPU")
    return PartialState(cpu=True) if on_cpu else PartialState()


def check_processes(recipe: Recipe, asked: int | None = None) -> None:
    """Raise InputError when the processes that were launched do not know of each other, or are not as many as were `asked` for.

    accelerate starts one process, or several that each train alone, and says nothing, where a configuration means a
    processor (`MULTI_CPU`, `use_cpu`).
    """
    launched = world_size()
    if launched == 1 and asked in (None, 1):
        return
    found = process_state(recipe).num_processes
    if found != launched or asked not in (None, found):
        raise InputError(
            f"{found} process{'' if found == 1 else 'es'} that know{'s' * (found == 1)} of each other, with "
            f"{launched} launched and {asked or launched} asked for",
            "equal numbers",
            "On a processor put ACCELERATE_USE_CPU=true before `accelerate launch --config_file recipes/accelerate/cpu_2.yaml`.",
        )


def world_size() -> int:
    """How many processes were launched together: torchrun, accelerate and Slurm's wrappers all say it here."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def model_identity(spec: ModelSpec) -> list[Any]:
    """What the model is before training: names as they stand, files by their content."""
    start = [contents(place) if isinstance(place, str) else place for place in (spec.model, spec.pretrained)]
    return [*start, dict(spec.model_args)]


def contents(place: str) -> str:
    """A hash over a model's file or folder; what is neither is a name and stands for itself."""
    path = Path(place)
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix in (".json", ".safetensors", ".bin", ".pth")]
    else:
        files = [path] if path.is_file() else []
    if not files:
        return place
    digests = [[file.name, _file_digest(str(file), os.stat(file).st_size, os.stat(file).st_mtime_ns)] for file in files]
    return signature({"files": [digest for _, digest in digests] if path.is_file() else digests})


@lru_cache(maxsize=256)
def _file_digest(path: str, size: int, changed: int) -> str:
    """SHA-256 of a file; size and time of change are there so that an unchanged one is read once a process."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

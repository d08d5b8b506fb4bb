"""Plan a study, run what is missing of it, and keep its tables: running the same command again does only what is missing."""

import contextlib
import gc
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hf_lskd.errors import InputError
from hf_lskd.recipe import Recipe, recipe_from_dict
from hf_lskd.record import CELLS, STUDY, Cell, read_record, write_json
from hf_lskd.study import tables
from hf_lskd.study.bench import Bench, cell_signature, check_given_teacher, check_processes, open_bench
from hf_lskd.study.cell import (
    CHECKPOINTS,
    fail_cell,
    last_whole_checkpoint,
    not_writable,
    partial_folder,
    read_mark,
    run_cell,
)
from hf_lskd.study.classes import sets_of_study
from hf_lskd.study.grid import Column, cells, columns, row_of, rows_of
from hf_lskd.study.progress import Progress
from hf_lskd.study.projections import write_projections
from hf_lskd.study.side_by_side import jobs_of, run_side_by_side
from hf_lskd.tasks import open_task

LOCK = ".lock"  # in a study's folder
FREE = ("name", "grid", "eta", "projection", "changes")  # what never makes another study of a recipe


def run_study(
    recipe: Recipe, folder: Path, *, cache_dir: Path | None = None, jobs: int | None = None
) -> list[dict[str, Any]]:
    """Run every missing cell of the grid into `folder`, then write its tables and report. Returns the records of the grid.

    `jobs` rows (a teacher and its students) run at once, see `side_by_side.jobs_of`. A cell that fails is recorded with its
    error and the others go on. Raises InputError, before anything is changed, for bad input (see `open_bench`) and when
    `folder` holds another study or something else.
    """
    from hf_lskd.study.compare import keep_comparison
    from hf_lskd.study.report import write_report

    check_processes(recipe)
    jobs = jobs_of(recipe, jobs)
    bench = open_bench(recipe, cache_dir)
    refuse_foreign(folder, bench)
    check_given_teachers(folder, bench)
    with alone_in(folder):
        write_json(folder / STUDY, recipe.to_dict())
        records = run_grid(bench, folder, cache_dir, jobs)
        tables.write_all(folder, recipe, bench.task, records, bench.sets)
        write_report(folder)
        keep_comparison(folder)
    return records


def run_grid(bench: Bench, folder: Path, cache_dir: Path | None, jobs: int) -> list[dict[str, Any]]:
    """Every cell of the grid. Returns their records in the grid's order."""
    planned, rows = cells(bench.recipe), rows_of(bench.recipe)
    missing = [cell for cell in planned if finished(folder / CELLS / cell.name) is None]
    with Progress(len(planned), sys.stderr, done=len(planned) - len(missing), jobs=jobs) as progress:
        if jobs == 1 or not missing:
            return run_cells(bench, folder / CELLS, rows, progress)
        unfinished = [row for row in rows if row in {row_of(bench.recipe, cell) for cell in missing}]
        ended = run_side_by_side(unfinished, folder, cache_dir, jobs, progress)
        for cell in missing:
            if cell.name not in ended and finished(folder / CELLS / cell.name) is None:
                why = RowDiedError("the process of its row ended before it; run the study again to go on")
                progress.finish(cell.name, fail_cell(bench.recipe, cell, folder / CELLS / cell.name, why))
    return [read_record(folder / CELLS / cell.name) or {} for cell in planned]


class RowDiedError(RuntimeError):
    """A process was killed, or could not begin; its own words are on the terminal."""


def run_cells(bench: Bench, folder: Path, rows: Sequence[Cell], progress: Any) -> list[dict[str, Any]]:
    """Every cell of the rows of these teachers, column by column, in this process. Returns their records in the grid's order."""
    planned = [cell for cell in cells(bench.recipe) if row_of(bench.recipe, cell) in rows]
    records = {cell: record for cell in planned if (record := finished(folder / cell.name)) is not None}
    gc.freeze()  # the modules of torch and transformers: collecting them again and again costs half a second a cell
    try:
        for column in columns(bench.recipe):
            if column.teacher in rows:
                run_column(bench, column, folder, records, progress)
    finally:
        gc.unfreeze()
    return [records[cell] for cell in planned]


def finished(folder: Path) -> dict[str, Any] | None:
    """The record of a complete cell; None of one that failed or is not there."""
    record = read_record(folder)
    return record if record is not None and record["status"] == "complete" else None


def run_column(bench: Bench, column: Column, folder: Path, records: dict[Cell, dict[str, Any]], progress: Any) -> None:
    """What is missing of a teacher and its students, one after another, noted in `records`."""
    for cell in (*column.teachers, *column.students):
        if cell in records:  # finished, or tried by this run
            continue
        taught_by = [records[teacher] for teacher in column.teachers] if cell.role == "student" else []
        failed = next((teacher for teacher in taught_by if teacher["status"] == "failed"), None)
        if failed is not None:
            why = InputError(f"its teacher {failed['name']} failed: {failed['error']['message']}")
            records[cell] = fail_cell(bench.recipe, cell, folder / cell.name, why)
            progress.finish(cell.name, records[cell])
            continue
        progress.start(cell.name)
        try:
            told = replace(bench, on_step=partial(progress.step, cell.name))
            records[cell] = run_cell(told, cell, folder / cell.name, [folder / one["name"] for one in taught_by])
        except Exception as error:  # a cell's own failure must not cost the others; KeyboardInterrupt passes
            records[cell] = fail_cell(bench.recipe, cell, folder / cell.name, error)
        progress.finish(cell.name, records[cell])


# ---- Whose folder it is


def refuse_foreign(folder: Path, bench: Bench) -> None:
    """Refuse a folder that holds another study (saying what differs) or foreign files.

    A study is another one when a cell that is finished in the folder, or that has a checkpoint, would now be made
    otherwise. A recipe that only adds to the grid, or mends what failed, goes on.
    """
    if (folder / STUDY).is_file():
        refuse_other(folder, bench)
    elif folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"{folder} is not empty and holds no study",
            "a new or empty folder, or a study's",
            "Choose another --output-dir.",
        )


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make the study's folder and keep other processes out of it; the system forgets the lock when this one dies.

    Raises InputError when another process is at work in it, and when it cannot be written.
    """
    try:
        (folder / CELLS).mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise not_writable(folder, error) from error
    with lock:
        try:
            import fcntl

            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: data workers would inherit that one
        except (BlockingIOError, PermissionError) as error:
            raise InputError(
                f"another process is at work in {folder}", "one process a study", "Wait for it, or stop it."
            ) from error
        except (ImportError, OSError):  # a system or a file system without locks
            pass
        yield


def check_given_teachers(folder: Path | None, bench: Bench) -> None:
    """Check the finished teachers that the recipe brings, as far as the study in `folder` has not taken them yet."""
    for label_smoothing, given in (bench.recipe.teacher.path or {}).items():
        teachers = [Cell("teacher", label_smoothing, seed) for seed in bench.recipe.grid.seed]
        if folder is None or any(finished(folder / CELLS / teacher.name) is None for teacher in teachers):
            check_given_teacher(bench, label_smoothing, given)


def refuse_other(folder: Path, bench: Bench) -> None:
    """Raise InputError for the first cell that was, or is being, made otherwise than `bench` would make it."""
    for name, signature, cell in made_cells(folder / CELLS, bench.recipe):
        if signature != cell_signature(bench, cell):
            there = study_page(folder)
            different = list(differences(there, bench.recipe.to_dict()))
            what = (
                "; ".join(different[:5])
                or "the data or the models' weights have changed, or another version of hf-lskd made it"
            )
            raise InputError(
                f"{folder} holds another study: {what} (its cell {name} would not be the same)",
                "the same recipe (its grid, η and projection may change)",
                "Choose another --output-dir.",
            )


def made_cells(folder: Path, recipe: Recipe) -> Iterable[tuple[str, str | None, Cell]]:
    """Name, signature and cell of what is finished in `folder`, or half-trained with a checkpoint; not of what the recipe
    has no student or teacher for."""
    students = [student.name for student in recipe.students]
    for place in sorted(folder.glob("*")) if folder.is_dir() else []:
        record = None if place.name.startswith(".") else finished(place)
        if record is not None:
            cell = Cell.of(record)
            known = cell.role == "teacher" or cell.student in students
            if known and (recipe.teacher.path is None or cell.label_smoothing in recipe.teacher.path):
                yield record["name"], record["signature"], cell
    for cell in cells(recipe):
        work = partial_folder(folder / cell.name)
        if finished(folder / cell.name) is None and last_whole_checkpoint(work / CHECKPOINTS) is not None:
            yield cell.name, read_mark(work), cell


def differences(old: Mapping[str, Any], new: Mapping[str, Any], at: str = "") -> Iterable[str]:
    """What differs between two resolved recipes, key by key, where a difference can make another study."""
    for key in sorted({*old, *new}):
        if not at and key in FREE:
            continue
        path = f"{at}.{key}" if at else key
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, path)
        elif a != b:
            yield f"{path} is {a!r} there and {b!r} here"


# ---- A study that is there


def retabulate(folder: Path, what: str, classes: Sequence[str] | None = None) -> None:
    """Write a finished study's η tables (`what` "eta") or projections ("projection", of other `classes` when given) again.

    Raises InputError when `folder` holds no study, or there is nothing to take S1 and S2 from.
    """
    recipe = study_recipe(folder)
    task = open_task(recipe)
    done = [record for cell in cells(recipe) if (record := finished(folder / CELLS / cell.name)) is not None]
    if not done:
        raise InputError(f"{folder} has no finished cell", "a study with finished cells", "Run `hf-lskd study` first.")
    sets = sets_of_study(folder, recipe, task, done)
    if what == "projection":
        write_projections(folder, recipe, task, done, classes, sets)
        return
    if sets is None or recipe.eta is None:
        raise InputError(
            f"{folder}: its data have no semantic groups, or its recipe says eta: null",
            "data with groups, or another eta.sets",
            "Give `groups` under `data` or `sets` under `eta` in the recipe and run the study again.",
        )
    tables.write_eta(folder, done, sets, task.class_names, recipe.eta.reference)


def study_recipe(folder: Path) -> Recipe:
    """The resolved recipe of the study in `folder`. Raises InputError when there is none."""
    return recipe_from_dict(study_page(folder), str(folder / STUDY))


def study_page(folder: Path) -> dict[str, Any]:
    """The content of study.json."""
    path = folder / STUDY
    if not path.is_file():
        raise InputError(
            f"{folder} holds no {STUDY}", "the folder of a study", "Run `hf-lskd study RECIPE --output-dir DIR` first."
        )
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path} is no JSON object ({error})",
            "the file that `hf-lskd study` wrote",
            "Delete it and run the study again: finished cells are kept.",
        ) from error

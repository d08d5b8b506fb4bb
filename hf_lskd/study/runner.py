"""Plan a study, run what is missing of it, and keep its tables: running the same command again does only what is missing."""

import contextlib
import gc
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hf_lskd.errors import InputError
from hf_lskd.recipe import Recipe
from hf_lskd.record import CELLS, FILE, Cell, read_record
from hf_lskd.shared import OutOfStepError
from hf_lskd.study import tables
from hf_lskd.study.bench import Bench, check_cache, check_processes, open_bench
from hf_lskd.study.cell import fail_cell, finished, run_cell
from hf_lskd.study.claims import agreed, alone, claim, claim_together, is_first, sweep, wait_for_all
from hf_lskd.study.classes import sets_of_study
from hf_lskd.study.grid import Column, cells, columns, row_of, rows_of
from hf_lskd.study.lockstep import Seat, how_many, put_together, run_together
from hf_lskd.study.ownership import check_given_teachers, refuse_foreign, study_recipe, working_in
from hf_lskd.study.progress import Progress
from hf_lskd.study.projections import write_projections
from hf_lskd.study.side_by_side import jobs_of, run_side_by_side
from hf_lskd.tasks import open_task

LOOK_AGAIN = 0.5  # seconds between two looks at what other processes are making


def run_study(
    recipe: Recipe,
    folder: Path,
    *,
    cache_dir: Path | None = None,
    jobs: int | None = None,
    lockstep: bool = True,
    launch: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Run every missing cell of the grid into `folder`, then write its tables and report. Returns the records of the grid.

    `jobs` rows (a teacher and its students) run at once, see `side_by_side.jobs_of`. Several processes, also on several
    machines, may be given the same recipe and folder: each makes what is free, and returns when all is made. A cell that
    fails is recorded with its error and the others go on. With `lockstep` students of one teacher that read the same batches
    are trained together (see there), which changes none of their results. `launch` says how cells are started elsewhere (fields of
    `Bench`). Raises InputError, before anything is changed, for bad input (see `open_bench`) and when `folder` holds another
    study or something else.
    """
    check_processes(recipe)
    jobs = jobs_of(recipe, jobs)
    bench = replace(open_bench(recipe, cache_dir), lockstep=lockstep, **(launch or {}))
    check_cache(recipe, bench.processes)
    refuse_foreign(folder, bench)
    check_given_teachers(folder, bench)
    with working_in(folder, bench):
        records = run_grid(bench, folder, cache_dir, jobs)
    if is_first(recipe):
        tabulate(bench, folder, records)
    wait_for_all(recipe)
    return records


def tabulate(bench: Bench, folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write a study's tables, report and comparison with the paper."""
    from hf_lskd.study.compare import keep_comparison
    from hf_lskd.study.report import write_report

    with alone(folder):
        sweep(folder / CELLS)
        tables.write_all(folder, bench.recipe, bench.task, records, bench.sets)
        write_report(folder)
        keep_comparison(folder)


def run_grid(bench: Bench, folder: Path, cache_dir: Path | None, jobs: int) -> list[dict[str, Any]]:
    """Every cell of the grid. Returns their records in the grid's order."""
    planned, rows = cells(bench.recipe), rows_of(bench.recipe)
    missing = [cell for cell in planned if finished(folder / CELLS / cell.name) is None]
    with Progress(len(planned), sys.stderr, done=len(planned) - len(missing), jobs=jobs) as progress:
        if jobs == 1 or not missing:
            return run_cells(bench, folder / CELLS, rows, progress)
        unfinished = [row for row in rows if row in {row_of(bench.recipe, cell) for cell in missing}]
        ended = run_side_by_side(unfinished, folder, cache_dir, jobs, progress, bench.lockstep)
        for cell in missing:
            if cell.name not in ended:
                give_up(bench.recipe, cell, folder / CELLS / cell.name, progress)
    return [read_record(folder / CELLS / cell.name) or {} for cell in planned]


class RowDiedError(RuntimeError):
    """A process was killed, or could not begin; its own words are on the terminal."""


def give_up(recipe: Recipe, cell: Cell, folder: Path, progress: Any) -> None:
    """Record that a cell was not reached because its row's process died, unless somebody else makes it."""
    while finished(folder) is None:
        with claim(folder) as mine:
            if mine and finished(folder) is None:
                why = RowDiedError("the process of its row ended before it; run the study again to go on")
                progress.finish(cell.name, fail_cell(recipe, cell, folder, why))
                return
        time.sleep(LOOK_AGAIN)


def run_cells(bench: Bench, folder: Path, rows: Sequence[Cell], progress: Any) -> list[dict[str, Any]]:
    """Every cell of the rows of these teachers, column by column, in this process. Returns their records in the grid's order.

    What another process is making is left to it, and waited for at the end; a process that dies gives its cell back.
    """
    planned = [cell for cell in cells(bench.recipe) if row_of(bench.recipe, cell) in rows]
    records = agreed(bench.recipe, partial(finished_of, planned, folder))
    earlier = {cell: stamp for cell in planned if (stamp := failure(folder / cell.name)) is not None}
    made = [column for column in put_together(bench, columns(bench.recipe)) if column.teacher in rows]
    gc.freeze()  # the modules of torch and transformers: collecting them again and again costs half a second a cell
    try:
        while len(records) < len(planned):
            known = len(records)
            for column in made:
                run_column(bench, column, folder, records, earlier, progress)
            if len(records) == known:  # all that is missing is in other hands
                time.sleep(LOOK_AGAIN)
    finally:
        gc.unfreeze()
    return [records[cell] for cell in planned]


def finished_of(planned: Iterable[Cell], folder: Path) -> dict[Cell, dict[str, Any]]:
    return {cell: record for cell in planned if (record := finished(folder / cell.name)) is not None}


def failure(folder: Path) -> tuple[int, int] | None:
    """Which failure a cell's folder tells of: another one of the same cell is another file. None when it does not."""
    try:
        found = (folder / FILE).stat()
    except FileNotFoundError:
        return None
    record = read_record(folder)
    return None if record is None or record["status"] == "complete" else (found.st_ino, found.st_mtime_ns)


def run_column(
    bench: Bench,
    column: Column,
    folder: Path,
    records: dict[Cell, dict[str, Any]],
    earlier: Mapping[Cell, tuple[int, int]],
    progress: Any,
) -> None:
    """What is missing of a teacher and its students, and nobody else is making, noted in `records`.

    `earlier` are the failures that are to be tried again.
    """
    for group in groups(bench, column, records):
        with contextlib.ExitStack() as claims:
            mine = []
            needed = column.teachers if group[0].role == "student" else ()
            for cell in group:
                if cell in records or any(teacher not in records for teacher in needed):
                    continue  # finished, or tried by this run; or a teacher of it is in other hands
                free = claims.enter_context(claim_together(bench.recipe, folder / cell.name))
                record = agreed(bench.recipe, partial(ended, folder / cell.name, earlier.get(cell)))
                if record is not None:  # by another process
                    progress.finish(cell.name, record)
                    records[cell] = record
                elif free:
                    mine.append(cell)
            if mine:
                records.update(try_cells(bench, mine, folder, [records[teacher] for teacher in needed], progress))


def groups(bench: Bench, column: Column, records: Mapping[Cell, Any]) -> Iterator[Sequence[Cell]]:
    """The column's cells as they are made together: each teacher, then as many of the missing students as memory holds."""
    yield from ([teacher] for teacher in column.teachers)
    missing = [cell for cell in column.students if cell not in records]
    if any(teacher not in records for teacher in column.teachers):
        return
    size = how_many(bench, missing)
    yield from (missing[i : i + size] for i in range(0, len(missing), size))


def ended(folder: Path, earlier: tuple[int, int] | None) -> dict[str, Any] | None:
    """The record of a cell that is complete, or that failed otherwise than `earlier`; None of any other."""
    stamp = failure(folder)
    return read_record(folder) if stamp is not None and stamp != earlier else finished(folder)


def try_cells(
    bench: Bench, group: Sequence[Cell], folder: Path, taught_by: Sequence[Mapping[str, Any]], progress: Any
) -> dict[Cell, dict[str, Any]]:
    """The records of cells that are made now, or of their failures. `taught_by` are the records of the students' teachers."""
    if len(group) < 2 or any(teacher["status"] == "failed" for teacher in taught_by):
        return {cell: try_cell(bench, cell, folder, taught_by, progress) for cell in group}

    def make(cell: Cell, seat: Seat) -> dict[str, Any]:
        return try_cell(replace(bench, seat=seat), cell, folder, taught_by, progress)

    return run_together(group, folder, make)


def try_cell(
    bench: Bench, cell: Cell, folder: Path, taught_by: Sequence[Mapping[str, Any]], progress: Any
) -> dict[str, Any]:
    """The record of a cell that is made now, or of its failure. `taught_by` are the records of a student's teachers."""
    failed = next((teacher for teacher in taught_by if teacher["status"] == "failed"), None)
    if failed is not None:
        why = InputError(f"its teacher {failed['name']} failed: {failed['error']['message']}")
        record = fail_cell(bench.recipe, cell, folder / cell.name, why)
        progress.finish(cell.name, record)
        return record
    progress.start(cell.name)
    try:
        told = replace(bench, on_step=partial(progress.step, cell.name))
        place = (folder / cell.name, [folder / one["name"] for one in taught_by])
        try:
            record = (bench.make or run_cell)(told, cell, *place)
        except OutOfStepError:  # its data come in an order that it cannot share
            record = run_cell(replace(told, seat=None), cell, *place)
    except Exception as error:  # a cell's own failure must not cost the others; KeyboardInterrupt passes
        record = fail_cell(bench.recipe, cell, folder / cell.name, error)
    progress.finish(cell.name, record)
    return record


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

"""Plan a study, run what is missing of it, and keep its tables: running the same command again does only what is missing."""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_lskd.analysis.semantics import SimilarSets, sets_from_groups
from hf_lskd.errors import InputError
from hf_lskd.recipe import Recipe, recipe_from_dict
from hf_lskd.record import Cell, read_record, write_json
from hf_lskd.study import tables
from hf_lskd.study.cell import Bench, cell_signature, fail_cell, run_cell
from hf_lskd.study.grid import Column, cells, columns
from hf_lskd.study.progress import Progress
from hf_lskd.tasks.image_classification import ImageClassification

STUDY = "study.json"
CELLS = "cells"
FREE = ("name", "grid", "eta", "projection")  # what may change in a study's recipe without making it another study


def run_study(recipe: Recipe, folder: Path, *, cache_dir: Path | None = None) -> list[dict[str, Any]]:
    """Run every missing cell of the grid into `folder`, then write its tables and report. Returns the records of the grid.

    A cell that fails is recorded with its error and the others go on. Raises InputError when `folder` holds another study or
    something else, before anything is changed.
    """
    from hf_lskd.study.report import write_report

    claim(folder, recipe)
    task = ImageClassification(recipe, cache_dir)
    sets = similar_sets(recipe, task)
    progress = Progress(len(cells(recipe)), sys.stderr)
    bench = Bench(recipe, task, sets, on_step=progress.step)
    for column in columns(recipe):
        run_column(bench, column, folder / CELLS, progress)
    progress.close()
    records = [record for cell in cells(recipe) if (record := read_record(folder / CELLS / cell.name)) is not None]
    tables.write_all(folder, recipe, task, records, sets)
    write_report(folder)
    return records


def run_column(bench: Bench, column: Column, folder: Path, progress: Progress) -> None:
    """A teacher (unless it is finished) and its students, one after another."""
    teacher = ensure_cell(bench, column.teacher, folder, None, progress)
    for student in column.students:
        if teacher["status"] == "complete":
            ensure_cell(bench, student, folder, folder / column.teacher.name, progress)
        else:
            why = InputError(f"its teacher {column.teacher.name} failed: {teacher['error']['message']}")
            progress.finish(student.name, fail_cell(bench.recipe, student, folder / student.name, why), 0.0)


def ensure_cell(bench: Bench, cell: Cell, folder: Path, teacher: Path | None, progress: Progress) -> dict[str, Any]:
    """The record of a finished cell: read where it is there, made where it is not; of a failed one, the failure."""
    place = folder / cell.name
    record = read_record(place)
    if record is not None and record["status"] == "complete":
        if record["signature"] != cell_signature(bench, cell):
            raise InputError(
                f"{place} was made from other data, settings or code than this recipe's",
                "a cell with the recipe's signature",
                "Use another --output-dir, or delete this cell's folder to make it again.",
            )
        progress.skip(cell.name)
        return record
    started = time.perf_counter()
    progress.start(cell.name)
    try:
        record = run_cell(bench, cell, place, teacher)
    except Exception as error:  # a cell's own failure must not cost the others; KeyboardInterrupt passes
        record = fail_cell(bench.recipe, cell, place, error)
    progress.finish(cell.name, record, time.perf_counter() - started)
    return record


def claim(folder: Path, recipe: Recipe) -> None:
    """Make `folder` this study's, or refuse one that holds another study (saying what differs) or foreign files."""
    mine = recipe.to_dict()
    path = folder / STUDY
    if path.is_file():
        import json

        different = list(differences(json.loads(path.read_text(encoding="utf-8")), mine))
        if different:
            raise InputError(
                f"{folder} holds another study: {'; '.join(different[:5])}",
                "the same recipe (its grid, η and projection may grow)",
                "Choose another --output-dir.",
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"{folder} is not empty and holds no study",
            "a new or empty folder, or a study's",
            "Choose another --output-dir.",
        )
    try:
        (folder / CELLS).mkdir(parents=True, exist_ok=True)
        write_json(path, mine)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror})", "a folder that this user may write to"
        ) from error


def differences(old: Mapping[str, Any], new: Mapping[str, Any], at: str = "") -> Iterable[str]:
    """What differs between two resolved recipes, key by key, where a difference makes another study."""
    for key in sorted({*old, *new}):
        if not at and key in FREE:
            continue
        path = f"{at}.{key}" if at else key
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, path)
        elif a != b:
            yield f"{path} is {a!r} there and {b!r} here"


def similar_sets(recipe: Recipe, task: ImageClassification) -> dict[int, SimilarSets] | None:
    """S1 and S2 of each target class by the groups that the data come with; None when η was not asked for or there are none."""
    eta, groups = recipe.eta, task.source.groups
    if eta is None or groups is None:
        return None
    targets = None if eta.targets == "all" else [task.class_index(name) for name in eta.targets]
    return sets_from_groups(
        groups, min_similar=eta.min_similar, dissimilar=eta.dissimilar, seed=eta.seed, targets=targets
    )


def retabulate(folder: Path, what: str, classes: Sequence[str] | None = None) -> None:
    """Write a finished study's η tables (`what` "eta") or projections ("projection", of other `classes` when given) again.

    Raises InputError when `folder` holds no study, or its data have no groups to take S1 and S2 from.
    """
    recipe = study_recipe(folder)
    task = ImageClassification(recipe)
    done = [
        record
        for cell in cells(recipe)
        if (record := read_record(folder / CELLS / cell.name)) and record["status"] == "complete"
    ]
    if not done:
        raise InputError(f"{folder} has no finished cell", "a study with finished cells", "Run `hf-lskd study` first.")
    if what == "projection":
        write_json(folder / tables.PROJECTIONS, tables.projection_rows(folder, recipe, task, done, classes))
        return
    sets = similar_sets(recipe, task)
    if sets is None or recipe.eta is None:
        raise InputError(
            f"{folder}: its data have no semantic groups, or its recipe says eta: null",
            "data with groups and an eta block",
            "Give `groups` under `data` in the recipe and run the study again.",
        )
    tables.write_eta(folder, done, sets, task.class_names, recipe.eta.reference)


def study_recipe(folder: Path) -> Recipe:
    """The resolved recipe of the study in `folder`. Raises InputError when there is none."""
    import json

    path = folder / STUDY
    if not path.is_file():
        raise InputError(
            f"{folder} holds no {STUDY}", "the folder of a study", "Run `hf-lskd study RECIPE --output-dir DIR` first."
        )
    return recipe_from_dict(json.loads(path.read_text(encoding="utf-8")), str(path))

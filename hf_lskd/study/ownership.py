"""Whose folder it is: that of one study, whose finished cells another recipe would not make otherwise."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_lskd.errors import InputError
from hf_lskd.recipe import Recipe, recipe_from_dict
from hf_lskd.record import CELLS, STUDY, Cell, write_json
from hf_lskd.study.bench import Bench, cell_signature, check_given_teacher
from hf_lskd.study.cell import CHECKPOINTS, finished, last_whole_checkpoint, partial_folder, read_mark
from hf_lskd.study.claims import AT_WORK, BEGIN, alone, at_work, others_at_work
from hf_lskd.study.grid import cells, teachers

FREE = ("name", "grid", "eta", "projection", "changes")  # what never makes another study of a recipe
OURS = (BEGIN, AT_WORK, f".{STUDY}.")  # what a process that is killed before the study's page is there may leave


def refuse_foreign(folder: Path, bench: Bench) -> None:
    """Refuse a folder that holds another study (saying what differs) or foreign files.

    A study is another one when a cell that is finished in the folder, or that has a checkpoint, would now be made
    otherwise. A recipe that only adds to the grid, or mends what failed, goes on.
    """
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []  # one look: others may be writing
    if STUDY in names:
        refuse_other(folder, bench)
    elif any(not name.startswith(OURS) for name in names):
        raise InputError(
            f"{folder} is not empty and holds no study",
            "a new or empty folder, or a study's",
            "Choose another --output-dir.",
        )


@contextlib.contextmanager
def working_in(folder: Path, bench: Bench) -> Iterator[None]:
    """Make `folder` the study's, and make cells in it beside whoever does so already.

    Raises InputError when it holds another study or something else, and when another process is making this study's cells
    by another recipe: its tables would have another grid.
    """
    page = json.loads(json.dumps(bench.recipe.to_dict()))
    with contextlib.ExitStack() as work:
        with alone(folder):
            refuse_foreign(folder, bench)
            if (folder / STUDY).is_file() and study_page(folder) != page and others_at_work(folder):
                what = "; ".join(list(differences(study_page(folder), page))[:5]) or "its grid, η or projection"
                raise InputError(
                    f"another process is at work in {folder}, by another recipe: {what}",
                    "the same recipe for all who work on one study",
                    "Wait for it, or stop it.",
                )
            work.enter_context(at_work(folder))
            write_json(folder / STUDY, page)
        yield


def check_given_teachers(folder: Path | None, bench: Bench) -> None:
    """Check the finished teachers that the recipe brings, as far as the study in `folder` has not taken them yet."""
    for label_smoothing, given in (bench.recipe.teacher.path or {}).items():
        names = [cell.name for cell in teachers(bench.recipe) if cell.label_smoothing == label_smoothing]
        if folder is None or any(finished(folder / CELLS / name) is None for name in names):
            check_given_teacher(bench, label_smoothing, given)


def refuse_other(folder: Path, bench: Bench) -> None:
    """Raise InputError for the first cell that was, or is being, made otherwise than `bench` would make it."""
    for name, signature, cell in made_cells(folder / CELLS, bench.recipe):
        if signature != cell_signature(bench, cell):
            there = study_page(folder)
            different = [
                *differences(there, bench.recipe.to_dict()),
                *other_processes(finished(folder / CELLS / name), bench),
            ]
            what = (
                "; ".join(different[:5])
                or "the data or the models' weights have changed, or another version of hf-lskd made it"
            )
            raise InputError(
                f"{folder} holds another study: {what} (its cell {name} would not be the same)",
                "the same recipe (its grid, η and projection may change)",
                "Choose another --output-dir.",
            )


def other_processes(record: Mapping[str, Any] | None, bench: Bench) -> Iterator[str]:
    """How many processes made a cell, where it is not as many as would make it now."""
    made_by = bench.processes if record is None else record["hardware"]["world_size"]
    if made_by != bench.processes:
        yield f"{made_by} processes a cell there and {bench.processes} here (--launcher, --accelerate-config)"


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

"""One cell of the study in a folder, by its name: what a launcher starts, on one process or on several together.

python -m hf_lskd.study.launched FOLDER CELL [--processes N]
"""

import argparse
import contextlib
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hf_lskd.errors import InputError, nearest
from hf_lskd.recipe import Recipe
from hf_lskd.record import CELLS, Cell

LOOK_AGAIN = 10.0  # seconds between two looks at a cell that is in other hands


def main(words: Sequence[str] | None = None) -> int:
    """Make the cell. Returns 0 when it is finished, 2 for bad input and 1 for anything else, which its record then tells."""
    from hf_lskd.study.side_by_side import end_with_parent

    args = parser().parse_args(words)
    if args.end_with_parent:
        end_with_parent()
    from hf_lskd.study.ownership import study_recipe
    from hf_lskd.study.quiet import quiet_libraries

    quiet_libraries()
    recipe = study_recipe(args.folder)
    cell = cell_named(recipe, args.cell)
    say(f"==== {now()} {cell.name}: begins on {platform.node()}, {origin()}")
    code = attempt(recipe, cell, args.folder, args.processes, args.claimed)
    say(f"==== {now()} {cell.name}: ends with status {code}")
    return code


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m hf_lskd.study.launched", description=(__doc__ or "").splitlines()[0]
    )
    found.add_argument("folder", type=Path, help="the study's folder")
    found.add_argument("cell", help="the cell's name")
    found.add_argument(
        "--processes", type=int, metavar="N", help="how many processes have to be at work, else it is an error"
    )
    found.add_argument("--claimed", action="store_true", help="the process that starts this one has claimed the cell")
    found.add_argument("--end-with-parent", action="store_true", help="end when the standard input does")
    return found


def is_rank_zero() -> bool:
    """Whether this is the process that speaks and writes, by what its launcher told it: the others may know nothing of it."""
    return os.environ.get("RANK", "0") == "0"


def say(what: str) -> None:
    if is_rank_zero():
        print(what, flush=True)


def now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def origin() -> str:
    """Which job, or else which process, this is."""
    told = os.environ.get
    if told("SLURM_JOB_ID") is None:
        return f"process {os.getpid()}"
    element = f"{told('SLURM_ARRAY_JOB_ID')}_{told('SLURM_ARRAY_TASK_ID')}"
    return f"job {element}, node {told('SLURMD_NODENAME')}, requeued {told('SLURM_RESTART_COUNT', '0')} times"


def cell_named(recipe: Recipe, name: str) -> Cell:
    """The cell of the recipe's grid that has this name. Raises InputError when there is none."""
    from hf_lskd.study.grid import cells

    found = {cell.name: cell for cell in cells(recipe)}
    if name not in found:
        raise InputError(f"cell {name}", f"one of the study's {len(found)} cells", nearest(name, list(found)))
    return found[name]


def attempt(recipe: Recipe, cell: Cell, folder: Path, processes: int | None, claimed: bool) -> int:
    """Make the cell, and leave the record of its failure when it fails. Returns the exit status.

    A cell that another process is making is waited for: those that are to follow this one need it finished.
    """
    from hf_lskd.study.bench import check_processes
    from hf_lskd.study.cell import fail_cell, finished
    from hf_lskd.study.claims import at_work

    place = folder / CELLS / cell.name
    try:
        check_processes(recipe, processes)
        with at_work(folder), contextlib.nullcontext() if claimed else claimed_in_time(recipe, place):
            make(recipe, cell, place)
    except Exception as error:
        traceback.print_exc()
        if is_rank_zero() and finished(place) is None:
            fail_cell(recipe, cell, place, error)
        return 2 if isinstance(error, InputError) else 1
    return 0


@contextlib.contextmanager
def claimed_in_time(recipe: Recipe, place: Path) -> Iterator[None]:
    """Claim a cell, together with the processes launched with this one, as soon as nobody else has it."""
    from hf_lskd.study.claims import claim_together

    while True:
        with claim_together(recipe, place) as mine:
            if mine:
                yield
                return
        say(f"{place.name} is in other hands")
        time.sleep(LOOK_AGAIN)


def make(recipe: Recipe, cell: Cell, place: Path) -> dict[str, Any]:
    """The record of the cell, made now unless it is finished. Raises InputError without its teacher."""
    from hf_lskd.study.bench import open_bench
    from hf_lskd.study.cell import finished, run_cell
    from hf_lskd.study.claims import agreed
    from hf_lskd.study.grid import teachers_of

    if (record := agreed(recipe, partial(finished, place))) is not None:
        say(f"{cell.name} is finished already")
        return record
    teachers = [place.with_name(teacher.name) for teacher in teachers_of(recipe, cell)]
    for teacher in teachers:
        if finished(teacher) is None:
            raise InputError(f"a student without its teacher {teacher.name}", "a finished one in the study's folder")
    return run_cell(replace(open_bench(recipe), say=partial(tell, cell.name)), cell, place, teachers)


def tell(name: str, what: str) -> None:
    say(f"{name}: {what}")


if __name__ == "__main__":
    try:
        status = main()
    except InputError as error:
        print(f"hf-lskd: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)

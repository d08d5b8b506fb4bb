"""A study as jobs of a Slurm cluster: one array of teachers, an array of students a teacher, one cell an element.

Nothing of it is kept by Slurm: which cells are finished stands in the study's folder, and so do the ids of the jobs that were
submitted, of which `squeue` says whether they are still to come. `sacct` is not needed.
"""

import json
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_lskd.errors import InputError
from hf_lskd.recipe import Recipe
from hf_lskd.record import CELLS, Cell, read_record, write_json
from hf_lskd.study.bench import Bench, open_bench
from hf_lskd.study.cell import fail_cell, finished
from hf_lskd.study.claims import alone, claim
from hf_lskd.study.grid import cells, row_of, row_teachers, rows_of, teachers_of
from hf_lskd.study.launch import LOGS, Config
from hf_lskd.study.ownership import check_given_teachers, refuse_foreign, working_in
from hf_lskd.study.runner import failure, tabulate
from hf_lskd.study.slurm_script import read_template, script

SLURM = "slurm"  # in a study's folder: its jobs' scripts, what they said before their cell was chosen, and
JOBS = "jobs.json"  # the ids of the array elements that were submitted for each cell, the newest last
SAVE_MINUTES = 10.0  # between two checkpoints, where the recipe says nothing
LOOK = 2.0  # seconds between two looks at the records while jobs are waited for
ASK = 20.0  # seconds between two questions to squeue meanwhile
NEXT = {
    "sbatch": "Mend --slurm-template, or --slurm-limit; what was submitted before stays so.",
    "squeue": "See that the cluster is up (`sinfo`), and that this is one of its machines.",
}


@dataclass(frozen=True)
class Array:
    """Cells that one array makes, an element each, once the elements `after` have ended well."""

    name: str
    cells: tuple[Cell, ...]
    after: tuple[str, ...] = ()


def run_jobs(recipe: Recipe, folder: Path, args: Any, config: Config | None) -> list[dict[str, Any]] | None:
    """Submit what is missing of the study and not queued or running already. Returns the records when all cells are made, with
    `args.wait` after waiting for that, having written tables and report; None when jobs are still to come.

    `config` is what starts a cell; None: one process.
    Raises InputError, before anything is submitted, for bad input as `run_study` does, for a template that cannot work, and
    without a cluster; and for what sbatch refuses.
    """
    template, folder, recipe = read_template(args.slurm_template), folder.resolve(), by_clock(recipe)
    bench = replace(open_bench(recipe), processes=1 if config is None else config.processes)
    refuse_foreign(folder, bench)
    check_given_teachers(folder, bench)
    if missing_of(recipe, folder):
        queued()  # a cluster that does not answer costs nothing
        with working_in(folder, bench):
            pass
        earlier = {cell: failure(folder / CELLS / cell.name) for cell in cells(recipe)}

        def submit(among: Collection[Cell]) -> list[Cell]:
            with alone(folder):
                submitted = submit_missing(recipe, folder, template, config, args.slurm_limit, among)
            tell(recipe, folder, submitted)
            return [cell for array in submitted.values() for cell in array.cells]

        own = submit(cells(recipe))
        if args.wait:
            wait(recipe, folder)
            if again := cut_short(recipe, folder, own, earlier):
                submit(again)
                wait(recipe, folder)
            for cell in missing_of(recipe, folder):
                record_lost_job(recipe, cell, folder / CELLS / cell.name)
    if missing_of(recipe, folder) and not args.wait:
        return None
    return collect(bench, folder)


def by_clock(recipe: Recipe) -> Recipe:
    """The recipe with checkpoints by the clock, unless it says how: jobs end at any moment."""
    if "save_minutes" in recipe.training:
        return recipe
    return replace(recipe, training=dict(sorted({**recipe.training, "save_minutes": SAVE_MINUTES}.items())))


def missing_of(recipe: Recipe, folder: Path) -> list[Cell]:
    return [cell for cell in cells(recipe) if finished(folder / CELLS / cell.name) is None]


# ---- What is submitted


def submit_missing(
    recipe: Recipe,
    folder: Path,
    template: str,
    config: Config | None,
    limit: int | None,
    among: Collection[Cell],
) -> dict[str, Array]:
    """Submit an array of the teachers `among` these cells that are missing, then one of each teacher's students. Returns them by
    job id."""
    for place in (SLURM, LOGS, CELLS):
        (folder / place).mkdir(exist_ok=True)
    submitted: dict[str, Array] = {}
    waiting = still_queued(folder)  # asked before the records are read: what ends in between is then finished
    missing = [cell for cell in missing_of(recipe, folder) if cell.name not in waiting and cell in among]
    for array in arrays(recipe, folder, missing, waiting):
        path = folder / SLURM / f"{array.name}.sh"
        path.write_text(script(template, folder, array.cells, config), encoding="utf-8")
        job = run("sbatch", *options(array, folder, config, limit), str(path)).strip().partition(";")[0]
        note_jobs(folder, {cell.name: f"{job}_{index}" for index, cell in enumerate(array.cells)})
        submitted[job] = array
    return submitted


def arrays(recipe: Recipe, folder: Path, missing: Sequence[Cell], waiting: Mapping[str, str]) -> Iterator[Array]:
    """The arrays of these cells, teachers first. A student follows its teacher's element, one submitted just before or, by
    `waiting`, one that is still queued; a finished teacher is nothing to wait for."""
    first = tuple(cell for cell in missing if cell.role == "teacher")
    if first:
        yield Array("teachers", first)
    for row in rows_of(recipe):
        students = tuple(cell for cell in missing if cell.role == "student" and row_of(recipe, cell) == row)
        if students:
            teachers = row_teachers(recipe, row.label_smoothing, row.seed)
            found = [
                submitted_jobs(folder)[one.name][-1] if one in first else waiting.get(one.name) for one in teachers
            ]
            yield Array(f"students-of-{row.name}", students, tuple(job for job in found if job is not None))


def options(array: Array, folder: Path, config: Config | None, limit: int | None) -> list[str]:
    """What sbatch is told beside the template's own lines, which count less."""
    most = "" if limit is None else f"%{limit}"
    found = ["--parsable", f"--array=0-{len(array.cells) - 1}{most}", f"--job-name={array.name}"]
    found += ["--requeue", "--open-mode=append", f"--output={folder / SLURM}/%A_%a.out"]
    found += [f"--nodes={config.machines}"] if config is not None and config.machines > 1 else []
    if array.after:
        found += [f"--dependency=afterok:{':'.join(array.after)}", "--kill-on-invalid-dep=yes"]
    return found


def run(*words: str) -> str:
    """What a command of Slurm's says. Raises InputError when it is not there, or refuses."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise InputError(
            f"no {words[0]} on this machine", "one that Slurm's commands are on", "Run it on the cluster's login node."
        ) from error
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise InputError(f"{words[0]}: {said}", "a cluster that answers and takes it", NEXT[words[0]])
    return done.stdout


# ---- What is known of jobs


def submitted_jobs(folder: Path) -> dict[str, list[str]]:
    """The elements that were submitted for each cell, the newest last."""
    path = folder / SLURM / JOBS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def note_jobs(folder: Path, elements: Mapping[str, str]) -> None:
    known = submitted_jobs(folder)
    write_json(
        folder / SLURM / JOBS, {**known, **{name: [*known.get(name, []), job] for name, job in elements.items()}}
    )


def queued() -> set[str]:
    """The array elements of this user that wait, run or are just ending."""
    return set(run("squeue", "--noheader", "--array", "--me", "--format=%i").split())


def still_queued(folder: Path) -> dict[str, str]:
    """The element of each cell that has one which is still to come, or at work."""
    now = queued()
    return {name: jobs[-1] for name, jobs in submitted_jobs(folder).items() if jobs[-1] in now}


# ---- What is said and collected


def tell(recipe: Recipe, folder: Path, submitted: Mapping[str, Array]) -> None:
    """Say how many jobs of what were submitted, what is left to others, and what to do next."""
    planned, new = cells(recipe), [cell for array in submitted.values() for cell in array.cells]
    done = len(planned) - len(missing_of(recipe, folder))
    for job, array in submitted.items():
        after = f", after {', '.join(array.after)}" if array.after else ""
        print(f"job {job}: {array.name}, {len(array.cells)} cells{after}")
    roles = [cell.role for cell in new]
    print(
        f"submitted: {roles.count('teacher')} teachers, {roles.count('student')} students; queued or running already: "
        f"{len(planned) - done - len(new)}; finished: {done} of {len(planned)} cells"
    )
    again = [cell.name for cell in new if len(submitted_jobs(folder)[cell.name]) > 1]
    if again:
        print(f"submitted again, since their jobs ended before them: {', '.join(again)} (see {folder / LOGS})")
    print("The same command again collects what is finished and submits what is missing.")


def wait(recipe: Recipe, folder: Path) -> None:
    """Return when each cell is finished, or its job has gone without finishing it."""
    asked = time.monotonic()
    while missing_of(recipe, folder):
        time.sleep(LOOK)
        if time.monotonic() - asked < ASK:
            continue
        asked = time.monotonic()
        try:
            coming = still_queued(folder)
        except InputError as error:  # a controller that is away for a while
            print(f"hf-lskd: {error}", file=sys.stderr)
            continue
        if not any(cell.name in coming for cell in missing_of(recipe, folder)):
            break


def cut_short(
    recipe: Recipe, folder: Path, own: Collection[Cell], earlier: Mapping[Cell, tuple[int, int] | None]
) -> list[Cell]:
    """The cells whose jobs were there before this command and have gone without a word, as `scancel` ends them while squeue
    still shows them: neither submitted by this command (`own`) nor failed since (`earlier` are the failures of before).

    Those of students that this command put behind such a teacher's job went with it, and are among them. A student is only where
    all its teachers are finished or among them too.
    """
    missing = missing_of(recipe, folder)
    silent = [cell for cell in missing if failure(folder / CELLS / cell.name) == earlier[cell]]
    teachers = {cell for cell in silent if cell.role == "teacher" and cell not in own}

    def gone(student: Cell) -> bool:
        awaited = set(teachers_of(recipe, student)) & set(missing)
        return awaited <= teachers and (student not in own or bool(awaited))

    return [cell for cell in silent if cell in teachers or (cell.role == "student" and gone(cell))]


class JobLostError(RuntimeError):
    """A job ended, or was never begun, and its cell is not finished."""


def record_lost_job(recipe: Recipe, cell: Cell, place: Path) -> None:
    """Record that a cell was not made, unless it says so itself or somebody else is making it."""
    with claim(place) as mine:
        if mine and read_record(place) is None:
            why = "its job ended before it, or its teacher's did; run the study again to go on"
            fail_cell(recipe, cell, place, JobLostError(why))


def collect(bench: Bench, folder: Path) -> list[dict[str, Any]]:
    """Tables and report of what is there. Returns the records."""
    found = [read_record(folder / CELLS / cell.name) for cell in cells(bench.recipe)]
    records = [record for record in found if record is not None]
    tabulate(bench, folder, records)
    return records

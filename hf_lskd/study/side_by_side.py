"""Rows of a study (a teacher and its students) at once, a process each: small models do not fill a machine one by one."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from hf_lskd.errors import InputError
from hf_lskd.recipe import Recipe
from hf_lskd.record import CELLS, Cell
from hf_lskd.study.grid import rows_of

MARK = "\x1ehf-lskd "  # before each line of a row's process that is meant for the one that began it
Note = tuple[int, Any]  # which row, and what its process said: a line of JSON, or how it ended


def jobs_of(recipe: Recipe, asked: int | None) -> int:
    """How many rows run at once: as many as were asked for and there are.

    None asks for one a thread of a CPU, and for one where there is an accelerator, which a single cell fills.
    Raises InputError for a number below 1, and for several in a run that is distributed already.
    """
    import torch

    from hf_lskd.study.bench import world_size

    if asked is not None and asked < 1:
        raise InputError(f"--jobs {asked}", "a whole number from 1")
    if world_size() > 1:
        if asked is not None and asked > 1:
            raise InputError(f"--jobs {asked} of a study on {world_size()} processes", "--jobs 1")
        return 1
    if asked is None:
        asked = 1 if torch.accelerator.is_available() else torch.get_num_threads()
    return min(asked, len(rows_of(recipe)))


def threads_of(jobs: int) -> int:
    """How many threads each of so many processes has."""
    import torch

    return max(1, torch.get_num_threads() // jobs)


def run_side_by_side(
    rows: Sequence[Cell], folder: Path, cache_dir: Path | None, jobs: int, progress: Any, lockstep: bool = True
) -> set[str]:
    """Run the rows of these teachers, `jobs` at once, in processes of their own. Returns the names of the cells that ended.

    A process that dies loses its own row only: what was finished of it stays, and the others go on. Processes end with
    this one, however it ends.
    """
    waiting, running = list(enumerate(rows)), dict[int, subprocess.Popen]()
    notes: SimpleQueue[Note] = SimpleQueue()
    free, ended = list(range(jobs)), set[str]()
    slots: dict[int, int] = {}
    try:
        while waiting or running:
            while waiting and free:
                index, teacher = waiting.pop(0)
                slots[index] = free.pop(0)
                running[index] = begin(teacher, folder, cache_dir, environment(jobs, slots[index]), lockstep)
                threading.Thread(target=listen, args=(index, running[index], notes), daemon=True).start()
            index, note = notes.get()
            if note is None:
                close(running.pop(index))
                free.append(slots.pop(index))
            elif "record" in note:
                progress.finish(note["cell"], note["record"])
                ended.add(note["cell"])
            elif "share" in note:
                progress.step(note["cell"], note["share"])
            else:
                progress.start(note["cell"])
    finally:
        for process in running.values():
            process.kill()
        for process in running.values():
            close(process)
    return ended


def begin(
    teacher: Cell, folder: Path, cache_dir: Path | None, env: Mapping[str, str], lockstep: bool
) -> subprocess.Popen:
    """A process for one row. It ends when its standard input does, which only this process holds open."""
    task = {
        "folder": str(folder),
        "label_smoothing": teacher.label_smoothing,
        "seed": teacher.seed,
        "cache_dir": None if cache_dir is None else str(cache_dir),
        "lockstep": lockstep,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "hf_lskd.study.side_by_side", json.dumps(task)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=dict(env),
    )


def close(process: subprocess.Popen) -> None:
    """Wait for a process, and let go of its pipes."""
    with process:
        process.wait()


def environment(jobs: int, slot: int) -> dict[str, str]:
    """This process's environment with a share of its threads, and one of its GPUs where there are several."""
    import torch

    env = {**os.environ, "OMP_NUM_THREADS": str(threads_of(jobs)), "PYTHONUNBUFFERED": "1"}
    gpus = torch.cuda.device_count()
    if gpus > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = visible.split(",") if visible else [str(i) for i in range(gpus)]
        env["CUDA_VISIBLE_DEVICES"] = names[slot % gpus]
    return env


def listen(index: int, process: subprocess.Popen, notes: "SimpleQueue[Note]") -> None:
    """Pass on what a row's process says, and then that it has ended."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(MARK):
            notes.put((index, json.loads(line[len(MARK) :])))
        else:  # a library that prints
            print(line, end="", file=sys.stderr)
    notes.put((index, None))


# ---- In the row's process


class Told:
    """The progress of one row, told to the process that began it."""

    def start(self, name: str) -> None:
        self._say({"cell": name})

    def step(self, name: str, share: float) -> None:
        self._say({"cell": name, "share": share})

    def finish(self, name: str, record: Mapping[str, Any]) -> None:
        self._say(
            {"cell": name, "record": {key: record.get(key) for key in ("error", "metrics", "lockstep", "durations")}}
        )

    def _say(self, what: Mapping[str, Any]) -> None:
        print(MARK + json.dumps(what), flush=True)


def run_row(task: Mapping[str, Any]) -> None:
    """Everything that is missing of one row of the study in a folder."""
    from hf_lskd.study.bench import open_bench
    from hf_lskd.study.ownership import study_recipe
    from hf_lskd.study.quiet import quiet_libraries
    from hf_lskd.study.runner import run_cells

    quiet_libraries()
    recipe = study_recipe(Path(task["folder"]))
    bench = open_bench(recipe, None if task["cache_dir"] is None else Path(task["cache_dir"]))
    bench = replace(bench, lockstep=task["lockstep"])
    teacher = Cell("teacher", task["label_smoothing"], task["seed"])
    run_cells(bench, Path(task["folder"]) / CELLS, [teacher], Told())


def end_with_parent() -> None:
    """End this process when its standard input ends."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    end_with_parent()
    try:
        run_row(json.loads(sys.argv[1]))
    except KeyboardInterrupt:  # the process that began this one says it
        os._exit(130)


if __name__ == "__main__":
    main()

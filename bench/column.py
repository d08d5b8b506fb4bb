"""A column of four temperatures in lockstep beside the same students one after another: the demo's letters, one teacher."""

import inspect
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.measure import Result, absent, alternate, compared
from hf_lskd.recipe import load_recipe
from hf_lskd.study.quiet import quiet_libraries
from hf_lskd.study.runner import run_study

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "quickstart" / "glyphs.yaml"
CHANGES = ["training.max_steps=60", "grid.label_smoothing=[0.1]", "training.eval_strategy='no'"]
NAME, MEANING, PEER = (
    "column of 4 temperatures, images",
    "lockstep / separate, time of the students",
    "four separate runs",
)


def rows(rounds: int) -> list[Result]:
    if "lockstep" not in inspect.signature(run_study).parameters:
        return [absent(NAME, MEANING, PEER, "students in lockstep are not in this tree")]
    quiet_libraries()
    recipe = load_recipe(RECIPE, None, CHANGES)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "study"

        def students(**how: Any) -> float:
            """The teacher is there; its students are trained, measured and reported."""
            for cell in (folder / "cells").glob("student-*"):
                shutil.rmtree(cell)
            started = time.perf_counter()
            records = run_study(recipe, folder, jobs=1, **how)
            assert all(record["status"] == "complete" for record in records)
            return time.perf_counter() - started

        seconds = alternate(
            {"lockstep": lambda: students(lockstep=True), "separate": lambda: students(lockstep=False)}, rounds
        )
    return [compared(NAME, MEANING, PEER, 0.72, seconds["lockstep"], seconds["separate"], at_most=True,
                     note="each study whole: training, measuring, tables and report")]  # fmt: skip

"""`bench/results.json` and the table of docs/bench.md that is made from it."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench.measure import Result

HOME = Path(__file__).resolve().parents[1]
RESULTS, PAGE = HOME / "bench" / "results.json", HOME / "docs" / "bench.md"
BEGIN, END = "<!-- table: python -m bench -->", "<!-- end of table -->"
PACKAGES = ("torch", "transformers", "timm", "accelerate", "numpy")


def machine() -> dict[str, Any]:
    model = next(
        (line.split(":")[1].strip() for line in cpu_lines() if line.startswith("model name")), platform.machine()
    )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load at the end": load and round(load, 1),
        "python": platform.python_version(), **{name: version(name) for name in PACKAGES},
    }  # fmt: skip


def cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def show(results: Sequence[Result]) -> None:
    for result in results:
        print("  ".join(cells(result.to_dict())), flush=True)


def write(name: str, results: Sequence[Result]) -> None:
    """One row's results in place of its former ones, each with the machine that gave it."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known.pop(name, None)  # the latest comes last
    known[name] = {"machine": machine(), "results": [result.to_dict() for result in results]}
    RESULTS.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + table(known) + END + rest.split(END)[1])


def table(known: Mapping[str, Any]) -> str:
    """The rows of every run that is kept, and the machine of the latest, which is written last."""
    lines = ["| row | what | peer | aim | median | quartiles | rounds | note |", "|---|---|---|---|---|---|---|---|"]
    lines += ["| " + " | ".join(cells(result)) + " |" for entry in known.values() for result in entry["results"]]
    latest = ", ".join(f"{key} {value}" for key, value in list(known.values())[-1]["machine"].items())
    return "\n".join([*lines, "", f"Machine of the latest run: {latest}. Rows may come from several runs.", ""])


def cells(result: Mapping[str, Any]) -> list[str]:
    ratio, spread = result["ratio"], result["spread"]
    memory = ", ".join(f"{name} {value:g}" for name, value in result["memory"].items())
    note = "; ".join(filter(None, [memory and f"extra memory: {memory}", result["note"]]))
    median = "not measured" if ratio is None else f"{ratio:.2f} ({'met' if result['met'] else 'missed'})"
    quartiles = "" if spread is None else f"{spread[0]:.2f} to {spread[1]:.2f}"
    return [
        result["row"],
        result["meaning"],
        result["peer"],
        result["aim"],
        median,
        quartiles,
        str(result["rounds"] or ""),
        note,
    ]

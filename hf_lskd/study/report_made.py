"""How a study was made, as tables: settings, versions, time and memory, and what failed."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hf_lskd.study.report_folder import StudyFolder
from hf_lskd.study.report_tables import Table
from hf_lskd.study.report_words import listed, smoothing


def failures(folder: StudyFolder) -> Table | None:
    """Cells that did not finish, with their errors."""
    rows = []
    for cell in folder.cells:
        if not cell.complete:
            error = folder.records.get(cell.name, {}).get("error") or {}
            message = str(error.get("message", "no record"))
            rows.append(
                [cell.name, str(error.get("type", "–")), message if len(message) <= 600 else message[:600] + " …"]
            )
    return Table("Errors", ["cell", "error", "message"], rows, labels=3, prose=True) if rows else None


def durations(folder: StudyFolder) -> Table:
    """Time and memory by kind of cell."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for cell in folder.cells:
        record = folder.records.get(cell.name, {})
        if cell.complete and record.get("durations"):
            name = "teachers" if cell.setting is None else f"students “{cell.setting.student}”"
            groups.setdefault(name, []).append(record)
    rows = []
    for name, records in groups.items():
        times = [[float(r["durations"].get(part) or 0.0) for r in records] for part in ("train", "evaluate", "total")]
        peak = max(float(r.get("peak_memory_mb") or 0.0) for r in records)
        rows.append(
            [
                name,
                str(len(records)),
                *(_time(float(np.mean(t))) for t in times),
                _time(sum(times[2])),
                f"{peak:,.0f} MB",
            ]
        )
    head = ["cells", "count", "train, mean", "evaluate, mean", "total, mean", "sum", "peak memory"]
    return Table("Durations and memory", head, rows)


def cell_list(folder: StudyFolder) -> Table:
    """Every cell's time, memory and signature, to find its record by."""
    rows = []
    for cell in folder.cells:
        record = folder.records.get(cell.name, {})
        total = (record.get("durations") or {}).get("total")
        peak = record.get("peak_memory_mb")
        state = str(record.get("status", "no record"))
        signature = str(record.get("signature") or "–")[:12]
        rows.append([cell.name, state, signature, _time(total), "–" if peak is None else f"{float(peak):,.0f} MB"])
    return Table("Cells", ["cell", "status", "signature", "time", "peak memory"], rows, labels=3)


def settings(folder: StudyFolder) -> Table:
    """The resolved recipe's main lines."""
    recipe = folder.recipe
    rows = [["task", str(recipe.get("task", "–"))], ["data", _pairs_of(recipe.get("data"))]]
    facts = folder.translation.get("data")
    rows += [["what the data are", _pairs_of(facts)]] if facts else []
    rows += [["laid over the page", ", ".join(recipe["changes"])]] if recipe.get("changes") else []
    rows.append(["training", _pairs_of(recipe.get("training"))])
    rows.append(["teacher", _pairs_of(recipe.get("teacher"))])
    for student in recipe.get("students") or []:
        rows.append([f"student “{student.get('name', '')}”", _pairs_of(student)])
    rows += [
        [name, _pairs_of(recipe.get(name))]
        for name in ("grid", "eta", "projection", "decoding", "switches")
        if recipe.get(name)
    ]
    return Table("Settings (resolved recipe)", ["", ""], rows, labels=2, prose=True)


ENSEMBLE_OF = {"probabilities": "tempered probabilities", "logits": "logits"}


def ensemble(folder: StudyFolder) -> str:
    """That students learn from several teachers at once, and how good these are together; empty where each has one."""
    found: dict[float, Mapping[str, Any]] = {}
    for cell in folder.students:
        teacher = folder.records.get(cell.name, {}).get("teacher") or {}
        if "members" in teacher:
            found.setdefault(cell.alpha, teacher)
    if not found:
        return ""
    size = listed(sorted({str(len(teacher["members"])) for teacher in found.values()}))
    of = listed(sorted({ENSEMBLE_OF[teacher["of"]] for teacher in found.values()}))
    metric, words, unit = ("bleu", "", "") if folder.translates else ("top1", "top-1", " %")
    scores = [
        f"{words} {teacher['metrics'][metric]:.1f}{unit} {smoothing(alpha)}"
        for alpha, teacher in sorted(found.items())
        if metric in teacher["metrics"]
    ]
    return (
        f"Each student learns from {size} teachers of its α together, from the mean of their {of}; “teacher” in tables and "
        f"charts is one of them alone.{f' Together: {listed(scores)}.' if scores else ''}"
    )


def versions(folder: StudyFolder) -> Table:
    """Versions and machines that the records name; more than one value where cells differ."""
    found: dict[str, list[str]] = {}
    for cell in folder.cells:
        record = folder.records.get(cell.name, {})
        for block in ("versions", "hardware"):
            for name, value in (record.get(block) or {}).items():
                if value is not None and str(value) not in found.setdefault(str(name), []):
                    found[str(name)].append(str(value))
    rows = [[name, ", ".join(values)] for name, values in found.items()]
    return Table("Versions and hardware", ["", ""], rows, labels=2, prose=True)


def pretty(recipe: Mapping[str, Any]) -> str:
    """The resolved recipe as indented JSON."""
    return json.dumps(recipe, indent=2, ensure_ascii=False, sort_keys=False)


def counts(study: StudyFolder) -> str:
    """How many cells and seeds there are, and how many failed."""
    seeds = len({c.seed for c in study.students})
    parts = [
        f"{len(study.teachers)} teacher{'s' * (len(study.teachers) != 1)}",
        f"{len(study.students)} student{'s' * (len(study.students) != 1)}",
        f"{seeds} seed{'s' * (seeds != 1)}",
    ]
    failed = sum(not c.complete for c in study.cells)
    return " · ".join(parts + ([f"{failed} failed"] if failed else []))


def version(study: StudyFolder) -> str:
    """The version of hf-lskd that the first record names; empty without."""
    return next((str(v) for r in study.records.values() if (v := (r.get("versions") or {}).get("hf_lskd"))), "")


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _pairs_of(block: Any) -> str:
    if not isinstance(block, Mapping):
        return "–" if block is None else str(block)
    return "; ".join(f"{k}: {_plain(v)}" for k, v in block.items() if v not in (None, {}, []) and k != "name")


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + _pairs_of(value) + "}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(_plain(v) for v in value)
    return str(value).lower() if isinstance(value, bool) else str(value)

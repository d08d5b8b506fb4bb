"""A study's results on the terminal."""

import csv
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_lskd.record import exact
from hf_lskd.study.grid import CURVE
from hf_lskd.study.report_words import answer_lines
from hf_lskd.study.tables import CHANCE, ETA


def print_summary(folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Top-1 by α and T (mean over seeds), the page's answer, what failed, and where the page is."""
    print(accuracy_table(records))
    for line in answer_lines(folder):
        print(line)
    for record in records:
        if record["status"] == "failed":
            print(f"failed: {record['name']}: {record['error']['type']}: {record['error']['message']}", file=sys.stderr)
    print(folder / "report.html")


def accuracy_table(records: Sequence[Mapping[str, Any]]) -> str:
    """A line per kind of student and teacher's α: the teacher's top-1, then the students' by T."""
    done = [record for record in records if record["status"] == "complete"]
    temperatures = sorted({record["temperature"] for record in done if record["role"] == "student"})
    teachers: dict[float, list[float]] = defaultdict(list)
    rows: dict[tuple, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in done:
        if record["role"] == "teacher":
            teachers[record["label_smoothing"]].append(record["metrics"]["top1"])
        else:
            rows[tuple(record[key] for key in CURVE)][record["temperature"]].append(record["metrics"]["top1"])
    lines = [["top-1 %", "α", "teacher", *(f"T={t:g}" for t in temperatures)]]
    for key, by_temperature in rows.items():
        column = dict(zip(CURVE, key))
        lines.append([label(column), f"{column['label_smoothing']:g}", mean(teachers[column["label_smoothing"]]),
                      *(mean(by_temperature[t]) for t in temperatures)])  # fmt: skip
    return aligned(lines)


def label(column: Mapping[str, Any]) -> str:
    parts = [str(column["student"])]
    parts += [f"kd_weight {column['kd_weight']:g}"] if column["kd_weight"] != 1 else []
    parts += [f"scale {exact(column['kd_loss_scale'])}"] if column["kd_loss_scale"] != 1 else []
    parts += ["student unscaled"] if not column["scale_student"] else []
    parts += [f"own α {column['student_label_smoothing']:g}"] if column["student_label_smoothing"] else []
    parts += [f"top {column['kd_top_k']}"] if column["kd_top_k"] is not None else []
    return ", ".join(parts)


def mean(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" ±{statistics.stdev(values):.1f} sd" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def print_eta(folder: Path) -> None:
    """Mean η over targets, and the systematic share beside its chance level, a line per curve, pair and split."""
    shared = (*CURVE, "split")
    chance = {key: systematic_share(rows) for key, rows in rows_by(folder / CHANCE, shared).items()}
    lines = [["student", "α", "seed", "T1→T2", "split", "η similar %", "η dissimilar %", "systematic %", "by chance %"]]
    for key, rows in rows_by(folder / ETA, (*CURVE, "seed", "T1", "T2", "split")).items():
        first = rows[0]
        luck = chance.get(tuple(first[field] for field in shared))
        lines.append(
            [
                label(typed(first)),
                f"{float(first['label_smoothing']):g}",
                first["seed"],
                f"{float(first['T1']):g}→{float(first['T2']):g}",
                key[-1],
                f"{statistics.fmean(float(row['eta_similar']) for row in rows):+.2f}",
                f"{statistics.fmean(float(row['eta_dissimilar']) for row in rows):+.2f}",
                f"{systematic_share(rows):.0f}",
                "needs two seeds" if luck is None else f"{luck:.0f}",
            ]
        )
    print(aligned(lines))
    print(folder / ETA)


def typed(row: Mapping[str, str]) -> dict[str, Any]:
    """A table's row with the values of its curve as they were written."""
    values: dict[str, Any] = {field: row[field] for field in CURVE}
    return {
        **values,
        "kd_weight": float(row["kd_weight"]),
        "kd_loss_scale": row["kd_loss_scale"] if row["kd_loss_scale"] == "equalised" else float(row["kd_loss_scale"]),
        "scale_student": row["scale_student"] == "true",
        "student_label_smoothing": float(row["student_label_smoothing"]),
        "kd_top_k": row["kd_top_k"] or None,
    }


def rows_by(path: Path, keys: Sequence[str]) -> dict[tuple, list[dict[str, str]]]:
    """The rows of a table, grouped by some of its columns."""
    found: dict[tuple, list[dict[str, str]]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found[tuple(row[key] for key in keys)].append(row)
    return found


def systematic_share(rows: Sequence[Mapping[str, str]]) -> float:
    """In percent of the rows."""
    return 100 * statistics.fmean(row["systematic"] == "true" for row in rows)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)

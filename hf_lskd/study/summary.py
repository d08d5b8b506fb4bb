"""A study's results on the terminal."""

import csv
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_lskd.study.report_words import answer_lines
from hf_lskd.study.tables import CHANCE, COLUMN, ETA


def print_summary(folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Top-1 by α and T (mean over seeds), the page's answer, what failed, and where the page is."""
    print(accuracy_table(records))
    for line in answer_lines(folder):
        print(line)
    for record in records:
        if record["status"] == "failed":
            print(f"failed: {record['name']}: {record['error']['type']}: {record['error']['message']}")
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
            rows[tuple(record[key] for key in COLUMN)][record["temperature"]].append(record["metrics"]["top1"])
    lines = [["top-1 %", "α", "teacher", *(f"T={t:g}" for t in temperatures)]]
    for key, by_temperature in rows.items():
        column = dict(zip(COLUMN, key))
        lines.append([label(column), f"{column['label_smoothing']:g}", mean(teachers[column["label_smoothing"]]),
                      *(mean(by_temperature[t]) for t in temperatures)])  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def label(column: Mapping[str, Any]) -> str:
    parts = [str(column["student"])]
    parts += [f"kd_weight {column['kd_weight']:g}"] if column["kd_weight"] != 1 else []
    parts += [f"scale {column['kd_loss_scale']}"] if column["kd_loss_scale"] != 1 else []
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
    """Mean η over targets, and the systematic share beside its chance level, a line per column, pair and split."""
    chance = systematic_shares(folder / CHANCE, ("split",))
    groups: dict[tuple, list[Mapping[str, str]]] = defaultdict(list)
    with (folder / ETA).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            groups[tuple(row[key] for key in (*COLUMN, "seed", "T1", "T2", "split"))].append(row)
    print("student  α  scale  seed  T1→T2  split  η similar %  η dissimilar %  systematic %  (chance)")
    for key, rows in groups.items():
        named = dict(zip((*COLUMN, "seed", "T1", "T2", "split"), key))
        similar, dissimilar = (
            statistics.fmean(float(row[name]) for row in rows) for name in ("eta_similar", "eta_dissimilar")
        )
        share = 100 * statistics.fmean(row["systematic"] == "true" for row in rows)
        luck = chance.get((named["split"],))
        print(
            f"{named['student']}  {named['label_smoothing']}  {named['kd_loss_scale']}  {named['seed']}  {named['T1']}→{named['T2']}  "
            f"{named['split']}  {similar:+.2f}  {dissimilar:+.2f}  {share:.0f}  ({'needs two seeds' if luck is None else f'{luck:.0f}'})"
        )


def systematic_shares(path: Path, keys: Sequence[str]) -> dict[tuple, float]:
    """Share of systematic targets in percent, by the given columns."""
    if not path.is_file():
        return {}
    found: dict[tuple, list[bool]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found[tuple(row[key] for key in keys)].append(row["systematic"] == "true")
    return {key: 100 * statistics.fmean(values) for key, values in found.items()}

"""A study's results on the terminal."""

import statistics
import sys
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_lskd.record import CELLS, FILE, exact
from hf_lskd.study.grid import CURVE
from hf_lskd.study.progress import duration
from hf_lskd.study.report_eta import chance_rows, systematic_share
from hf_lskd.study.report_folder import Eta, read_study
from hf_lskd.study.report_words import answer_lines
from hf_lskd.study.tables import ETA

PAGE = "report.html"


def print_summary(folder: Path, records: Sequence[Mapping[str, Any]], took: str = "") -> None:
    """Top-1 or BLEU by α and T (mean over seeds), the page's answer, what failed, how long it `took`, and where the page is."""
    print(accuracy_table(records))
    for line in answer_lines(folder):
        print(line)
    for record in records:
        if record["status"] == "failed":
            print(f"failed: {record['name']}: {record['error']['type']}: {record['error']['message']}", file=sys.stderr)
    if took:
        print(took)
    print(folder / PAGE)


def time_taken(
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    before: Collection[str],
    seconds: float,
    whole_process: bool = False,
) -> str:
    """How long a run of `seconds` took, and how much of it went where: by the records of the cells that were not finished
    `before` it (names), and from the last of these to the page. Cells side by side take more time together than the run.

    Of a `whole_process` also what came before the first of them: imports, data, the start of further processes. Not where the
    first to end was trained in lockstep: its own turns do not tell when it began."""
    new = [record for record in records if record["name"] not in before]
    taken = [record for record in new if "taken_from" in record]
    made = [record for record in new if record["status"] == "complete" and record not in taken]
    if not new:
        return f"{duration(seconds)}: all {len(records)} cells were finished already; tables and report were made again"
    parts = []
    for role in ("teacher", "student"):
        spent = [record["durations"]["train"] for record in made if record["role"] == role]
        parts += [f"{len(spent)} {role}{'s' * (len(spent) > 1)} {duration(sum(spent))}"] if spent else []
    own = sum(record["durations"]["total"] for record in made)
    if made:
        ends = {record["name"]: (folder / CELLS / record["name"] / FILE).stat().st_mtime for record in made}
        page = (folder / PAGE).stat().st_mtime
        if whole_process and min(made, key=lambda record: ends[record["name"]]).get("lockstep", 1) == 1:
            first = min(ends[record["name"]] - record["durations"]["total"] for record in made)
            parts.insert(0, f"before the first cell {duration(max(first - (page - seconds), 0.0))}")
        parts.append(f"measuring them {duration(sum(record['durations']['evaluate'] for record in made))}")
        parts.append(f"tables and report {duration(max(page - max(ends.values()), 0.0))}")
    failed = sum(record["status"] == "failed" for record in new)
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{len(taken)} taken over"] if taken else []
    together = " (cells' own times: several were made at once)" if own > seconds else ""
    return f"{duration(seconds)}: {', '.join(parts)}{together}"


def accuracy_table(records: Sequence[Mapping[str, Any]]) -> str:
    """A line per kind of student and teacher's α: the teacher's score, then the students' by T. BLEU where there is BLEU."""
    done = [record for record in records if record["status"] == "complete"]
    translated = any(record.get("recipe", {}).get("task") == "translation" for record in records)
    metric, heading = ("bleu", "BLEU") if translated else ("top1", "top-1 %")
    temperatures = sorted({record["temperature"] for record in done if record["role"] == "student"})
    teachers: dict[float, list[float]] = defaultdict(list)
    rows: dict[tuple, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in done:
        if record["role"] == "teacher":
            teachers[record["label_smoothing"]].append(record["metrics"][metric])
        else:
            rows[tuple(record[key] for key in CURVE)][record["temperature"]].append(record["metrics"][metric])
    lines = [[heading, "α", "teacher", *(f"T={t:g}" for t in temperatures)]]
    for key, by_temperature in rows.items():
        column = dict(zip(CURVE, key))
        lines.append([label(column), f"{column['label_smoothing']:g}", mean(teachers[column["label_smoothing"]]),
                      *(mean(by_temperature[t]) for t in temperatures)])  # fmt: skip
    copied = next((c["bleu"] for r in done if (c := (r.get("translation") or {}).get("copy"))), None)
    lines += [] if copied is None else [["copy of the source", "", f"{copied:.1f}", *("" for _ in temperatures)]]
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
    """Mean η over targets, and the systematic share beside its chance level, a line per curve, seed, pair and split.

    Chance is pooled as on the page: over the pairs of seeds at the line's own two temperatures.
    """
    study = read_study(folder)
    chance = chance_rows(study)
    groups: dict[tuple, list[Eta]] = defaultdict(list)
    for row in study.eta:
        groups[row.setting, row.alpha, row.seed, row.low, row.high, row.split].append(row)
    lines = [["student", "α", "seed", "T1→T2", "split", "η similar %", "η dissimilar %", "systematic %", "by chance %"]]
    for (setting, alpha, seed, low, high, split), rows in groups.items():
        luck = systematic_share(chance(setting, alpha, low, high, split))
        lines.append(
            [
                label(vars(setting)),
                f"{alpha:g}",
                seed,
                f"{low:g}→{high:g}",
                split,
                f"{statistics.fmean(row.similar for row in rows):+.2f}",
                f"{statistics.fmean(row.dissimilar for row in rows):+.2f}",
                f"{systematic_share(rows):.0f}",
                "needs two seeds" if luck is None else f"{luck:.0f}",
            ]
        )
    print(aligned(lines))
    print(folder / ETA)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)

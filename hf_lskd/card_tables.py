"""Numbers and tables of a model card in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_lskd.record import exact

COLUMNS = {
    "top1": ("top1", "top5", "ece", "nll"),
    "bleu": ("bleu", "chrf", "nll", "length_ratio"),
}
HEADS = {"top1": "top-1, %", "top5": "top-5, %", "ece": "ECE, %", "nll": "NLL, nats", "bleu": "BLEU", "chrf": "chrF",
         "length_ratio": "length ratio"}  # fmt: skip
DIGITS = {"top1": 1, "top5": 1, "ece": 1, "bleu": 1, "chrf": 1, "nll": 3, "length_ratio": 3}


def number(value: float | None, digits: int = 1, *, sign: bool = False) -> str:
    """The value with a true minus and never "−0.0"; an en dash where there is none."""
    if value is None:
        return "–"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if not text.strip("+-0."):
        text = text.lstrip("+-")
    return text.replace("-", "−")


def estimate(found: Mapping[str, Any], unit: str = "", *, sign: bool = False) -> str:
    """ "82.8 % (81.6 to 83.9)" over examples, "94.5 ± 0.2 %" over seeds, the value alone without an interval."""
    value = number(found.get("value"), sign=sign)
    if found.get("low") is None:
        return value + unit
    if found.get("kind") == "seeds":
        return f"{value} ± {number(found['half'])}{unit}"
    return f"{value}{unit} ({number(found['low'], sign=sign)} to {number(found['high'], sign=sign)})"


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def results_table(record: Mapping[str, Any]) -> str:
    """This model, its teacher and the undistilled student, and the mean over seeds where there are enough."""
    extra = record.get("card") or {}
    metric = extra.get("metric")
    columns = COLUMNS.get(str(metric)) or tuple(k for k, v in record["metrics"].items() if isinstance(v, int | float))
    columns = tuple(name for name in columns if name in record["metrics"])
    rows = [["**this model**", *cells(record["metrics"], columns, metric, extra.get("score"))]]
    if mean := extra.get("over_seeds"):
        rows.append([f"mean of {exact(mean['seeds'])} seeds", estimate(mean), *["–"] * (len(columns) - 1)])
    together = "its teachers together" if (extra.get("teacher") or {}).get("members") else "its teacher"
    for key, who in (("teacher", together), ("undistilled", "without a teacher")):
        if other := extra.get(key):
            rows.append([who, *cells(other["metrics"], columns, metric, other.get("score"))])
    if copied := (record.get("translation") or {}).get("copy"):
        rows.append(["copying the source", *(number(copied.get(name), DIGITS.get(name, 3)) for name in columns)])
    return table(["", *(HEADS.get(name, name) for name in columns)], rows)


def cells(metrics: Mapping[str, Any], columns: Sequence[str], metric: Any, score: Any) -> list[str]:
    return [
        estimate(score) if name == metric and score else number(metrics.get(name), DIGITS.get(name, 3))
        for name in columns
    ]


def grid_table(grid: Sequence[Mapping[str, Any]]) -> str:
    """A line for each α, a column for each T; empty without cells."""
    if not grid:
        return ""
    temperatures = sorted({cell["temperature"] for cell in grid})
    alphas = sorted({cell["label_smoothing"] for cell in grid})
    found = {(cell["label_smoothing"], cell["temperature"]): cell for cell in grid}
    rows = [[exact(a), *(estimate(found[a, t]) if (a, t) in found else "–" for t in temperatures)] for a in alphas]
    return table(["teacher's α", *(f"T = {exact(t)}" for t in temperatures)], rows)


def eta_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line for each split and pair of temperatures."""
    lines = []
    for row in rows:
        chance = "–" if row["chance"] is None else f"{number(row['chance'], 0)} %"
        lines.append(
            [
                row["split"],
                f"{exact(row['T1'])} → {exact(row['T2'])}",
                eta_value(row["similar"]),
                eta_value(row["dissimilar"]),
                f"{number(row['systematic']['value'], 0)} %",
                chance,
                exact(row["targets"]),
            ]
        )
    return table(["split", "T", "η(S1), %", "η(S2), %", "systematic", "by chance", "targets"], lines)


def eta_value(found: Mapping[str, Any]) -> str:
    value = number(found["value"], 2, sign=True)
    if found.get("low") is None:
        return value
    return f"{value} ({number(found['low'], 2, sign=True)} to {number(found['high'], 2, sign=True)})"


def exports_table(exports: Sequence[Mapping[str, Any]]) -> str:
    """A line for each export: metric, size and latency in torch and there; empty without exports."""
    if not exports:
        return ""
    metric = next(iter(exports[0]["metrics"]))
    digits = DIGITS.get(metric, 3)
    rows = [
        [
            f"{one['format']}{', int8' * bool(one['int8'])}",
            *(number(one["metrics"][metric][when], digits) for when in ("before", "after")),
            *(str(one["size_bytes"][when]) for when in ("before", "after")),
            *(number(one["latency_ms"][when]["median"], 2) for when in ("before", "after")),
        ]
        for one in exports
    ]
    name = HEADS.get(metric, metric)
    return table(["", f"{name}, torch", "there", "bytes, torch", "there", "ms, torch", "there"], rows)

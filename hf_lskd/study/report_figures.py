"""The report's pictures from a study's numbers, each with a table that says the same in text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_lskd.study.charts import Curve, Mark, Series, curve_chart, curve_limits, line_chart, nice_ticks, value_limits
from hf_lskd.study.panels import Cloud, projection_panel, quadrant_panel
from hf_lskd.study.report_eta import EtaSummary, by_target
from hf_lskd.study.report_folder import Key, Setting, StudyFolder, distinct
from hf_lskd.study.report_numbers import Scores
from hf_lskd.study.report_tables import Table
from hf_lskd.study.report_words import number, setting_label, smoothing, uncertain

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Figure:
    """A picture with its heading; `alternative` says the same as text."""

    title: str
    svg: str
    alternative: Table | None = None


@dataclass(frozen=True)
class Row:
    """Panels to be seen side by side."""

    title: str
    panels: Sequence[Figure]
    alternative: Table | None = None


def over_temperature(
    scores: Scores, settings: Sequence[Setting], metric: str, label: str, digits: int = 1
) -> list[Figure]:
    """One chart a setting: the metric over T with a line for each α; all charts have the same vertical axis."""
    temperatures = sorted({t for s in settings for t in scores.temperatures(s)})
    drawn = []
    for setting in settings:
        alphas = scores.alphas(setting)
        keys = [[Key(None, a, None), *(Key(setting, a, t) for t in temperatures)] for a in alphas]
        series = [
            Series(f"α = {a:g}", [_mark(scores, k, metric) for k in ks]) for a, ks in zip(alphas, keys, strict=True)
        ]
        rows = [
            [s.name, *(uncertain(scores.mean(k, metric), digits) for k in ks)]
            for s, ks in zip(series, keys, strict=True)
        ]
        drawn.append((setting, series, rows))
    limits = value_limits([s for _, series, _ in drawn for s in series])
    categories = ["teacher", *(f"{t:g}" for t in temperatures)]
    figures = []
    for setting, series, rows in drawn:
        short = label.split(",")[0]
        where = setting_label(setting, scores.settings())
        title = f"{short}, {where}" if where else short
        described = f"{label} at T = {', '.join(categories[1:])}, one line for each α. The table below has the numbers."
        svg = line_chart(
            f"{title}, over temperature",
            described,
            categories,
            series,
            x_label="temperature T (equal steps)",
            y_label=label,
            limits=limits,
            detached=1,
        )
        head = ["", "teacher", *(f"T = {t:g}" for t in temperatures)]
        figures.append(Figure(title, svg, Table(title, head, rows)))
    return figures


def _mark(scores: Scores, key: Key, metric: str) -> Mark | None:
    estimate = scores.mean(key, metric)
    if estimate is None:
        return None
    values = tuple(v for _, v in sorted(scores.values(key, metric).items()))
    return Mark(estimate.value, estimate.low, estimate.high, values if len(values) > 1 else ())


def training_curves(scores: Scores, settings: Sequence[Setting], points: int) -> list[Row]:
    """Validation score and training loss over epochs: a row a setting, a pair of panels for each α, a line for each T."""
    plans: list[tuple[str, list[tuple[str, list[tuple[str, Key]]]]]] = []
    for setting in settings:
        panels = [
            (f"α = {a:g}", [(f"T = {t:g}", Key(setting, a, t)) for t in scores.temperatures(setting, a)])
            for a in scores.alphas(setting)
        ]
        plans.append((setting_label(setting, scores.settings()) or "students", panels))
    teachers = [(f"α = {a:g}", Key(None, a, None)) for a in scores.alphas(None)]
    if teachers:
        plans.append(("teachers", [("", teachers)]))
    kinds = (
        (scores.words.curve, scores.words.curve_label, False),
        ("loss", "training loss", True),
    )
    rows = []
    everything = {metric: {k: _averaged(scores, k, metric, points) for k in scores.cells} for metric, _, _ in kinds}
    for title, panels in plans:
        figures = [
            figure
            for name, keys in panels
            for metric, label, log in kinds
            if (figure := _curve_figure(name, label, log, keys, everything[metric]))
        ]
        if figures:
            rows.append(Row(title, figures))
    return rows


def _curve_figure(
    name: str, label: str, log: bool, keys: Sequence[tuple[str, Key]], known: Mapping[Key, Points]
) -> Figure | None:
    curves = [Curve(line, known[key]) for line, key in keys if known.get(key)]
    if not curves:
        return None
    log = log and all(y > 0 for c in curves for _, y in c.points)
    shared = [Curve("", p) for p in known.values() if p]
    limits = curve_limits(curves, log=True) if log else curve_limits(shared)
    title = f"{name}: {label}" if name else label.capitalize()
    described = f"{label} over epochs, one line for each of {', '.join(c.name for c in curves)}; mean over seeds."
    svg = curve_chart(title, described, curves, x_label="epoch", y_label=label, limits=limits, log=log)
    rows = []
    for curve in curves:
        picks = [curve.points[0], curve.points[len(curve.points) // 2], curve.points[-1]]
        rows.append([curve.name, *(f"{number(y, 2)} (epoch {x:.3g})" for x, y in picks)])
    return Figure(title, svg, Table(title, ["", "first", "middle", "last"], rows))


def _averaged(scores: Scores, key: Key, metric: str, limit: int) -> Points:
    """The curve of a cell, averaged over the seeds that have the point, thinned to at most `limit` points."""
    found: dict[float, list[float]] = {}
    for cell in scores.cells.get(key, {}).values():
        for point in scores.folder.records.get(cell.name, {}).get("curve") or []:
            training = (
                point.get("split", "train" if metric == "loss" and "top1" not in point else "validation") == "train"
            )
            value = point.get(metric)
            if (
                isinstance(value, int | float)
                and np.isfinite(value)
                and training == (metric == "loss")
                and "epoch" in point
            ):
                found.setdefault(round(float(point["epoch"]), 4), []).append(float(value))
    points = [(x, float(np.mean(ys))) for x, ys in sorted(found.items())]
    return thinned(points, limit)


def eta_panels(found: Sequence[EtaSummary], limit: int) -> list[Row]:
    """For each α a row of panels over T2: every target by its η of S1 and S2, same axes everywhere."""
    tables = [(one, by_target(one)) for one in found]
    reach = [_reach([abs(v) for _, rows in tables for v in pick(rows)]) for pick in (_similar, _dissimilar)]
    rows = []
    for alpha in distinct(one.alpha for one in found):
        panels = []
        for one, targets in tables:
            if one.alpha == alpha:
                title = f"T = {one.low:g} → {one.high:g}"
                described = (
                    f"{smoothing(alpha)}, {title}, {one.split}: {number(one.systematic.value, 0)} % of {one.targets} targets lie in "
                    f"the shaded quadrant; mean η {number(one.similar.value, 2, sign=True)} to similar and "
                    f"{number(one.dissimilar.value, 2, sign=True)} to dissimilar classes."
                )
                points = thinned([(t.similar, t.dissimilar) for t in targets], limit)
                panels.append(Figure(title, quadrant_panel(f"η, α = {alpha:g}, {title}", described, points, *reach)))
        rows.append(Row(f"α = {alpha:g}", panels))
    return rows


def _similar(rows: Sequence[Any]) -> list[float]:
    return [t.similar for t in rows]


def _dissimilar(rows: Sequence[Any]) -> list[float]:
    return [t.dissimilar for t in rows]


def _reach(values: Sequence[float]) -> float:
    """A round number that holds all values but far outliers, which are drawn at the edge."""
    wanted = min(max(values), 1.6 * float(np.quantile(values, 0.99))) if values else 1.0
    ticks = nice_ticks(0, 2 * wanted or 1.0, 20)
    return next((t for t in ticks if t >= wanted > 0), 1.0)


def projections(folder: StudyFolder, settings: Sequence[Setting], points: int) -> list[list[Row]]:
    """The rows of projections.json by setting (those of `settings` first, in their order), ascending in α.

    A row is a teacher and its students, with the same axes.
    """
    groups: dict[Setting, list[tuple[float, Row]]] = {}
    rows = folder.projections.get("rows", [])
    every = distinct([*settings, *(_setting_of(row) for row in rows)])
    for row in rows:
        setting = _setting_of(row)
        drawn = _projection_row(row, setting, every, points)
        if drawn.panels:
            groups.setdefault(setting, []).append((float(row["label_smoothing"]), drawn))
    return [[r for _, r in sorted(groups[s], key=lambda pair: pair[0])] for s in every if s in groups]


def projection_names(folder: StudyFolder) -> list[str]:
    """Names of the target, the similar and the dissimilar class."""
    return [str(c.get("name", "")) for c in folder.projections.get("classes", [])]


def _setting_of(row: Mapping[str, Any]) -> Setting:
    fields = ("kd_weight", "kd_loss_scale", "scale_student", "student_label_smoothing", "kd_top_k")
    return Setting(str(row.get("student", "")), **{f: row[f] for f in fields if row.get(f) is not None})


def _projection_row(row: Mapping[str, Any], setting: Setting, every: Sequence[Setting], points: int) -> Row:
    panels: dict[float | None, dict[str, Any]] = {}
    for panel in row.get("panels", []):
        panels.setdefault(panel["temperature"], {})[panel["split"]] = panel
    clouds = {t: [_cloud(splits, k, points) for k in range(3)] for t, splits in panels.items()}
    xy = [p for cs in clouds.values() for c in cs for p in (*c.solid, *c.open, *([c.star] if c.star else []))]
    if not xy:
        return Row(f"α = {row['label_smoothing']:g}", [])
    box = (min(p[0] for p in xy), max(p[0] for p in xy), min(p[1] for p in xy), max(p[1] for p in xy))
    figures, rows = [], []
    for t, three in clouds.items():
        title = "teacher" if t is None else f"T = {t:g}"
        to_similar, to_dissimilar, ratio = _distances(three)
        described = f"{title}: target to similar {to_similar}, to dissimilar {to_dissimilar}, ratio {ratio}."
        figures.append(
            Figure(
                title, projection_panel(f"Projection, α = {row['label_smoothing']:g}, {title}", described, three, box)
            )
        )
        rows.append([title, to_similar, to_dissimilar, ratio])
    label = setting_label(setting, every)
    title = f"α = {row['label_smoothing']:g}" + (f", {label}" if label else "") + f" (seed {row.get('seed', 0)})"
    head = ["", "target to similar", "target to dissimilar", "ratio"]
    note = "Distances between the stars in the plane. Each model has a basis of its own: compare the ratio, not the distances."
    return Row(title, figures, Table(f"Distances between centroids, {title}", head, rows, note=note))


def _cloud(splits: Mapping[str, Any], index: int, limit: int) -> Cloud:
    def of(split: str, most: int) -> Points:
        panel = splits.get(split)
        if not panel:
            return []
        pairs = zip(panel["points"], panel["labels"], strict=True)
        return thinned([(float(p[0]), float(p[1])) for p, label in pairs if label == index], most)

    centroids = (splits.get("train") or splits.get("validation") or {}).get("centroids") or []
    star = (float(centroids[index][0]), float(centroids[index][1])) if len(centroids) > index else None
    return Cloud(of("train", limit), of("validation", max(1, limit // 3)), star)


def _distances(clouds: Sequence[Cloud]) -> tuple[str, str, str]:
    stars = [c.star for c in clouds]
    if len(stars) < 3 or any(s is None for s in stars):
        return "–", "–", "–"
    target, *others = (np.array(s) for s in stars)
    similar, dissimilar = (float(np.linalg.norm(target - o)) for o in others)
    return number(similar, 2), number(dissimilar, 2), number(similar / dissimilar, 2) if dissimilar else "–"


def thinned(points: Sequence[tuple[float, float]], limit: int) -> Points:
    """At most `limit` of the points, evenly spread over the sequence, first and last among them."""
    if len(points) <= limit:
        return list(points)
    picks = np.unique(np.linspace(0, len(points) - 1, max(1, limit)).round().astype(int))
    return [points[i] for i in picks]

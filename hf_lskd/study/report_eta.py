"""η of a study summarised: means over targets and seeds with bootstrap intervals, and the systematic share's chance."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from hf_lskd.analysis import bootstrap_interval
from hf_lskd.study.report_folder import Eta, Setting, StudyFolder, distinct

RESAMPLES = 1000


@dataclass(frozen=True)
class Range:
    """A mean with its bootstrap interval, None where one value alone has none."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class EtaSummary:
    """One pair of temperatures at one α: η in percent, shares in percent of the targets; `chance` None when unknown."""

    setting: Setting
    alpha: float
    low: float
    high: float
    split: str
    targets: int
    seeds: int
    similar: Range
    dissimilar: Range
    systematic: Range
    chance: float | None
    chance_pairs: int
    rows: tuple[Eta, ...] = field(repr=False)


@dataclass(frozen=True)
class TargetEta:
    """One target class at one pair of temperatures, averaged over seeds; `systematic` is the share of seeds, 0 to 1."""

    target: str
    similar: float
    dissimilar: float
    systematic: float


Group = tuple[Setting, float, float, float, str]


def summaries(folder: StudyFolder) -> list[EtaSummary]:
    """One summary for each setting, split (train first), α and T2 > T1, where T1 is the lowest temperature."""
    groups: dict[Group, list[Eta]] = {}
    for row in folder.eta:
        if math.isfinite(row.similar) and math.isfinite(row.dissimilar):
            groups.setdefault((row.setting, row.alpha, row.low, row.high, row.split), []).append(row)
    first = distinct(group[0] for group in groups)
    lowest: dict[tuple[Setting, float], float] = {}
    for setting, alpha, low, _, _ in groups:
        lowest[setting, alpha] = min(low, lowest.get((setting, alpha), low))
    chance = chance_rows(folder)
    ordered = sorted(groups, key=lambda g: (first.index(g[0]), g[4] != "train", g[1], g[3]))
    return [
        _summary(group, groups[group], chance(*group)) for group in ordered if group[2] == lowest[group[0], group[1]]
    ]


def chance_rows(folder: StudyFolder) -> Callable[[Setting, float, float, float, str], list[Eta]]:
    """What gives the rows of eta_chance.csv that a pair (setting, α, T1, T2, split) is judged by: those at its own T1 and T2."""
    found: dict[tuple[Setting, float, str], list[Eta]] = {}
    for row in folder.chance:
        found.setdefault((row.setting, row.alpha, row.split), []).append(row)

    def of(setting: Setting, alpha: float, low: float, high: float, split: str) -> list[Eta]:
        return [r for r in found.get((setting, alpha, split), []) if {r.low, r.high} <= {low, high}]

    return of


def systematic_share(rows: Iterable[Eta]) -> float | None:
    """In percent of the rows; None without any."""
    found = [row.systematic for row in rows]
    return 100.0 * float(np.mean(found)) if found else None


def by_target(which: EtaSummary) -> list[TargetEta]:
    """The targets of one summary in the file's order, each averaged over its seeds."""
    found: dict[str, list[Eta]] = {}
    for row in which.rows:
        found.setdefault(row.target, []).append(row)
    return [
        TargetEta(
            target,
            float(np.mean([r.similar for r in rows])),
            float(np.mean([r.dissimilar for r in rows])),
            float(np.mean([r.systematic for r in rows])),
        )
        for target, rows in found.items()
    ]


def choices(folder: StudyFolder) -> tuple[list[str], list[str]]:
    """(normalisers, signatures of the S1/S2 choice) that the rows name: travel with every η that is shown."""
    return distinct(r.reference for r in folder.eta), [s for s in distinct(r.sets for r in folder.eta) if s]


def _summary(group: Group, rows: Sequence[Eta], same: Sequence[Eta]) -> EtaSummary:
    return EtaSummary(
        *group,
        targets=len({r.target for r in rows}),
        seeds=len({r.seed for r in rows}),
        similar=_range(rows, [r.similar for r in rows]),
        dissimilar=_range(rows, [r.dissimilar for r in rows]),
        systematic=_range(rows, [100.0 * r.systematic for r in rows]),
        chance=systematic_share(same),
        chance_pairs=len({(r.seed, r.low) for r in same}),
        rows=tuple(rows),
    )


def _range(rows: Sequence[Eta], values: Sequence[float]) -> Range:
    """Targets and seeds resampled together; targets alone where seeds are one or their targets differ."""
    mean = float(np.mean(values))
    targets = {name: i for i, name in enumerate(sorted({r.target for r in rows}))}
    seeds = {name: i for i, name in enumerate(sorted({r.seed for r in rows}))}
    table = np.full((len(seeds), len(targets)), np.nan)
    for row, value in zip(rows, values, strict=True):
        table[seeds[row.seed], targets[row.target]] = value
    if len(targets) < 2:
        return Range(mean)
    if len(seeds) < 2 or np.isnan(table).any():
        return Range(mean, *bootstrap_interval(np.nanmean(table, axis=0), resamples=RESAMPLES))
    return Range(mean, *bootstrap_interval(table, resamples=RESAMPLES))

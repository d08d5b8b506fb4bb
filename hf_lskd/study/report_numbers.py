"""From a study's rows to differences with intervals: what the report's sentences and tables are made of.

Every number is a *contrast*, a weighted sum of cells, taken seed by seed: a mean is one cell, a change two, the
difference of two falls four. Student t over at least 3 shared seeds; with fewer, a bootstrap over the held-out
examples or sentences, which says nothing about other seeds and is labelled so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from hf_lskd.analysis import mean_and_t_interval
from hf_lskd.study import report_wording as wording
from hf_lskd.study.report_bleu import ResampledBleu
from hf_lskd.study.report_folder import Cell, Key, Setting, StudyFolder, distinct

ENOUGH_SEEDS = 3
MATERIAL = 1.0  # points: "costs nothing" is said only when the whole interval lies within ± this
SMALL_GRADIENT = 0.3  # below this the report calls g what it is, a smaller learning rate
Verdict = Literal["falls", "rises", "same", "open", "unknown"]
Terms = Sequence[tuple[float, Key]]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; `kind` says over what: seeds (Student t), examples (bootstrap) or none."""

    value: float
    low: float | None
    high: float | None
    seeds: int
    kind: Literal["seeds", "examples", "none"]

    @property
    def verdict(self) -> Verdict:
        """What the interval allows to say of a change: falls, rises, same (all within ±1 point), open, or unknown."""
        if self.low is None or self.high is None:
            return "unknown"
        if self.high < 0:
            return "falls"
        if self.low > 0:
            return "rises"
        return "same" if self.low >= -MATERIAL and self.high <= MATERIAL else "open"

    @property
    def settled(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.verdict in ("falls", "rises")

    @property
    def notable(self) -> bool:
        """Whether it is settled and may exceed a point: a change that asks for an explanation."""
        return self.settled and max(-(self.low or 0.0), self.high or 0.0) > MATERIAL

    def negated(self) -> "Estimate":
        """A change of −7.5 as a cost of 7.5."""
        low, high = (None, None) if self.low is None or self.high is None else (-self.high, -self.low)
        return replace(self, value=-self.value, low=low, high=high)


@dataclass(frozen=True)
class Rise:
    """What raising T from `low` to `high` changes, at one α of one setting."""

    setting: Setting
    alpha: float
    low: float
    high: float
    change: Estimate


@dataclass(frozen=True)
class Best:
    """The highest cell, the cells that it cannot be told from, and the next one where it can be told from all."""

    key: Key
    score: Estimate
    rivals: tuple[Key, ...]
    others: int
    runner_up: tuple[Key, Estimate] | None


@dataclass(frozen=True)
class Control:
    """One rise of T with T² alone, with the gradient's scale equalised, and what the equalising changes of it."""

    paper: Rise
    equalised: Rise
    difference: Estimate


class Scores:
    """The finished cells of a study by key and seed, and contrasts between them."""

    def __init__(self, folder: StudyFolder) -> None:
        self.folder = folder
        self.cells: dict[Key, dict[int, Cell]] = {}
        for cell in folder.students + folder.teachers:
            self.cells.setdefault(cell.key, {})[cell.seed] = cell
        self.metric = "bleu" if folder.translates or any("bleu" in c.metrics for c in folder.cells) else "top1"
        split = str(folder.translation.get("split") or "test")
        self.words = wording.translation(split) if self.metric == "bleu" else wording.IMAGES
        self.bleu = ResampledBleu(folder)
        self._predictions: dict[str, tuple[np.ndarray, np.ndarray] | None] = {}

    def settings(self, student: str | None = None) -> list[Setting]:
        """Settings with a finished student, the one nearest to the paper's loss first, else as in results.csv."""
        found: list[Setting] = distinct(c.setting for c in self.folder.students)
        found = [s for s in found if student is None or s.student == student]
        return sorted(found, key=lambda s: s.kd_loss_scale != 1.0)

    def student_names(self) -> list[str]:
        """Names of the students with a finished cell, in the order of results.csv."""
        return distinct(c.setting.student for c in self.folder.students if c.setting)

    def alphas(self, setting: Setting | None) -> list[float]:
        """Teacher's α of the finished cells of a setting (None: of the teachers), ascending."""
        return sorted({key.alpha for key in self.cells if key.setting == setting})

    def temperatures(self, setting: Setting, alpha: float | None = None) -> list[float]:
        """Temperatures of the finished cells of a setting, ascending."""
        keys = [k for k in self.cells if k.setting == setting and alpha in (None, k.alpha)]
        return sorted({k.temperature for k in keys if k.temperature is not None})

    def values(self, key: Key, metric: str | None = None) -> dict[int, float]:
        """The metric by seed; seeds without it are left out."""
        name = metric or self.metric
        return {seed: c.metrics[name] for seed, c in self.cells.get(key, {}).items() if name in c.metrics}

    def contrast(self, terms: Terms, metric: str | None = None) -> Estimate | None:
        """Weighted sum of cells over the seeds that all of them have; None when they share no seed."""
        found = self.over_seeds(terms, metric)
        if found is None or found.kind == "seeds":
            return found
        interval = self._interval(terms, list(self._sums(terms, metric)), metric or self.metric)
        return found if interval is None else Estimate(found.value, *interval, found.seeds, "examples")

    def over_seeds(self, terms: Terms, metric: str | None = None) -> Estimate | None:
        """The same with an interval over seeds or none: with fewer than three there is no bootstrap in its place."""
        sums = list(self._sums(terms, metric).values())
        if len(sums) >= ENOUGH_SEEDS:
            mean, low, high = mean_and_t_interval(sums)
            return Estimate(mean, low, high, len(sums), "seeds")
        return Estimate(float(np.mean(sums)), None, None, len(sums), "none") if sums else None

    def _sums(self, terms: Terms, metric: str | None) -> dict[int, float]:
        """The weighted sum of each seed that all cells have, by seed in order."""
        by_key = [(weight, self.values(key, metric)) for weight, key in terms]
        seeds = sorted(set.intersection(*(set(values) for _, values in by_key))) if by_key else []
        return {seed: sum(weight * values[seed] for weight, values in by_key) for seed in seeds}

    def mean(self, key: Key, metric: str | None = None) -> Estimate | None:
        """The metric of one cell over its seeds."""
        return self.contrast([(1.0, key)], metric)

    def _interval(self, terms: Terms, seeds: Sequence[int], metric: str) -> tuple[float, float] | None:
        """Over the held-out items of these seeds; None for metrics without such, and where the items are not the same."""
        if metric == "bleu":
            return self.bleu.contrast([(w / len(seeds), self.cells[key][s].name) for w, key in terms for s in seeds])
        examples = self._by_example(terms, seeds) if metric == "top1" else None
        return None if examples is None else example_interval(examples)

    def _by_example(self, terms: Terms, seeds: Sequence[int]) -> np.ndarray | None:
        total: np.ndarray | None = None
        labels: np.ndarray | None = None
        for weight, key in terms:
            for seed in seeds:
                found = self.predictions(self.cells[key][seed].name)
                if found is None or (labels is not None and not np.array_equal(labels, found[0])):
                    return None  # not kept, or not the same examples: no pairs
                labels = found[0]
                part = weight * 100.0 / len(seeds) * (found[0] == found[1])
                total = part if total is None else total + part
        return total

    def predictions(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """(label, prediction) of a cell's held-out items, read once."""
        if name not in self._predictions:
            self._predictions[name] = self.folder.predictions(name)
        return self._predictions[name]


@dataclass(frozen=True)
class Floor:
    """The score below which a model has learnt nothing, in words too."""

    value: float
    words: str


def floor(scores: Scores) -> Floor | None:
    """Twice chance for top-1; for BLEU that of copying the source, at least 1. None where it is not known."""
    if scores.metric == "bleu":
        copied = (scores.folder.translation.get("copy") or {}).get("bleu")
        if copied is None:
            return None
        if copied < 1:
            return Floor(1.0, f"1 BLEU (copying the source has {copied:.1f})")
        return Floor(float(copied), f"the {copied:.1f} BLEU of copying the source")
    for cell in scores.folder.students:
        if found := scores.predictions(cell.name):
            classes = len(np.unique(found[0]))
            return Floor(200.0 / classes, f"twice chance ({200 / classes:.1f} %)") if classes > 2 else None
    return None


def learnt_nothing(scores: Scores, key: Key) -> bool:
    """Whether a cell's mean score is below the floor."""
    lowest, mean = floor(scores), mean_of(scores.values(key))
    return lowest is not None and mean is not None and mean < lowest.value


def example_interval(values: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `values [N]`.

    Differences of right and wrong take few distinct values, so drawing how often each occurs (one multinomial) is the
    same as drawing N examples, and takes no time for 50,000 of them.
    """
    distinct_values, counts = np.unique(np.round(values, 9), return_counts=True)
    draws = np.random.RandomState(seed).multinomial(len(values), counts / len(values), size=resamples)
    low, high = np.quantile(draws @ distinct_values / len(values), [0.025, 0.975])
    return float(low), float(high)


def ends(scores: Scores, setting: Setting) -> tuple[float, float] | None:
    """Lowest and highest temperature that is finished for every α of the setting; None with fewer than two."""
    sets = [set(scores.temperatures(setting, alpha)) for alpha in scores.alphas(setting)]
    shared = set.intersection(*sets) if sets else set()
    return (min(shared), max(shared)) if len(shared) > 1 else None


def rise(scores: Scores, setting: Setting, alpha: float, low: float, high: float) -> Rise | None:
    """The change from T = `low` to T = `high`, paired by seed; None when the two cells share no seed."""
    change = scores.contrast([(1.0, Key(setting, alpha, high)), (-1.0, Key(setting, alpha, low))])
    return Rise(setting, alpha, low, high, change) if change else None


def rises(scores: Scores, setting: Setting) -> list[Rise]:
    """The rise from the lowest to the highest shared temperature for each α, ascending in α."""
    span = ends(scores, setting)
    found = [rise(scores, setting, alpha, *span) for alpha in scores.alphas(setting)] if span else []
    return [r for r in found if r]


def difference_of_rises(scores: Scores, first: Rise, second: Rise) -> Estimate | None:
    """How much more `first` changes than `second`, seed by seed (negative: falls further)."""
    return scores.contrast(_terms(first, 1.0) + _terms(second, -1.0))


def control(scores: Scores, paper: Rise) -> Control | None:
    """The same rise with `kd_loss_scale: equalised`; None when the study has no such row, or this is it."""
    if paper.setting.kd_loss_scale != 1.0:
        return None
    twin = rise(scores, replace(paper.setting, kd_loss_scale="equalised"), paper.alpha, paper.low, paper.high)
    difference = difference_of_rises(scores, twin, paper) if twin else None
    return Control(paper, twin, difference) if twin and difference else None


def best_cell(scores: Scores, student: str) -> Best | None:
    """The student's highest cell among those with the most seeds, over all its settings.

    Each other cell is compared with it seed by seed; one whose interval holds zero, or that has none, is a rival.
    The intervals are not widened for having chosen the highest of many.
    """
    keys = [k for s in scores.settings(student) for k in scores.cells if k.setting == s and scores.values(k)]
    if not keys:
        return None
    most = max(len(scores.values(k)) for k in keys)
    means = {k: float(np.mean(list(scores.values(k).values()))) for k in keys if len(scores.values(k)) == most}
    ranked = sorted(means, key=lambda k: -means[k])
    top, others = ranked[0], ranked[1:]
    leads = {k: scores.contrast([(1.0, top), (-1.0, k)]) for k in others}
    rivals = tuple(k for k in others if not (lead := leads[k]) or lead.verdict != "rises")
    score = scores.mean(top)
    assert score is not None  # top has values
    nearest = leads[others[0]] if others and not rivals else None
    return Best(top, score, rivals, len(others), (others[0], nearest) if nearest else None)


def effective_gradients(scores: Scores, key: Key) -> dict[int, float]:
    """g times the loss's own factors, by seed: 1 in an equalised cell, g itself with T² alone.

    Where T does not divide the student's logits, T²·KL has a gradient T times as large.
    """
    gradients, factors = scores.values(key, "target_gradient"), scores.values(key, "kd_loss_scale_value")
    fallback = key.setting.kd_loss_scale if key.setting and isinstance(key.setting.kd_loss_scale, float) else 1.0
    unscaled = key.temperature if key.setting and not key.setting.scale_student and key.temperature else 1.0
    return {seed: g * factors.get(seed, fallback) * unscaled for seed, g in gradients.items()}


def mean_of(values: Mapping[int, float]) -> float | None:
    """Plain mean over seeds; None without any."""
    return float(np.mean(list(values.values()))) if values else None


def _terms(which: Rise, sign: float) -> list[tuple[float, Key]]:
    high, low = Key(which.setting, which.alpha, which.high), Key(which.setting, which.alpha, which.low)
    return [(sign, high), (-sign, low)]

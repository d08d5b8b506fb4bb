"""BLEU of a study's cells resampled over the held-out sentences, the same draws for all, and paired tests of two cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_lskd.study.report_folder import Line, StudyFolder

RESAMPLES = 1000
SEED = 12345

Samples = tuple[Any, np.ndarray]  # what the sentences were, and BLEU of each resample


class ResampledBleu:
    """Corpus BLEU of a cell on `RESAMPLES` draws of the held-out sentences; cells with the same sentences share the draws."""

    def __init__(self, folder: StudyFolder) -> None:
        self.folder = folder
        self._lines: dict[str, list[Line] | None] = {}
        self._samples: dict[str, Samples | None] = {}
        self._draws: dict[int, np.ndarray] = {}

    @property
    def target_lang(self) -> str:
        """The language that the study translates into."""
        return str(self.folder.translation.get("target_lang") or "en")

    def lines(self, name: str) -> list[Line] | None:
        """The cell's translations; None where they were not kept or are empty."""
        if name not in self._lines:
            self._lines[name] = self.folder.translations(name) or None
        return self._lines[name]

    def of(self, name: str) -> Samples | None:
        """The pairs that a cell was judged on, and its BLEU on each resample `[R]`; None without its translations."""
        if name not in self._samples:
            lines = self.lines(name)
            self._samples[name] = (pairs_of(lines), self._resample(lines)) if lines else None
        return self._samples[name]

    def contrast(self, terms: Sequence[tuple[float, str]]) -> tuple[float, float] | None:
        """95 % percentile interval of a weighted sum of cells' BLEU; None where the cells do not share their sentences."""
        found = [self.of(name) for _, name in terms]
        known = [one for one in found if one is not None]
        if len(known) < len(found) or any(pairs != known[0][0] for pairs, _ in known):
            return None
        total = sum(weight * samples for (weight, _), (_, samples) in zip(terms, known))
        low, high = np.quantile(total, [0.025, 0.975])
        return float(low), float(high)

    def _resample(self, lines: Sequence[Line]) -> np.ndarray:
        from hf_lskd.metrics import bleu_metric, resampled_bleu

        count = len(lines)
        if count not in self._draws:
            self._draws[count] = np.random.default_rng(SEED).choice(count, size=(RESAMPLES, count), replace=True)
        texts, wanted = ([text.rstrip() for text in side] for side in (made_of(lines), [x.target for x in lines]))
        return np.array(resampled_bleu(bleu_metric(self.target_lang), texts, wanted, self._draws[count]))


@dataclass(frozen=True)
class Compared:
    """BLEU of one cell minus that of its baseline, over sentences; `p_value` None where every resample has the same BLEU."""

    difference: float
    low: float
    high: float
    p_value: float | None
    signature: str


def compare(bleu: ResampledBleu, baseline: str, other: str) -> Compared | None:
    """Paired bootstrap of two cells by name; None without translations of the same pairs."""
    from hf_lskd.metrics import paired_bootstrap

    a, b = bleu.lines(baseline), bleu.lines(other)
    if a is None or b is None or pairs_of(a) != pairs_of(b):
        return None
    wanted = [line.target for line in a]
    found = paired_bootstrap(made_of(a), made_of(b), wanted, target_lang=bleu.target_lang, samples=RESAMPLES, seed=SEED)
    same = found.difference == found.low == found.high  # sacrebleu's p-value is then its smallest, not 1
    return Compared(found.difference, found.low, found.high, None if same else found.p_value, found.signature)


def made_of(lines: Sequence[Line]) -> list[str]:
    """The translations alone."""
    return [line.translation for line in lines]


def pairs_of(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """Sources and references alone."""
    return [(line.source, line.target) for line in lines]

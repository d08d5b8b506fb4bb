"""The paper's claims on the order of cells, each tested with intervals over seeds, beside what its own numbers say.

`best_at_1`: T = 1 is best with α = 0.1; its smallest lead over a T > 1 is above 0.
`falls_more`, for each T > 1: the fall from T = 1 is larger with α = 0.1 than with α = 0; the one less the other is above 0.

A claim holds when the whole 95 % interval of its difference, paired by seed, is above 0, does not hold when it is below, and
cannot be told otherwise or with fewer than three seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hf_lskd.paper import ROUNDING, PaperPair, our_column
from hf_lskd.study.report_folder import Key, Setting
from hf_lskd.study.report_numbers import Estimate, Scores, Terms

SMOOTHED, PLAIN, LOW = 0.1, 0.0, 1.0  # the α and T that the claims are about

Cell = tuple[float, float]  # (α, T)
Name = Literal["best_at_1", "falls_more"]
Judgement = Literal["does not hold", "cannot tell", "holds"]
ORDER: tuple[Judgement, ...] = ("does not hold", "cannot tell", "holds")


@dataclass(frozen=True)
class Claim:
    """A claim on the order of cells, as a difference that it says is above 0; `at` is the T that the row is about."""

    name: Name
    setting: Setting
    against: tuple[float, ...]
    at: float | None
    ours: Estimate | None
    judgement: Judgement
    paper: float | None
    paper_at: float | None

    @property
    def paper_says(self) -> str:
        """Whether the paper's own numbers are in this order; they have no interval."""
        return "no published number" if self.paper is None else "holds" if self.paper > ROUNDING else "does not hold"


def ordering(scores: Scores, pair: PaperPair, setting: Setting) -> list[Claim]:
    """The claims for one setting: `best_at_1`, then `falls_more` for each T > 1 of the study or the paper."""
    ours = {t for alpha in (PLAIN, SMOOTHED) for t in scores.temperatures(setting, alpha)}
    raised = sorted(t for t in ours | set(pair.temperatures) if t > LOW)
    best = [one_claim(scores, pair, setting, "best_at_1", t, lead_terms(t)) for t in raised]
    falls = [one_claim(scores, pair, setting, "falls_more", t, fall_terms(t)) for t in raised]
    return [*weakest(best), *falls]


def lead_terms(temperature: float) -> list[tuple[float, Cell]]:
    """How far T = 1 is ahead of this T, with smoothing."""
    return [(1.0, (SMOOTHED, LOW)), (-1.0, (SMOOTHED, temperature))]


def fall_terms(temperature: float) -> list[tuple[float, Cell]]:
    """The fall from T = 1 to this T with smoothing, less the fall without."""
    return [*lead_terms(temperature), (-1.0, (PLAIN, LOW)), (1.0, (PLAIN, temperature))]


def one_claim(
    scores: Scores,
    pair: PaperPair,
    setting: Setting,
    name: Name,
    temperature: float,
    terms: Sequence[tuple[float, Cell]],
) -> Claim:
    """The claim at one T: our difference over the seeds that all its cells have, and the paper's."""
    own: Terms = [(weight, Key(setting, *cell)) for weight, cell in terms]
    found = scores.over_seeds(own, our_column(pair.main))
    published = [(weight, pair.value(*cell, pair.main)) for weight, cell in terms]
    known = [weight * value for weight, value in published if value is not None]
    paper = sum(known) if len(known) == len(terms) else None
    against = (temperature,) if found else ()
    at = None if paper is None else temperature
    return Claim(name, setting, against, temperature, found, judge(found), paper, at)


def judge(difference: Estimate | None) -> Judgement:
    """Whether a difference that a claim says is above 0 is so, by its interval."""
    if difference is None or difference.low is None or difference.high is None:
        return "cannot tell"
    return "holds" if difference.low > ROUNDING else "does not hold" if difference.high < -ROUNDING else "cannot tell"


def weakest(claims: Sequence[Claim]) -> list[Claim]:
    """Several claims that must all hold as one: the one that decides it in our study, beside the paper's smallest difference.

    It fails with one that fails, and cannot be told with one that cannot; temperatures that the study lacks do not count.
    """
    if not claims:
        return []
    tried = [claim for claim in claims if claim.ours]
    chosen = min(tried or claims, key=lambda claim: (ORDER.index(claim.judgement), _bound(claim.ours)))
    least = min((c for c in claims if c.paper is not None), key=lambda c: c.paper or 0.0, default=None)
    return [
        Claim(
            chosen.name,
            chosen.setting,
            tuple(t for claim in tried for t in claim.against),
            chosen.at if tried else None,
            chosen.ours,
            chosen.judgement,
            least.paper if least else None,
            least.at if least else None,
        )
    ]


def _bound(estimate: Estimate | None) -> float:
    if estimate is None:
        return 0.0
    return estimate.value if estimate.low is None else estimate.low

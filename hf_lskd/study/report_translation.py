"""The report's section on translation: scores of every cell, paired tests, and sentences to read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_lskd.study.report_bleu import Compared, compare
from hf_lskd.study.report_folder import Cell, Key, Line, Setting
from hf_lskd.study.report_numbers import Scores, mean_of
from hf_lskd.study.report_tables import Table, ordered_keys
from hf_lskd.study.report_words import key_label, number, setting_label, uncertain

SHOWN = 10  # worst sentences, and as many drawn ones, of a cell
LONGEST = 400  # characters of a shown sentence
SEED = 0  # of the drawn sentences
COLUMNS = (  # metric, heading, digits
    ("bleu", "BLEU", 1),
    ("chrf", "chrF", 1),
    ("bleu_tok_lc", "BLEU, tokenised and lower-cased", 1),
    ("nll", "NLL, nats", 2),
    ("length_ratio", "length ratio", 2),
    ("repetition_rate", "repeated 4-grams, %", 1),
    ("cut_rate", "cut, %", 1),
)
SIGNATURES = (("BLEU", "bleu"), ("chrF", "chrf"), ("BLEU, tokenised and lower-cased", "bleu_tok_lc"))


@dataclass(frozen=True)
class Sentence:
    """One held-out pair with a model's translation of it, and that translation's own chrF."""

    place: int
    source: str
    reference: str
    translation: str
    chrf: str


@dataclass(frozen=True)
class Reading:
    """Sentences of one cell to read: the worst by chrF, and some drawn by chance."""

    title: str
    worst: Sequence[Sentence]
    drawn: Sequence[Sentence]


def section(scores: Scores) -> Mapping[str, Any] | None:
    """What the template prints on translation; None for a study of something else."""
    facts = scores.folder.translation
    if scores.metric != "bleu" or not facts:
        return None
    return {
        "how": _how(facts),
        "scores": score_table(scores),
        "signatures": [f"{name}: {facts[key]}" for name, kind in SIGNATURES if facts.get(key := f"{kind}_signature")],
        "paired": paired_table(scores),
        "readings": readings(scores),
        "source_lang": str(facts.get("source_lang") or "").replace("_", "-"),
        "target_lang": str(facts.get("target_lang") or "").replace("_", "-"),
    }


def _how(facts: Mapping[str, Any]) -> str:
    parts = [f"{facts['pairs']} held-out pairs"] if "pairs" in facts else []
    parts += [f"{facts['split']} split (so is what tables call validation)"] if "split" in facts else []
    parts += (
        [f"{facts['source_lang']} → {facts['target_lang']}"] if {"source_lang", "target_lang"} <= set(facts) else []
    )
    parts += (
        ["greedy decoding" if facts["beams"] == 1 else f"beam search of {facts['beams']}"] if "beams" in facts else []
    )
    return ", ".join(parts)


def score_table(scores: Scores) -> Table:
    """Every cell's scores of its translations, teachers first, and what copying the source would score."""
    settings = scores.settings()
    rows = []
    for key in ordered_keys(scores, settings):
        where = "teacher" if key.setting is None else setting_label(key.setting, settings) or "student"
        at = "–" if key.temperature is None else f"{key.temperature:g}"
        values = [uncertain(scores.mean(key, metric), digits) for metric, _, digits in COLUMNS]
        rows.append([where, f"{key.alpha:g}", at, *values])
    copied = scores.folder.translation.get("copy") or {}
    if copied:
        rows.append(["copy of the source", "–", "–", *(number(copied.get(metric), d) for metric, _, d in COLUMNS)])
    note = (
        "Copy of the source: what a system scores that gives back its input; a model below it is of no "
        "use. Length ratio: length of the translations over that of the references (1 is right). Repeated 4-grams: share that "
        "occurred before in the same translation; a model that goes round in circles has many. "
        "Cut: stopped at the largest length, before an end. NLL: of the reference’s tokens."
    )
    return Table("Scores of the translations", ["cell", "α", "T", *(c[1] for c in COLUMNS)], rows, labels=3, note=note)


def paired_table(scores: Scores) -> Table | None:
    """Paired bootstrap tests of the first seed: each T against the lowest, and each α against α = 0 at equal T."""
    rows, signature = [], ""
    for baseline, other in _pairs(scores):
        found = _compared(scores, baseline, other)
        if found:
            span = f"{number(found.low, 1, sign=True)} to {number(found.high, 1, sign=True)}"
            p = "no difference" if found.p_value is None else f"{found.p_value:.3f}"
            rows.append([_pair_label(scores, baseline, other), number(found.difference, 1, sign=True), span, p])
            signature = found.signature
    note = (
        "Each row is the second cell minus the first, of the lowest seed that both have. 95 % intervals and p-values come from "
        "resampling the held-out sentences for both at once: they say nothing about another seed, and are not corrected for the "
        "number of rows. p is that of `sacrebleu --paired-bs`, which counts one tail: an interval that just leaves out 0 goes with "
        f"about 0.025. Signature: {signature}."
    )
    head = ["", "BLEU points", "95 % interval", "p"]
    return Table("Paired bootstrap over sentences", head, rows, note=note) if rows else None


def _pairs(scores: Scores) -> Iterator[tuple[Key, Key]]:
    for setting in scores.settings():
        for alpha in scores.alphas(setting):
            low, *higher = scores.temperatures(setting, alpha)
            yield from ((Key(setting, alpha, low), Key(setting, alpha, t)) for t in higher)
        for t in scores.temperatures(setting):
            smoothed = [a for a in scores.alphas(setting) if a and Key(setting, a, t) in scores.cells]
            if Key(setting, 0.0, t) in scores.cells:
                yield from ((Key(setting, 0.0, t), Key(setting, a, t)) for a in smoothed)


def _compared(scores: Scores, baseline: Key, other: Key) -> Compared | None:
    first, second = scores.cells[baseline], scores.cells[other]
    shared = sorted(set(first) & set(second))
    return compare(scores.bleu, first[shared[0]].name, second[shared[0]].name) if shared else None


def _pair_label(scores: Scores, baseline: Key, other: Key) -> str:
    assert baseline.setting is not None  # pairs are of students
    where = setting_label(baseline.setting, scores.settings())
    if baseline.alpha == other.alpha:
        text = f"α = {baseline.alpha:g}: T = {baseline.temperature:g} → {other.temperature:g}"
    else:
        text = f"T = {baseline.temperature:g}: α = {baseline.alpha:g} → {other.alpha:g}"
    return f"{text}, {where}" if where else text


def readings(scores: Scores) -> list[Reading]:
    """Sentences of the best student and of the one with the highest T and largest α; the same sentences are drawn for both."""
    chosen: list[tuple[str, Cell]] = []
    if best := _best(scores):
        chosen.append(("the best student", best))
    settings = scores.settings()
    furthest = _furthest(scores, settings[0]) if settings else None
    if furthest and (not best or furthest.name != best.name):
        chosen.append(("the highest T", furthest))
    return [reading for what, cell in chosen if (reading := _reading(scores, what, cell))]


def _best(scores: Scores) -> Cell | None:
    known = [c for c in scores.folder.students if "bleu" in c.metrics]
    return max(known, key=lambda c: c.metrics["bleu"], default=None)


def _furthest(scores: Scores, setting: Setting) -> Cell | None:
    keys = [k for k in scores.cells if k.setting == setting]
    key = max(keys, key=lambda k: (k.temperature or 0.0, k.alpha), default=None)
    return scores.cells[key][min(scores.cells[key])] if key else None


def _reading(scores: Scores, what: str, cell: Cell) -> Reading | None:
    from sacrebleu.metrics import CHRF

    lines = scores.bleu.lines(cell.name)
    if not lines:
        return None
    chrf = CHRF()
    values = [chrf.sentence_score(line.translation, [line.target]).score for line in lines]
    worst = np.argsort(values, kind="stable")[:SHOWN]
    drawn = np.sort(np.random.default_rng(SEED).choice(len(lines), size=min(SHOWN, len(lines)), replace=False))
    score = number(mean_of({cell.seed: cell.metrics["bleu"]})) if "bleu" in cell.metrics else "–"
    title = f"{what}: {key_label(cell.key, scores.settings())}, seed {cell.seed} (BLEU {score})"
    return Reading(title, *([_sentence(int(i), lines[i], values[i]) for i in places] for places in (worst, drawn)))


def _sentence(place: int, line: Line, chrf: float) -> Sentence:
    return Sentence(place + 1, _short(line.source), _short(line.target), _short(line.translation), number(chrf, 0))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"

"""The comparison with the paper in words: the report's section, and the same tables on a terminal."""

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hf_lskd.paper import our_column, source
from hf_lskd.study.compare import CellRow, Comparison, Verdict, as_published, comparisons
from hf_lskd.study.compare_claims import SMOOTHED, Claim
from hf_lskd.study.report_folder import Key, Setting, distinct
from hf_lskd.study.report_limits import gradient
from hf_lskd.study.report_numbers import ENOUGH_SEEDS, Scores
from hf_lskd.study.report_tables import Table
from hf_lskd.study.report_words import listed, number, setting_label, uncertain
from hf_lskd.study.summary import aligned

NAMES = {"top1": "Top-1, %", "top5": "Top-5, %", "bleu": "BLEU"}
VERDICTS: Mapping[Verdict, str] = {
    "agrees": "agree",
    "differs": "differ",
    "cannot tell": "cannot be told",
    "no published number": "have no published number",
}
HOW = (
    f"A cell agrees when the paper’s number lies inside our 95 % interval (Student t over at least {ENOUGH_SEEDS} seeds) or is "
    "printed alike; without an interval a difference cannot be told. The interval is that of our mean: it does not know how far "
    "another run of the paper’s would land, so “differs” may be the luck of its one run."
)
CLAIMS = (
    "A claim holds when the whole 95 % interval of its difference, taken seed by seed, is above 0, and does not hold when it is "
    f"below; with fewer than {ENOUGH_SEEDS} seeds it cannot be told. “In the paper”: the order of its own numbers, which have no "
    "interval. Intervals are not widened for the number of comparisons."
)


def section(scores: Scores) -> Mapping[str, Any] | None:
    """What the report prints beside the paper's tables; None for a study whose recipe names none."""
    found = [one for one in comparisons(scores) if one.rows]
    if not found:
        return None
    return {"how": " ".join((*source(), HOW)), "students": [block(scores, one) for one in found]}


def block(scores: Scores, found: Comparison) -> Mapping[str, Any]:
    """One student: which table, counts, what to know, and its two tables."""
    return {
        "title": title(found),
        "counts": counts(scores, found),
        "notes": notes(scores, found),
        "cells": cell_table(scores, found),
        "claims": claim_table(scores, found) if found.claims else None,
    }


def print_comparison(scores: Scores, found: Sequence[Comparison]) -> None:
    """The section as text."""
    for one in found:
        part = block(scores, one)
        print(part["title"])
        for table in (part["cells"], part["claims"]):
            if table:
                print(aligned([table.head, *table.rows]), end="\n\n")
        for text in (part["counts"], *part["notes"], part["cells"].note):
            print(textwrap.fill(text, 120))
        print()
    print(textwrap.fill(" ".join((*source(), HOW, CLAIMS)), 120))


def title(found: Comparison) -> str:
    """ "student: ResNet-50 → ResNet-18 on ImageNet-1K (imagenet1k_resnet50_resnet18)"."""
    pair = found.pair
    return f"{found.student}: {pair.teacher} → {pair.student} on {pair.data} ({pair.name})"


def counts(scores: Scores, found: Comparison) -> str:
    """How many numbers agree, for the teachers and for each of the student's settings."""
    settings = scores.settings(found.student)
    parts = []
    for setting in distinct(row.key.setting for row in found.rows):
        tally = Counter(row.verdict for row in found.rows if row.key.setting == setting)
        whose = "teachers" if setting is None else " ".join(["students", setting_label(setting, settings)]).strip()
        parts.append(f"{whose}: {listed([f'{tally[v]} {words}' for v, words in VERDICTS.items() if tally[v]])}")
    return f"Of the numbers, {'; '.join(parts)}."


def notes(scores: Scores, found: Comparison) -> list[str]:
    """What has to be known of this table: the paper's own remarks, how ours was measured, what is missing, other losses."""
    texts = [found.pair.note]
    texts += [
        f"Ours is {our_column(m)} of results.csv, over text prepared alike."
        for m in found.pair.metrics
        if our_column(m) != m
    ]
    if "top1" in found.pair.metrics:
        texts.append("Ours is after the last epoch; “best epoch” is the highest on the same data.")
    settings = scores.settings(found.student)
    other = [setting for setting in settings if not as_published(setting, found.pair)]
    if other:
        names = [text for setting in other if (text := setting_label(setting, settings))]
        texts.append(f"Not trained with the paper’s loss: {'; '.join(names) or 'these students'}.")
    if found.missing:
        cells = [key_text(Key(None, alpha, t), settings) for alpha, t in found.missing]
        texts.append(f"In the paper and not finished here: {'; '.join(cells)}.")
    return [text for text in texts if text]


def cell_table(scores: Scores, found: Comparison) -> Table:
    """A row a cell and metric: the paper's number, ours, difference, verdict, g."""
    settings = scores.settings(found.student)
    best = any(row.best_epoch is not None for row in found.rows)
    rows = [cell_row(row, settings, best) for row in (*found.rows, *found.untrained)]
    head = ["cell", "", "paper", "ours", "seeds", *(["best epoch"] if best else []), "difference", "verdict", "g"]
    return Table("Each cell beside the paper’s", head, rows, labels=2, note="g: of our teacher’s logits at this T.")


def cell_row(row: CellRow, settings: Sequence[Setting], best: bool) -> list[str]:
    return [
        key_text(row.key, settings),
        NAMES[row.metric],
        number(row.paper, 3),
        uncertain(row.ours, 2),
        str(row.ours.seeds if row.ours else 0),
        *([number(row.best_epoch, 2)] if best else []),
        number(row.difference, 2, sign=True),
        row.verdict,
        "–" if row.gradient is None else gradient(row.gradient),
    ]


def claim_table(scores: Scores, found: Comparison) -> Table:
    """A row a claim: our difference, the verdict, and what the paper's own numbers say."""
    settings = scores.settings(found.student)
    labelled = len({claim.setting for claim in found.claims}) > 1
    rows = []
    for claim in found.claims:
        where = [setting_label(claim.setting, settings)] if labelled else []
        ours = uncertain(claim.ours, 2, sign=True)
        paper = f"{claim.paper_says} ({number(claim.paper, 3, sign=True)}{at(claim, claim.paper_at)})"
        paper = claim.paper_says if claim.paper is None else paper
        rows.append([claim_text(claim), *where, ours + at(claim, claim.at), claim.judgement, paper])
    head = ["claim", *(["loss"] if labelled else []), "our difference", "verdict", "in the paper"]
    name = NAMES[found.pair.main].split(",")[0]
    return Table(f"The paper’s claims on the order of cells ({name})", head, rows, labels=1 + labelled, note=CLAIMS)


def claim_text(claim: Claim) -> str:
    """The claim in words."""
    if claim.name == "falls_more":
        return f"from T = 1 to {claim.at:g} it falls more with α = {SMOOTHED:g} than with α = 0"
    among = f", of T = {listed([f'{t:g}' for t in (1.0, *claim.against)])}" if claim.against else ""
    return f"T = 1 is best with α = {SMOOTHED:g}{among}"


def at(claim: Claim, temperature: float | None) -> str:
    """The T that decides, where the claim does not name it."""
    return f" over T = {temperature:g}" if claim.name == "best_at_1" and temperature is not None else ""


def key_text(key: Key, settings: Sequence[Setting]) -> str:
    """ "teacher α = 0.1", "α = 0.1, T = 2" and what tells its setting from the student's others."""
    if key.temperature is None:
        return f"teacher α = {key.alpha:g}"
    label = setting_label(key.setting, settings) if key.setting else ""
    return f"α = {key.alpha:g}, T = {key.temperature:g}" + (f", {label}" if label else "")

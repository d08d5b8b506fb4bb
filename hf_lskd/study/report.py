"""One self-contained page on a study: the answer first, then what it rests on, then what it does not show."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from hf_lskd.recipe import same_in_all_seeds
from hf_lskd.study import compare_tables as compare
from hf_lskd.study import report_figures as figures
from hf_lskd.study import report_made as made
from hf_lskd.study import report_tables as tables
from hf_lskd.study import report_translation as translation
from hf_lskd.study.report_classes import class_table
from hf_lskd.study.report_eta import EtaSummary, choices, summaries
from hf_lskd.study.report_folder import Setting, StudyFolder, distinct, read_study
from hf_lskd.study.report_limits import limits, small_gradient_sentences, why_no_rate
from hf_lskd.study.report_numbers import Scores, control, floor, learnt_nothing, rises
from hf_lskd.study.report_translation_limits import slow_learning
from hf_lskd.study.report_words import (
    Answer,
    answer,
    control_sentence,
    listed,
    number,
    setting_label,
    smoothing,
    uncertain,
)

REPORT = "report.html"
LARGEST = 3_000_000  # bytes; pictures and per-target tables are thinned until the page is smaller
NORMALISERS = {
    "sets": "divided by their mean over S1 and S2",
    "all": "divided by their mean over all other classes",
    "none": "not divided by anything",
}


@dataclass(frozen=True)
class Detail:
    """How much of the raw points a page shows: points a class and panel, points a curve, targets a table."""

    points: int
    curve: int
    targets: int


LEVELS = (Detail(150, 80, 400), Detail(80, 40, 150), Detail(40, 25, 60), Detail(15, 12, 20))


def write_report(folder: Path) -> Path:
    """Write `report.html` into a study's folder, from its tables and records alone, and return its path.

    The page is a pure function of the folder: the same files give the same bytes.
    Raises InputError for a folder without results.csv and for damaged files.
    """
    study = read_study(Path(folder))
    path = Path(folder) / REPORT
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(render(study), encoding="utf-8", newline="\n")
    os.replace(temporary, path)
    return path


def render(study: StudyFolder) -> str:
    """The page as text, with as much detail as stays below 3 MB."""
    template = _template()
    scores = Scores(study)
    eta = summaries(study)
    once = {
        "translation": translation.section(scores),
        "by_class": class_table(scores),
        "beside": compare.section(scores),
    }
    page = ""
    for detail in LEVELS:
        page = template.render({**context(scores, eta, detail), **once})
        if len(page.encode("utf-8")) < LARGEST:
            break
    return page


def _template() -> Any:
    """The page's template; autoescape is on, so whatever comes from data is text (only our own drawings are marked safe)."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    def read(name: str) -> str:
        return files("hf_lskd.study").joinpath(name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"tied": tied, "capital": lambda text: text[:1].upper() + text[1:]}
    return environment.get_template("report.html")


def tied(text: str) -> str:
    """The text with no-break spaces where a line must not end: "89.4 ± 0.8 %", "α = 0.1", "1 → 64", "−1.5 to +2"."""
    return re.sub(r" (?=[±%=→])|(?<=[±=→]) (?=[−+\d])|(?<=\d) (?=to [−+\d])|(?<=\d to) (?=[−+\d])", "\u00a0", text)


def context(scores: Scores, eta: Sequence[EtaSummary], detail: Detail) -> dict[str, Any]:
    """What the template prints."""
    study, settings = scores.folder, scores.settings()
    students = scores.student_names()
    answers = [answer(scores, name) for name in students]
    first = distinct([s[0] for name in students if (s := scores.settings(name))])
    return {
        "name": study.name,
        "counts": made.counts(study),
        "answers": answers,
        "tiles": _tiles(scores, eta),
        "notices": _notices(scores),
        "accuracy": figures.over_temperature(scores, settings, scores.metric, scores.words.axis),
        "metric": scores.words.metric,
        "unit": "one BLEU point" if scores.metric == "bleu" else "1 point",
        "item": "token" if scores.metric == "bleu" else "image",
        "bars": _bars(answers, scores.words.items, any(len(found) > 1 for found in scores.cells.values())),
        "changes": [(name, t) for name in students if (t := tables.changes(scores, name))],
        "no_rate": _no_rate(study, settings),
        "gradient": [_gradient_section(scores, name) for name in students],
        "eta": _eta_section(study, eta, settings, detail) if eta else None,
        "projections": figures.projections(study, settings, detail.points),
        "classes": figures.projection_names(study),
        "geometry": tables.geometry(scores),
        "calibration": _calibration(scores, settings),
        "curves": figures.training_curves(scores, [*first, *(s for s in settings if s not in first)], detail.curve),
        "results": tables.results(scores),
        "failures": made.failures(study),
        "limits": limits(scores, bool(eta)),
        "durations": made.durations(study),
        "cells": made.cell_list(study),
        "settings": made.settings(study),
        "recipe": made.pretty(study.recipe),
        "versions": made.versions(study),
        "version": made.version(study),
    }


def _tiles(scores: Scores, eta: Sequence[EtaSummary]) -> list[Mapping[str, str]]:
    """The few numbers that the answer rests on, for the first student."""
    if not scores.settings():
        return []
    main = scores.settings()[0]
    found, unit = rises(scores, main), scores.words.points
    tiles = [
        _tile(f"T = {r.low:g} → {r.high:g}, {smoothing(r.alpha)}", uncertain(r.change, sign=True), unit) for r in found
    ]
    effects = tables.smoothing_effects(scores, main)
    tiles += [_tile(f"difference that α = {r.alpha:g} makes", by, unit) for r, by in effects]
    if all(learnt_nothing(scores, key) for key in scores.cells if key.setting == main):
        tiles = []
    return tiles + _eta_tile(main, eta)


def _tile(label: str, value: str, unit: str, more: str = "") -> Mapping[str, str]:
    return {"label": label, "value": value, "unit": unit, "more": more}


def _eta_tile(main: Setting, eta: Sequence[EtaSummary]) -> list[Mapping[str, str]]:
    own = [e for e in eta if e.setting == main and e.split == eta[0].split]
    if not own:
        return []
    high = min(e.high for e in own)
    at = [e for e in own if e.high == high]
    shares = " · ".join(f"{number(e.systematic.value, 0)} %" for e in at)
    names = " · ".join(f"α = {e.alpha:g}" for e in at)
    known = [e.chance for e in at if e.chance is not None]
    chance = f"; chance {number(sum(known) / len(known), 0)} %" if known else ""
    return [_tile(f"targets that diffuse systematically, T = {own[0].low:g} → {high:g}", shares, "", names + chance)]


def _notices(scores: Scores) -> list[tuple[str, str]]:
    """(anchor, text) of what has to be read together with the answer."""
    students = scores.student_names()
    by_text: dict[str, list[str]] = {}
    for name in students:
        if text := _gradient_notice(scores, scores.settings(name)[0]):
            by_text.setdefault(text, []).append(name)
    found = [
        ("gradient", text if names == students else f"{listed([f'“{n}”' for n in names])}: {text}")
        for text, names in by_text.items()
    ]
    slow = slow_learning(scores, scores.settings()[0]) if scores.metric == "bleu" and students else ""
    found += [("limits", slow)] if slow else []
    together = made.ensemble(scores.folder)
    found += [("results", together)] if together else []
    lowest = floor(scores)
    low = [k for k in scores.cells if learnt_nothing(scores, k)]
    if lowest and low:
        verb = "is" if len(low) == 1 else "are"
        text = f"{len(low)} of {len(scores.cells)} models (α and T) {verb} below {lowest.words} and learnt nothing to speak of."
        found.append(("limits", text))
    failed = [c.name for c in scores.folder.cells if not c.complete]
    if failed:
        verb = "is" if len(failed) == 1 else "are"
        found.append(
            ("failed", f"{len(failed)} of {len(scores.folder.cells)} cells failed and {verb} left out of every number.")
        )
    uneven = {len(v) for k, v in scores.cells.items() if k.setting}
    if len(uneven) > 1:
        found.append(
            (
                "results",
                f"Cells have between {min(uneven)} and {max(uneven)} seeds; differences use the seeds that both have.",
            )
        )
    return found


def _gradient_notice(scores: Scores, main: Setting) -> str:
    """What g says of the largest fall: the control where there is one, else that it is missing."""
    worst = min(rises(scores, main), key=lambda r: r.change.value, default=None)
    twin = control(scores, worst) if worst and worst.change.notable else None
    small = small_gradient_sentences(scores, main)
    return " ".join([*small[:-1], control_sentence(twin)] if twin else small)


def _bars(answers: Sequence[Answer], items: str, several: bool) -> str:
    """What bars and dots of the charts mean."""
    kinds = frozenset().union(*(a.kinds for a in answers)) - {"none"}
    bars = "Bars are 95 % intervals" + (f" over the {items}, not over seeds" if kinds == {"examples"} else "")
    bars += f" (over {items} where fewer than 3 seeds ran)" if len(kinds) > 1 else ""
    return bars + ("; small dots are single seeds." if several else ".")


def _no_rate(study: StudyFolder, settings: Sequence[Setting]) -> str:
    """Why g is no learning rate in any setting of the study; empty where it is one in some."""
    reasons = [why_no_rate(study, setting) for setting in settings]
    return "; ".join(distinct(reasons)) if all(reasons) else ""


def _gradient_section(scores: Scores, student: str) -> Mapping[str, Any]:
    mains = [s for s in scores.settings(student) if s.kd_loss_scale != "equalised"] or scores.settings(student)
    twins = [c for s in mains for r in rises(scores, s) if (c := control(scores, r))]
    return {
        "student": student,
        "sentences": small_gradient_sentences(scores, mains[0]),
        "controls": [control_sentence(c) for c in twins],
        "paper": any(setting.plain for setting in mains),
        "table": tables.gradients(scores, student),
    }


def _eta_section(
    study: StudyFolder, eta: Sequence[EtaSummary], settings: Sequence[Setting], detail: Detail
) -> Mapping[str, Any]:
    groups = [[e for e in eta if e.setting == s] for s in distinct(e.setting for e in eta)]
    split = eta[0].split
    normalisers, signatures = choices(study)
    one_teacher = any("teacher" in common for common in same_in_all_seeds(study.recipe))
    return {
        "sentences": [_eta_sentence([e for e in own if e.split == split], settings, one_teacher) for own in groups],
        "settings": [
            {
                "label": setting_label(own[0].setting, settings),
                "panels": figures.eta_panels([e for e in own if e.split == split], 2 * detail.targets),
                "summary": tables.eta_summary(own),
                "targets": [
                    (part, tables.eta_targets([e for e in own if e.split == part], detail.targets))
                    for part in distinct(e.split for e in own)
                ],
            }
            for own in groups
        ],
        "split": split,
        "normaliser": listed([NORMALISERS.get(n, n) for n in normalisers]),
        "signatures": signatures,
    }


def _eta_sentence(found: Sequence[EtaSummary], settings: Sequence[Setting], one_teacher: bool) -> str:
    """The systematic share at the smallest raised T, for each α, beside chance."""
    high = min(e.high for e in found)
    at = sorted((e for e in found if e.high == high), key=lambda e: -e.alpha)
    shares = listed([f"{smoothing(e.alpha)} for {number(e.systematic.value, 0)} % of the targets" for e in at])
    known = [e.chance for e in at if e.chance is not None]
    whose = "the student" if one_teacher else "teacher and student"
    chance = (
        f"Two seeds of {whose}, with nothing else changed, give {number(sum(known) / len(known), 0)} %."
        if known
        else "Its chance level is unknown with one seed."
    )
    label = setting_label(found[0].setting, settings)
    lead = f"{label}: " if label else ""
    return f"{lead}raising T from {at[0].low:g} to {high:g} is systematic {shares}. {chance}"


def _calibration(scores: Scores, settings: Sequence[Setting]) -> list[figures.Figure]:
    found = []
    for metric, label, digits in (("ece", "ECE, %", 1), ("nll", "NLL, nats", 2)):
        if any(metric in c.metrics for c in scores.folder.students):
            found += figures.over_temperature(scores, settings, metric, label, digits)
    return found

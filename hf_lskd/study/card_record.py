"""What a model card needs beyond a cell's own record, gathered from the study around it: a record with a key `card`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_lskd.errors import InputError
from hf_lskd.models.files import model_facts
from hf_lskd.recipe import signature
from hf_lskd.record import CELLS, FILE, MODEL, RESULTS, STUDY, Cell, file_sha256, read_record
from hf_lskd.study.report_eta import EtaSummary, Range, summaries
from hf_lskd.study.report_folder import Cell as Row
from hf_lskd.study.report_folder import Key, StudyFolder, read_study
from hf_lskd.study.report_numbers import Estimate, Scores, example_interval, floor
from hf_lskd.study.report_words import answer

LEVEL = 95  # percent, of every interval of a study


def finished_record(cell: Path) -> dict[str, Any]:
    """The record of a finished cell. Raises InputError where there is none, or where the cell failed."""
    record = read_record(cell)
    if record is None:
        hint = "A cell's folder holds record.json and model/; a study's holds study.json and cells/."
        raise InputError(f"{cell} has no {FILE}", "the folder of a finished cell, or of a study", hint)
    if record.get("status") != "complete" or not (cell / MODEL).is_dir():
        error = (record.get("error") or {}).get("message") or "its model is missing"
        raise InputError(f"{cell} is not finished ({error})", "a finished cell", "Run its study again, then publish.")
    return record


def card_record(cell: Path, repo_id: str, *, teacher_repo: str | Sequence[str | None] | None = None) -> dict[str, Any]:
    """The record of the finished cell in a folder, with what its study says of it under `card`.

    `teacher_repo` is where its teacher is on the Hub; of an ensemble one for each member, in the record's order. A cell that
    lies in no study's folder has no intervals and no η. Raises InputError for a folder that holds no finished cell, and for
    another number of repositories than the cell has teachers.
    """
    record = finished_record(cell)
    facts: dict[str, Any] = {"repo_id": repo_id, "level": LEVEL, "model": model_facts(cell / MODEL)}
    facts["metric"] = "bleu" if "bleu" in record["metrics"] else "top1"
    if record["role"] == "student":
        given = [teacher_repo] if isinstance(teacher_repo, str) else list(teacher_repo or ())
        facts["teacher"] = teacher_facts(cell, record, given)
    scores = scores_around(cell, record)
    return {**record, "card": {**facts, **(in_study(scores, record, facts) if scores else {})}}


def teacher_facts(
    cell: Path, record: Mapping[str, Any], repositories: Sequence[str | None] = ()
) -> dict[str, Any] | None:
    """Name, metrics and architecture of the teacher that the record names by hash, where its cell lies beside this one.

    An ensemble's name and metrics stand in the record itself; each of its members gets its repository.
    """
    named = record.get("teacher")
    if named is None:
        return None
    members = named.get("members") or []
    if repositories and len(repositories) != max(1, len(members)):
        raise InputError(
            f"{len(repositories)} teacher repositories for {record['name']}",
            f"{max(1, len(members))}, of {named['name']}",
            "Name each teacher's repository once, in that order.",
        )
    if members:
        placed = zip(members, repositories or [None] * len(members))
        return {**named, "members": [{**member, "repo_id": repo_id} for member, repo_id in placed]}
    repo_id = repositories[0] if repositories else None
    folder = cell.resolve().parent / named["name"]
    found = read_record(folder) if folder.is_dir() else None
    if found is None or file_sha256(folder / FILE) != named["record_sha256"]:
        return {**named, "repo_id": repo_id, "metrics": {}}
    return {**named, "repo_id": repo_id, "metrics": found["metrics"], **model_facts(folder / MODEL)}


def scores_around(cell: Path, record: Mapping[str, Any]) -> Scores | None:
    """The tables of the study that a cell lies in; None where it lies in none that has this very record."""
    folder = cell.resolve().parent.parent
    if cell.resolve().parent.name != CELLS or not (folder / RESULTS).is_file() or not (folder / STUDY).is_file():
        return None
    study = read_study(folder)
    mine = study.records.get(record["name"])
    return Scores(study) if mine is not None and mine.get("signature") == record["signature"] else None


def in_study(scores: Scores, record: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The score's interval, differences to the teacher and the undistilled student, the grid around the cell, and η."""
    row = row_of(scores, record["name"])
    lowest = floor(scores)
    found: dict[str, Any] = {
        "score": score_of(scores, row),
        "over_seeds": over_seeds(scores, row.key),
        "floor": None if lowest is None else asdict(lowest),
        "grid": grid_around(scores, row),
        "answer": answer_of(scores, row.setting.student if row.setting else None),
    }
    if row.setting is not None:
        named = facts.get("teacher") or {}
        single = None if named.get("members") else single_teacher(scores, named.get("name"))
        found["teacher"] = {**named, **(beside(scores, row, single) if single else {})}
        plain = undistilled(scores, row)
        found["undistilled"] = beside(scores, row, plain) if plain and plain.name != row.name else None
        found["eta"], found["eta_signature"] = eta_of(scores.folder, row)
    return found


def row_of(scores: Scores, name: str) -> Row:
    return next(row for row in scores.folder.cells if row.name == name)


def single_teacher(scores: Scores, name: str | None) -> Row | None:
    """The teacher of this name, as a student's record names it; None where it is not finished in this study."""
    return next((r for r in scores.folder.teachers if r.name == name), None)


def undistilled(scores: Scores, row: Row) -> Row | None:
    """The same student trained on the labels alone (kd_weight 0), of the same seed; None where the study has none."""
    assert row.setting is not None
    same = [r for r in scores.folder.students if r.seed == row.seed and r.setting and r.setting.kd_weight == 0]
    return next((r for r in same if r.setting and r.setting.student == row.setting.student), None)


def beside(scores: Scores, row: Row, other: Row) -> dict[str, Any]:
    """Another cell's metrics and score, and this one's difference to it over the held-out items."""
    return {
        "name": other.name,
        "metrics": dict(other.metrics),
        "score": score_of(scores, other),
        "difference": difference_of(scores, row, other),
    }


def score_of(scores: Scores, row: Row) -> dict[str, Any]:
    """One cell's own score with its interval over the held-out items."""
    return estimated(row.metrics[scores.metric], over_items(scores, [(1.0, row)]))


def difference_of(scores: Scores, row: Row, other: Row) -> dict[str, Any]:
    value = row.metrics[scores.metric] - other.metrics[scores.metric]
    return estimated(value, over_items(scores, [(1.0, row), (-1.0, other)]))


def over_items(scores: Scores, terms: list[tuple[float, Row]]) -> tuple[float, float] | None:
    """Bootstrap interval of a weighted sum of cells over the held-out items; None where those were not kept or differ."""
    if scores.metric == "bleu":
        return scores.bleu.contrast([(weight, row.name) for weight, row in terms])
    kept = [scores.predictions(row.name) for _, row in terms]
    known = [one for one in kept if one is not None]
    if len(known) < len(kept) or any((one[0] != known[0][0]).any() for one in known):
        return None
    right = [weight * 100.0 * (labels == said) for (weight, _), (labels, said) in zip(terms, known)]
    return example_interval(sum(right[1:], right[0]))


def estimated(value: float, interval: tuple[float, float] | None) -> dict[str, Any]:
    low, high = interval or (None, None)
    return {"value": value, "low": low, "high": high, "kind": "examples" if interval else "none", "seeds": 1}


def over_seeds(scores: Scores, key: Key) -> dict[str, Any] | None:
    """Mean and interval over seeds; None with fewer than three."""
    mean = scores.over_seeds([(1.0, key)])
    return None if mean is None or mean.kind != "seeds" else from_estimate(mean)


def from_estimate(found: Estimate) -> dict[str, Any]:
    half = None if found.low is None or found.high is None else (found.high - found.low) / 2
    return {**asdict(found), "half": half}


def grid_around(scores: Scores, row: Row) -> list[dict[str, Any]]:
    """The score of every student with the same loss, by the teacher's α and T; of a teacher, those of the first setting."""
    settings = scores.settings()
    setting = row.setting or (settings[0] if settings else None)
    cells = []
    for key in scores.cells:
        mean = scores.mean(key) if key.setting == setting and key.setting is not None else None
        if mean is not None:
            cells.append({"label_smoothing": key.alpha, "temperature": key.temperature, **from_estimate(mean)})
    return sorted(cells, key=lambda cell: (cell["label_smoothing"], cell["temperature"]))


def answer_of(scores: Scores, student: str | None) -> list[str]:
    """The study's answer in words, as its report gives it; what its intervals are, a card says itself."""
    names = scores.student_names()
    if not names:
        return []
    found = answer(scores, student or names[0])
    return [text] if (text := " ".join(filter(None, (found.first, found.second, found.rivals)))) else []


def eta_of(folder: StudyFolder, row: Row) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The summaries of η at the cell's α and loss, and the signature that travels with them."""
    mine = [s for s in summaries(folder) if s.setting == row.setting and s.alpha == row.alpha]
    first = mine[0].rows[0] if mine else None
    return [eta_row(s) for s in mine], {} if first is None else {"reference": first.reference, "sets": first.sets}


def eta_row(found: EtaSummary) -> dict[str, Any]:
    numbers = {name: ranged(getattr(found, name)) for name in ("similar", "dissimilar", "systematic")}
    return {
        "T1": found.low, "T2": found.high, "split": found.split, "targets": found.targets, "seeds": found.seeds,
        "chance": found.chance, **numbers,
    }  # fmt: skip


def ranged(found: Range) -> dict[str, Any]:
    return asdict(found)


def study_record(folder: Path, repo_id: str, names: Mapping[str, str]) -> dict[str, Any]:
    """What a study's index page says: its cells with their scores and repositories (`names`: cell → repository).

    `recipe_signature` is of the recipe without its grid, so that a study that has grown is still the same one.
    """
    study = read_study(folder)
    scores = Scores(study)
    answers = [line for student in scores.student_names() for line in answer_of(scores, student)]
    return {
        "name": study.name,
        "recipe_signature": signature({k: v for k, v in study.recipe.items() if k not in ("grid", "changes")}),
        "repo_id": repo_id,
        "task": study.recipe["task"],
        "source": study.recipe["data"]["source"],
        "metric": scores.metric,
        "answer": answers,
        "cells": [
            {
                **Cell.of(study.records[row.name]).to_dict(),
                "name": row.name,
                "score": row.metrics.get(scores.metric),
                "repo_id": names[row.name],
            }
            for row in study.cells
            if row.name in names
        ],
    }

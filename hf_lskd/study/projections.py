"""The penultimate projections of a study: a row per teacher α, a panel per model, one basis a model, one PCA a row."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_lskd.analysis.projection import fit_plane, penultimate_basis, penultimate_coordinates
from hf_lskd.analysis.semantics import SimilarSets
from hf_lskd.errors import InputError
from hf_lskd.recipe import Recipe, signature
from hf_lskd.record import CELLS, MODEL, Cell, write_json
from hf_lskd.study.classes import three_classes
from hf_lskd.study.grid import CURVE
from hf_lskd.tasks.task import SPLITS, Task

logger = logging.getLogger(__name__)

PROJECTIONS = "projections.json"
SAMPLES = {"train": 150, "validation": 50}  # a class, as in the paper (facts.md: Müller et al. 2019)


def write_projections(
    folder: Path,
    recipe: Recipe,
    task: Task,
    records: Sequence[Mapping[str, Any]],
    classes: Sequence[str] | None = None,
    sets: Mapping[int, SimilarSets] | None = None,
) -> None:
    """Write projections.json: for the study's first seed, each teacher beside its students, over three classes.

    `classes`: target, similar, dissimilar by name; None takes the recipe's. A file that shows the same cells is kept.
    Raises InputError as `three_classes` does.
    """
    chosen = three_classes(recipe, task, classes, sets)
    first = first_rows(records)
    if made_from(chosen, first) != read_made_from(folder / PROJECTIONS):
        write_json(folder / PROJECTIONS, projections(folder, task, first, chosen))


def first_rows(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The students of the smallest seed, and of each α the teacher of that seed, else the first of an ensemble's."""
    students = [record for record in records if record["role"] == "student"]
    seed = min(record["seed"] for record in students or records)
    teachers: dict[float, Mapping[str, Any]] = {}
    for record in records:
        if record["role"] == "teacher" and (record["seed"] == seed or record["label_smoothing"] not in teachers):
            teachers[record["label_smoothing"]] = record
    return [*teachers.values(), *(record for record in students if record["seed"] == seed)]


def projections(
    folder: Path, task: Task, records: Sequence[Mapping[str, Any]], classes: Sequence[int]
) -> dict[str, Any]:
    """The content of projections.json for the cells of one seed."""
    teachers = {record["label_smoothing"]: record for record in records if record["role"] == "teacher"}
    students = [record for record in records if record["role"] == "student"]
    rows = []
    for key in dict.fromkeys(tuple(record[field] for field in CURVE) for record in students):
        curve = [record for record in students if tuple(record[field] for field in CURVE) == key]
        curve.sort(key=lambda record: record["temperature"])
        teacher = teachers.get(curve[0]["label_smoothing"])
        panels = row_panels(folder, task, [*([teacher] if teacher else []), *curve], classes)
        rows.append({**dict(zip(CURVE, key)), "seed": curve[0]["seed"], "panels": panels})
    return {
        "classes": [{"index": index, "name": task.class_names[index]} for index in classes],
        "rows": rows,
        "note": "one basis a model, one PCA a row",
        "made_from": made_from(classes, records),
    }


def made_from(classes: Sequence[int], records: Sequence[Mapping[str, Any]]) -> str:
    """A signature of what projections show: equal ones need not be made again."""
    return signature({"classes": classes, "cells": {record["name"]: record["signature"] for record in records}})


def read_made_from(path: Path) -> str | None:
    """The signature in an earlier file; None where there is no whole one."""
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("made_from")
    except (OSError, ValueError):
        return None


def row_panels(
    folder: Path, task: Task, records: Sequence[Mapping[str, Any]], classes: Sequence[int]
) -> list[dict[str, Any]]:
    """The panels of one row: every model's coordinates in its own basis, all in one plane fitted on the row's training samples.

    A collapsed model, whose classes span no plane, has no panels.
    """
    spatial = []
    for record in records:
        try:
            spatial += [(record, split, at) for split, at in coordinates_of(folder, task, record, classes)]
        except InputError as error:
            logger.warning("projections.json leaves out %s: %s", record["name"], error)
    training = [at for _, split, at in spatial if split == "train"]
    if not training:
        return []
    plane = fit_plane([part for at in training for part in (at.points, at.centroids)])
    return [
        {
            "temperature": record["temperature"],
            "split": split,
            "points": rounded(plane.transform(at.points)),
            "labels": at.labels.tolist(),
            "centroids": rounded(plane.transform(at.centroids)),
        }
        for record, split, at in spatial
    ]


def coordinates_of(
    folder: Path, task: Task, record: Mapping[str, Any], classes: Sequence[int]
) -> list[tuple[str, Any]]:
    """Each split's samples of the three classes in the model's own three-dimensional basis."""
    found = []
    for split in SPLITS:
        read = task.features(Cell.of(record), folder / CELLS / record["name"] / MODEL, classes, split, SAMPLES[split])
        basis = penultimate_basis(read.weight, read.bias, classes)
        found.append((split, penultimate_coordinates(read.features, read.labels, classes, basis)))
    return found


def rounded(points: Any) -> list[list[float]]:
    return [[round(x, 4) for x in row] for row in points.tolist()]

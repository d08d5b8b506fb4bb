"""The penultimate projections of a study: a row per teacher α, a panel per model, one basis a model, one PCA a row."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_lskd.analysis.projection import fit_plane, penultimate_basis, penultimate_coordinates
from hf_lskd.errors import InputError
from hf_lskd.recipe import Recipe
from hf_lskd.record import CELL_FIELDS, MODEL, Cell
from hf_lskd.tasks.image_classification import SPLITS, ImageClassification

SAMPLES = {"train": 150, "validation": 50}  # a class, as in the paper (facts.md: Müller et al. 2019)
ROW = (
    "student",
    "label_smoothing",
    "kd_weight",
    "kd_loss_scale",
    "scale_student",
    "student_label_smoothing",
    "kd_top_k",
)


def projection_rows(
    folder: Path,
    recipe: Recipe,
    task: ImageClassification,
    records: Sequence[Mapping[str, Any]],
    classes: Sequence[str] | None = None,
) -> dict[str, Any]:
    """projections.json: for the study's first seed, each teacher beside its students, over three classes.

    `classes`: target, similar, dissimilar by name; None takes the recipe's.
    Raises InputError for unknown names and when the recipe's `auto` has no groups to choose from.
    """
    chosen = three_classes(recipe, task, classes)
    seed = min(record["seed"] for record in records)
    first = [record for record in records if record["seed"] == seed]
    teachers = {record["label_smoothing"]: record for record in first if record["role"] == "teacher"}
    rows = []
    for key in dict.fromkeys(tuple(record[k] for k in ROW) for record in first if record["role"] == "student"):
        students = [record for record in first if record["role"] == "student" and tuple(record[k] for k in ROW) == key]
        students.sort(key=lambda record: record["temperature"])
        teacher = teachers.get(students[0]["label_smoothing"])
        panels = row_panels(folder, task, [*([teacher] if teacher else []), *students], chosen)
        rows.append({**dict(zip(ROW, key)), "seed": seed, "panels": panels})
    return {
        "classes": [{"index": index, "name": task.class_names[index]} for index in chosen],
        "rows": rows,
        "note": "one basis a model, one PCA a row",
    }


def row_panels(
    folder: Path, task: ImageClassification, records: Sequence[Mapping[str, Any]], classes: Sequence[int]
) -> list[dict[str, Any]]:
    """The panels of one row: every model's coordinates in its own basis, all in one plane fitted on the row's training samples."""
    spatial = []
    for record in records:
        cell = Cell(**{key: record[key] for key in CELL_FIELDS})
        for split in SPLITS:
            read = task.features(cell, folder / "cells" / record["name"] / MODEL, classes, split, SAMPLES[split])
            basis = penultimate_basis(read.weight, read.bias, classes)
            spatial.append((record, split, penultimate_coordinates(read.features, read.labels, classes, basis)))
    training = [coordinates for _, split, coordinates in spatial if split == "train"]
    plane = fit_plane([part for coordinates in training for part in (coordinates.points, coordinates.centroids)])
    panels = []
    for record, split, coordinates in spatial:
        panels.append(
            {
                "temperature": record["temperature"],
                "split": split,
                "points": rounded(plane.transform(coordinates.points)),
                "labels": coordinates.labels.tolist(),
                "centroids": rounded(plane.transform(coordinates.centroids)),
            }
        )
    return panels


def rounded(points: Any) -> list[list[float]]:
    return [[round(x, 4) for x in row] for row in points.tolist()]


def three_classes(recipe: Recipe, task: ImageClassification, names: Sequence[str] | None) -> list[int]:
    """Indices of target, similar and dissimilar class: as named, or the first two of the largest group and one of another."""
    wanted = names if names is not None else (recipe.projection.classes if recipe.projection else "auto")
    if not isinstance(wanted, str):
        if len(wanted) != 3 or len(set(wanted)) != 3:
            raise InputError(
                f"{len(wanted)} classes to project: {', '.join(wanted)}",
                "three different classes: target, similar, dissimilar",
            )
        return [task.class_index(name) for name in wanted]
    groups = task.source.groups
    if groups is None:
        raise InputError(
            "projection.classes: auto, for data without semantic groups",
            "three class names: target, similar, dissimilar",
            f"Known classes: {', '.join(task.class_names[:10])}.",
        )
    sizes = sorted(set(groups), key=lambda group: (-groups.count(group), group))
    target, similar = [i for i, group in enumerate(groups) if group == sizes[0]][:2]
    return [target, similar, groups.index(sizes[1])]

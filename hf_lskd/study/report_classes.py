"""The classes that a study's models get right most and least often: accuracies of teacher and student side by side."""

import json
from collections.abc import Mapping

import numpy as np

from hf_lskd.study.report_folder import Key, StudyFolder
from hf_lskd.study.report_numbers import Scores, ends
from hf_lskd.study.report_tables import Table
from hf_lskd.study.report_words import number

SHOWN = 5  # best classes, and as many worst


def class_table(scores: Scores) -> Table | None:
    """The five best and worst classes by the mean of the columns: each α's teacher, and the student at lowest and highest T.

    Of the first setting, means over seeds. None for translation, and where predictions were not kept or a class is unseen by all.
    """
    settings = scores.settings()
    if scores.metric != "top1" or not settings:
        return None
    span = ends(scores, settings[0]) or scores.temperatures(settings[0])[:1]
    keys: dict[str, Key] = {}
    for alpha in scores.alphas(settings[0]):
        keys[f"teacher, α = {alpha:g}"] = Key(None, alpha, None)
        keys |= {f"α = {alpha:g}, T = {t:g}": Key(settings[0], alpha, t) for t in span}
    known = {name: found for name, key in keys.items() if (found := _accuracies(scores, key)) is not None}
    if len({len(found) for found in known.values()}) != 1:
        return None
    table = np.array(list(known.values()))
    means = table.mean(axis=0)
    order = [int(i) for i in np.argsort(-means, kind="stable") if np.isfinite(means[i])]
    if len(order) < 2:
        return None
    best, worst = order[:SHOWN], order[max(SHOWN, len(order) - SHOWN) :]
    names = class_names(scores.folder)
    rows = [[names.get(i, f"class {i}"), *(number(value, 0) for value in table[:, i])] for i in (*best, *worst)]
    note = (
        f"The {len(best)} best and {len(worst)} worst of {len(order)} classes by the mean of the columns; percent of the class’s test "
        "examples, mean over seeds. Picking the extremes of many classes makes them look further apart than they are."
    )
    return Table("Accuracy by class, %", ["class", *known], rows, note=note)


def _accuracies(scores: Scores, key: Key) -> np.ndarray | None:
    """Accuracy of each class in percent `[C]`, mean over seeds; None where a seed's predictions were not kept."""
    from hf_lskd.analysis import per_class_accuracy

    found = [scores.predictions(cell.name) for _, cell in sorted(scores.cells.get(key, {}).items())]
    known = [pair for pair in found if pair is not None]
    if not known or len(known) < len(found):
        return None
    classes = 1 + max(int(max(labels.max(), predicted.max())) for labels, predicted in known)
    count = max(classes, len(class_names(scores.folder)))
    return np.mean([per_class_accuracy(predicted, labels, count) for labels, predicted in known], axis=0)


def class_names(folder: StudyFolder) -> Mapping[int, str]:
    """Names by class number, from the configuration saved with a finished model; empty where none is kept."""
    for cell in folder.teachers + folder.students:
        path = folder.path / "cells" / cell.name / "model" / "config.json"
        if path.is_file():
            try:
                config = json.loads(path.read_text(encoding="utf-8"))
                if names := config.get("label_names"):
                    return {i: str(name) for i, name in enumerate(names)}
                return {int(i): str(name) for i, name in (config.get("id2label") or {}).items()}
            except (ValueError, AttributeError, TypeError):
                return {}
    return {}

"""A study's tables from its cells' files: results.csv, eta.csv, eta_chance.csv, projections.json."""

import csv
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations, permutations, product
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from hf_lskd.analysis.diffusion import eta_table
from hf_lskd.analysis.semantics import SimilarSets, sets_signature
from hf_lskd.analysis.separation import class_geometry
from hf_lskd.analysis.statistics import ClassStatistics
from hf_lskd.errors import InputError
from hf_lskd.recipe import Recipe
from hf_lskd.record import CELLS, RESULTS, STATISTICS
from hf_lskd.study.classes import sets_of_study
from hf_lskd.study.grid import CURVE
from hf_lskd.study.projections import PROJECTIONS, write_projections
from hf_lskd.tasks.task import SPLITS, Task

logger = logging.getLogger(__name__)

ETA = "eta.csv"
CHANCE = "eta_chance.csv"

RESULT_FIELDS = (
    "name", "role", "student", "label_smoothing", "temperature", "kd_weight", "kd_loss_scale", "kd_loss_scale_value",
    "scale_student", "student_label_smoothing", "kd_top_k", "seed", "status",
    "top1", "top5", "ece", "nll", "train_top1", "best_top1", "best_epoch", "agreement",
    "bleu", "chrf", "bleu_tok_lc", "length_ratio", "repetition_rate", "cut_rate", "token_accuracy", "train_nll", "best_nll",
    "target_gradient", "target_entropy", "tightness", "separation",
)  # fmt: skip
ETA_FIELDS = (
    *CURVE,
    "seed",
    "T1",
    "T2",
    "split",
    "target",
    "eta_similar",
    "eta_dissimilar",
    "systematic",
    "reference",
    "sets",
)
GRID_FIELDS = (*CURVE, "temperature", "T1", "T2")  # they name cells, so they are never rounded

Row = dict[str, Any]


def write_all(
    folder: Path,
    recipe: Recipe,
    task: Task,
    records: Sequence[Mapping[str, Any]],
    sets: Mapping[int, SimilarSets] | None = None,
) -> None:
    """Every table that the recipe asks for and the study's finished cells allow; each file is replaced whole, others removed."""
    done = [record for record in records if record["status"] == "complete"]
    sets = sets_if_any(folder, recipe, task, done) if sets is None else sets
    rows = [{**result_row(record), **geometry(folder, record, sets)} for record in records]
    write_csv(folder / RESULTS, RESULT_FIELDS, rows)
    if sets is not None and recipe.eta is not None:
        write_eta(folder, done, sets, task.class_names, recipe.eta.reference)
    else:
        (folder / ETA).unlink(missing_ok=True)
        (folder / CHANCE).unlink(missing_ok=True)
    choosable = task.groups is not None or sets or (recipe.projection and recipe.projection.classes != "auto")
    if recipe.projection is not None and done and choosable:
        write_projections(folder, recipe, task, done, sets=sets)
    else:
        (folder / PROJECTIONS).unlink(missing_ok=True)


def sets_if_any(
    folder: Path, recipe: Recipe, task: Task, done: Sequence[Mapping[str, Any]]
) -> Mapping[int, SimilarSets] | None:
    """S1 and S2 of the study; None, with a warning, where its teacher cannot say them: that must not cost the other tables."""
    try:
        return sets_of_study(folder, recipe, task, done)
    except InputError as error:
        logger.warning("no η and no automatic projection: %s", error)
        return None


def write_eta(
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    sets: Mapping[int, SimilarSets],
    class_names: Sequence[str],
    reference: str,
) -> None:
    """eta.csv (each temperature pair of each column) and eta_chance.csv (two seeds of one cell)."""
    students = [record for record in records if record["role"] == "student"]
    signature = sets_signature(sets)
    means = lru_cache(maxsize=32)(lambda name: centroids(folder, name))  # a study's may not fit in memory

    def rows(pairs: Iterable[tuple[Any, Any, Any]]) -> Iterable[Row]:
        for (low, high, seed), split in product(pairs, SPLITS):
            try:
                table = eta_table(
                    means(low["name"])[split], means(high["name"])[split], sets, reference, class_names=class_names
                )
            except InputError as error:  # a collapsed model must not cost the others their tables
                logger.warning("eta.csv leaves out %s to %s, %s: %s", low["name"], high["name"], split, error)
                continue
            pair = {"seed": seed, "T1": low["temperature"], "T2": high["temperature"], "split": split}
            for found in table:
                yield {
                    **{key: low[key] for key in CURVE},
                    **pair,
                    "target": class_names[found.target],
                    "eta_similar": found.similar,
                    "eta_dissimilar": found.dissimilar,
                    "systematic": found.systematic,
                    "reference": reference,
                    "sets": signature,
                }

    write_csv(folder / ETA, ETA_FIELDS, rows(temperature_pairs(students)))
    write_csv(folder / CHANCE, ETA_FIELDS, rows(seed_pairs(students)))


def temperature_pairs(students: Sequence[Mapping[str, Any]]) -> Iterable[tuple[Any, Any, Any]]:
    for column in grouped(students, (*CURVE, "seed")):
        for low, high in combinations(sorted(column, key=lambda record: record["temperature"]), 2):
            yield low, high, low["seed"]


def seed_pairs(students: Sequence[Mapping[str, Any]]) -> Iterable[tuple[Any, Any, Any]]:
    """Both orders of two seeds: neither is the low one, and one order alone would make the chance level depend on it."""
    for cell in grouped(students, (*CURVE, "temperature")):
        for low, high in permutations(sorted(cell, key=lambda record: record["seed"]), 2):
            yield low, high, f"{low['seed']}|{high['seed']}"


def grouped(records: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[list[Mapping[str, Any]]]:
    groups: dict[tuple, list] = defaultdict(list)
    for record in records:
        groups[tuple(record[key] for key in keys)].append(record)
    return list(groups.values())


def geometry(folder: Path, record: Mapping[str, Any], sets: Mapping[int, SimilarSets] | None) -> Row:
    """Tightness and separation of a cell's training classes under the study's present S1 and S2; empty where they coincide."""
    if record["status"] != "complete":
        return {}
    tensors = load_file(folder / CELLS / record["name"] / STATISTICS)
    try:
        return dict(class_geometry(ClassStatistics.from_tensors(tensors, "train."), sets))
    except InputError:  # the model failed to learn, not the cell
        return {}


def centroids(folder: Path, name: str) -> dict[str, Tensor]:
    """`[C, D]` class means of a cell, per split."""
    tensors = load_file(folder / CELLS / name / STATISTICS)
    return {split: ClassStatistics.from_tensors(tensors, f"{split}.").mean for split in SPLITS}


def result_row(record: Mapping[str, Any]) -> Row:
    """One cell as a row of results.csv: nothing of it depends on when or how often the study was interrupted."""
    best = record["best"] or {}
    return {
        **{key: record.get(key) for key in RESULT_FIELDS},
        **record["metrics"],
        **{f"best_{key}": value for key, value in best.items()},
    }


def write_csv(path: Path, fields: Sequence[str], rows: Iterable[Row]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(fields)
        writer.writerows([[shown(row.get(key), key in GRID_FIELDS) for key in fields] for row in rows])
    os.replace(temporary, path)


def shown(value: Any, in_full: bool = False) -> str:
    """A value as the tables write it: nothing for None, true or false, floats to eight significant digits or in full."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not in_full:
        return str(float(f"{value:.8g}"))
    return "" if value is None else str(value)

"""A study's folder read back into typed rows: the only reader of these files on the report's side."""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hf_lskd.errors import InputError
from hf_lskd.record import RESULTS, TARGETS, TRANSLATIONS, target_point

METRICS = (
    *("top1", "top5", "ece", "nll", "train_top1", "best_top1", "best_epoch", "agreement"),
    *(
        "bleu",
        "chrf",
        "bleu_tok_lc",
        "length_ratio",
        "repetition_rate",
        "cut_rate",
        "token_accuracy",
        "train_nll",
        "best_nll",
    ),
    *("tightness", "separation", "target_gradient", "target_entropy", "kd_loss_scale_value"),
)


@dataclass(frozen=True)
class Setting:
    """All that tells two students of a study apart, except α, T and the seed."""

    student: str
    kd_weight: float = 1.0
    kd_loss_scale: float | str = 1.0
    scale_student: bool = True
    student_label_smoothing: float = 0.0
    kd_top_k: int | None = None

    @property
    def plain(self) -> bool:
        """Whether the loss is T²·KL alone, both sides divided by T, over all classes: the paper's for images."""
        return self == Setting(self.student)


@dataclass(frozen=True)
class Cell:
    """One row of results.csv. `setting` and `temperature` are None for a teacher; metrics leave out what is empty."""

    name: str
    setting: Setting | None
    alpha: float
    temperature: float | None
    seed: int
    complete: bool
    metrics: Mapping[str, float]

    @property
    def key(self) -> "Key":
        """What the seeds of a cell have in common."""
        return Key(self.setting, self.alpha, self.temperature)


@dataclass(frozen=True)
class Key:
    """A cell without its seed; `setting` and `temperature` are None for a teacher."""

    setting: Setting | None
    alpha: float
    temperature: float | None


@dataclass(frozen=True)
class Eta:
    """One row of eta.csv or eta_chance.csv; `seed` is "0", or "0|1" where two seeds of one cell are compared."""

    setting: Setting
    alpha: float
    seed: str
    low: float
    high: float
    split: str
    target: str
    similar: float
    dissimilar: float
    systematic: bool
    reference: str
    sets: str


@dataclass(frozen=True)
class Line:
    """One held-out sentence pair and what a model made of it; `score` is the model's own, None where it gave none."""

    source: str
    target: str
    translation: str
    score: float | None = None


@dataclass(frozen=True)
class StudyFolder:
    """The whole study; files that a study may lack (η, projections) are empty here."""

    path: Path
    recipe: Mapping[str, Any]
    cells: tuple[Cell, ...]
    records: Mapping[str, Mapping[str, Any]]
    eta: tuple[Eta, ...] = ()
    chance: tuple[Eta, ...] = ()
    projections: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The study's name, from its recipe or else its folder."""
        return str(self.recipe.get("name") or self.path.resolve().name)

    @cached_property
    def students(self) -> tuple[Cell, ...]:
        """Finished students, in the order of results.csv."""
        return tuple(c for c in self.cells if c.complete and c.setting)

    @cached_property
    def teachers(self) -> tuple[Cell, ...]:
        """Finished teachers, in the order of results.csv."""
        return tuple(c for c in self.cells if c.complete and not c.setting)

    def predictions(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """(label, prediction) of the validation examples in order, int64 `[N]` each; None where they were not kept."""
        path = self.path / "cells" / name / "predictions.safetensors"
        if not path.is_file():
            return None
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            tensors = load_file(path)
            return tensors["label"], tensors["prediction"]
        except (SafetensorError, KeyError, OSError) as error:
            raise InputError(f"{path}: {error}", "safetensors with label and prediction", _AGAIN) from error

    def gradient(self, teacher: str, temperature: float | None, top_k: int | None) -> float | None:
        """g of a teacher's targets, as it was measured beside the teacher; None where it was not, and for an ensemble's member,
        whose students learn from something else."""
        path = self.path / "cells" / teacher / TARGETS
        if temperature is None or not path.is_file() or (self.recipe.get("teacher") or {}).get("ensemble"):
            return None
        found = _json(path).get(target_point(temperature, top_k)) or {}
        return found.get("gradient")

    def translations(self, name: str) -> list[Line] | None:
        """A cell's translations of the held-out pairs, in order; None where they were not kept."""
        path = self.path / "cells" / name / TRANSLATIONS
        if not path.is_file():
            return None
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines() would part text at U+2028
        return [_translation(path, number, line) for number, line in enumerate(lines, start=1) if line]

    @cached_property
    def translation(self) -> Mapping[str, Any]:
        """How translations were made and scored, as the first finished cell's record says; empty for other tasks."""
        for cell in self.students + self.teachers:
            if found := self.records.get(cell.name, {}).get("translation"):
                return found
        return {}

    @property
    def translates(self) -> bool:
        """Whether this is a study of translation."""
        return self.recipe.get("task") == "translation"


_AGAIN = "Delete the damaged cell's folder and run the study again: only what is missing is done."


def read_study(folder: Path) -> StudyFolder:
    """Read study.json, results.csv, the records and, where present, eta.csv, eta_chance.csv and projections.json.

    Raises InputError naming the file for a folder that is no study, damaged JSON, and a table without a needed column.
    """
    results = folder / RESULTS
    if not results.is_file():
        raise InputError(
            f"{folder} has no {RESULTS}",
            "the folder of a study (study.json, results.csv, cells/)",
            "Make one with `hf-lskd study RECIPE --output-dir DIR`.",
        )
    recipe = folder / "study.json"
    projections = folder / "projections.json"
    cells = tuple(_read_table(results, _cell))
    records = {cell.name: folder / "cells" / cell.name / "record.json" for cell in cells}
    return StudyFolder(
        folder,
        _json(recipe) if recipe.is_file() else {},
        cells,
        {name: _json(path) for name, path in records.items() if path.is_file()},
        tuple(_read_table(folder / "eta.csv", _eta)),
        tuple(_read_table(folder / "eta_chance.csv", _eta)),
        _json(projections) if projections.is_file() else {},
    )


def distinct(values: Iterable[Any]) -> list[Any]:
    """The values without repetitions, in the order of first appearance."""
    return list(dict.fromkeys(values))


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}", "readable JSON", _AGAIN) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}", "a JSON object", _AGAIN)
    return content


def _translation(path: Path, number: int, line: str) -> Line:
    try:
        row = json.loads(line)
        score = row.get("score")
        score = None if score is None else float(score)
        return Line(str(row["source"]), str(row["target"]), str(row["translation"]), score)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}:{number}: {error}", "source, target and translation as JSON", _AGAIN) from error


def _read_table(path: Path, parse: Any) -> Iterator[Any]:
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8") as stream:
        for line, row in enumerate(csv.DictReader(stream), start=2):
            try:
                yield parse(row)
            except KeyError as error:
                raise InputError(f"{path} has no column {error}", "a table that the study wrote", _AGAIN) from error
            except (TypeError, ValueError) as error:
                raise InputError(f"{path}:{line}: {error}", "a row that the study wrote", _AGAIN) from error


def _cell(row: Mapping[str, str]) -> Cell:
    student = row["role"] == "student"
    metrics = {name: _number(row.get(name)) for name in METRICS}
    return Cell(
        row["name"],
        _setting(row) if student else None,
        float(row["label_smoothing"]),
        float(row["temperature"]) if student else None,
        int(row["seed"]),
        row.get("status", "complete") == "complete",
        {name: value for name, value in metrics.items() if value is not None},
    )


def _setting(row: Mapping[str, str]) -> Setting:
    scale, top_k = row["kd_loss_scale"], row.get("kd_top_k")
    return Setting(
        row["student"],
        float(row["kd_weight"]),
        scale if scale == "equalised" else float(scale),
        _boolean(row["scale_student"]),
        float(row["student_label_smoothing"]),
        int(float(top_k)) if top_k else None,
    )


def _eta(row: Mapping[str, str]) -> Eta:
    return Eta(
        _setting(row),
        float(row["label_smoothing"]),
        row["seed"],
        float(row["T1"]),
        float(row["T2"]),
        row["split"],
        row["target"],
        float(row["eta_similar"]),
        float(row["eta_dissimilar"]),
        _boolean(row["systematic"]),
        row.get("reference") or "sets",
        row.get("sets") or "",
    )


def _number(text: str | None) -> float | None:
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() == "true"

"""A study's folder as the runner leaves it, made from drawn numbers that resemble the demo's: for tests of the report.

`make_study(path, seeds=3, loss_scales=(1.0, "equalised"))` writes it; `python -m tests.study_folder DIR` does so too, and
writes its report.
"""

import csv
import hashlib
import json
import sys
import unicodedata
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from hf_lskd.record import Cell

COLUMN = [
    "student",
    "label_smoothing",
    "kd_weight",
    "kd_loss_scale",
    "scale_student",
    "student_label_smoothing",
    "kd_top_k",
]
RESULTS = [
    *("name", "role", "student", "label_smoothing", "temperature", "kd_weight", "kd_loss_scale", "kd_loss_scale_value"),
    *(
        "scale_student",
        "student_label_smoothing",
        "kd_top_k",
        "seed",
        "status",
        "top1",
        "top5",
        "ece",
        "nll",
        "train_top1",
    ),
    *("best_top1", "best_epoch", "agreement"),
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
    *("target_gradient", "target_entropy", "tightness", "separation"),
]
ETA = [
    *COLUMN,
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
]
AXIS = [1.0, 2.0, 3.0, 64.0]  # temperatures between which the numbers below are read off
TOP1 = {  # design/measured.md, "The demo"; paper/gradient-scale.md for the equalised rows
    (0.0, 1.0): [87.3, 89.1, 88.9, 87.1],
    (0.1, 1.0): [87.2, 87.4, 85.7, 79.8],
    (0.0, "equalised"): [87.4, 88.9, 89.0, 87.4],
    (0.1, "equalised"): [88.2, 89.0, 89.2, 88.2],
}
GRADIENT = {0.0: [0.96, 1.61, 1.61, 0.47], 0.1: [0.90, 0.39, 0.20, 0.053]}
ENTROPY = {0.0: [0.12, 0.9, 2.4, 4.94], 0.1: [0.75, 3.9, 4.6, 4.95]}
ETA_MEANS = {  # (S1, S2) and their spread over targets
    0.0: [(0.0, 0.0), (2.5, -0.4), (0.4, 0.3), (-3.7, 1.3)],
    0.1: [(0.0, 0.0), (-4.0, 1.4), (-6.1, 2.0), (-10.3, 3.2)],
}


@dataclass
class Plan:
    """What a drawn study is to hold; the fields are `make_study`'s keywords."""

    seeds: int = 3
    task: str = "image_classification"
    alphas: Sequence[float] = (0.0, 0.1)
    temperatures: Sequence[float] = (1.0, 2.0, 3.0, 64.0)
    students: Sequence[str] = ("student",)
    loss_scales: Sequence[float | str] = (1.0,)
    kd_weights: Sequence[float] = (1.0,)
    kd_top_k: int | None = None
    failed: Sequence[str] = ()
    eta: bool = True
    predictions: bool = True
    projections: bool = True
    name: str = "glyphs"
    optim: str = "sgd"
    error: str = "CUDA out of memory. Tried to allocate 2.00 GiB."
    class_names: Sequence[str] = ()
    examples: int = 4512
    targets: int | None = None
    noise: float = 0.35  # points, from seed to seed
    shift: Mapping[tuple[float, float], float] = field(default_factory=dict)  # (α, T) -> points added
    pairs: int = 60  # held-out sentences of a translation study
    wrong: Mapping[tuple[float, float], float] = field(default_factory=dict)  # (α, T) -> share of words made wrong
    words: Sequence[str] = ()  # of the drawn sentences, instead of plain ones
    translations: bool = True


def make_study(path: Path, **wanted: Any) -> Path:
    """Write a study's folder (without a report) and return it. Keywords: the fields of `Plan`."""
    plan = Plan(**wanted)
    plan.class_names = plan.class_names or letters()
    path.mkdir(parents=True, exist_ok=True)
    recipe = resolved_recipe(plan)
    dump(path / "study.json", recipe)
    records = [make_cell(path, plan, recipe, cell) for cell in cells(plan)]
    write_csv(path / "results.csv", RESULTS, [result_row(r) for r in records])
    done = [r for r in records if r["status"] == "complete" and r["role"] == "student"]
    if plan.eta:
        write_csv(path / "eta.csv", ETA, eta_rows(plan, done))
        write_csv(path / "eta_chance.csv", ETA, chance_rows(plan, done))
    if plan.projections and done:
        dump(path / "projections.json", projections(plan, done))
    return path


def letters() -> list[str]:
    """The 141 letters of the demo: those whose base letter has at least five of them."""
    everything = [chr(c) for c in [*range(65, 91), *range(97, 123), *range(0xC0, 0x17F)] if chr(c).isalpha()]
    base = {c: unicodedata.normalize("NFD", c)[0] for c in everything}
    return [c for c in everything if list(base.values()).count(base[c]) >= 5]


def cells(plan: Plan) -> list[Cell]:
    found = []
    for seed, alpha in product(range(plan.seeds), plan.alphas):
        found.append(Cell("teacher", alpha, seed))
        grid = product(plan.students, plan.kd_weights, plan.loss_scales, plan.temperatures)
        found += [Cell("student", alpha, seed, s, t, w, scale, True, 0.0, plan.kd_top_k) for s, w, scale, t in grid]
    return found


def resolved_recipe(plan: Plan) -> dict[str, Any]:
    model = {"model": "test_byobnet", "pretrained": False, "model_args": {}, "training": {}}
    return {
        "name": plan.name,
        "task": plan.task,
        "data": {"source": "glyphs", "fonts": "matplotlib", "size": 20, "variants": 7, "seed": 0}
        if plan.task == "image_classification"
        else {"source": "cldr", "source_lang": "en", "target_lang": "de"},
        "training": {
            "per_device_train_batch_size": 128,
            "learning_rate": 0.2,
            "optim": plan.optim,
            "num_train_epochs": 5,
        },
        "teacher": {**model, "training": {"num_train_epochs": 6}, "path": None},
        "students": [{"name": name, **model} for name in plan.students],
        "grid": {
            "label_smoothing": list(plan.alphas),
            "temperature": list(plan.temperatures),
            "seed": list(range(plan.seeds)),
            "kd_weight": list(plan.kd_weights),
            "kd_loss_scale": list(plan.loss_scales),
        },
        "eta": {"targets": "all", "min_similar": 4, "dissimilar": 20, "seed": 0, "reference": "sets"},
        "projection": {"classes": "auto"},
        "switches": {"ema": None, "sync_batchnorm": False, "channels_last": True},
    }


def draw(*key: object) -> np.random.Generator:
    """A generator that depends on the key only, so that a cell is the same in every study."""
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def between(table: Sequence[float], temperature: float) -> float:
    return float(np.interp(np.log(temperature), np.log(AXIS), table))


def near(alpha: float, table: Mapping[float, Any]) -> Any:
    return table[0.1 if alpha else 0.0]


def make_cell(path: Path, plan: Plan, recipe: dict[str, Any], cell: Cell) -> dict[str, Any]:
    folder = path / "cells" / cell.name
    folder.mkdir(parents=True)
    record = {
        "format": 1,
        "name": cell.name,
        "status": "complete",
        "error": None,
        **cell.to_dict(),
        "signature": hashlib.sha256(cell.name.encode()).hexdigest(),
        "recipe": recipe,
        "study": {"name": plan.name},
        "versions": {
            "python": "3.11.2",
            "hf_lskd": "0.1.0",
            "torch": "2.14.1",
            "transformers": "5.23.0",
            "timm": "1.0.31",
        },
        "metrics": {},
        "curve": [],
        "best": None,
        "teacher": None,
    }
    if cell.name in plan.failed:
        record |= {"status": "failed", "signature": "", "error": {"type": "OutOfMemoryError", "message": plan.error}}
    else:
        record |= measured(folder, plan, cell)
        if plan.task == "translation":
            record |= translated(folder, plan, cell, record)
    dump(folder / "record.json", record)
    return record


def measured(folder: Path, plan: Plan, cell: Cell) -> dict[str, Any]:
    labels = draw("labels").integers(len(plan.class_names), size=plan.examples)
    difficulty = draw("difficulty").uniform(size=plan.examples)
    wanted = wanted_top1(plan, cell)
    rng = draw("cell", cell.name)
    right = difficulty + 0.05 * rng.normal(size=plan.examples) < wanted / 100
    prediction = np.where(right, labels, (labels + 1) % len(plan.class_names))
    if plan.predictions:
        confidence = np.clip(0.9 - 0.3 * difficulty, 0, 1).astype(np.float32)
        arrays = {"label": labels, "prediction": prediction, "confidence": confidence, "nll": -np.log(confidence)}
        save_file(arrays, folder / "predictions.safetensors")
    top1 = 100 * float(right.mean())
    temperature = cell.temperature or 1.0
    metrics = {
        "top1": top1,
        "top5": min(99.9, top1 + 9.5),
        "ece": 2.0 + 30 * cell.label_smoothing + 5 * np.log(temperature) + 0.2 * rng.normal(),
        "nll": 0.45 + 0.02 * (90 - top1) + 0.25 * np.log(temperature) + 0.01 * rng.normal(),
        "train_top1": min(99.9, top1 + 6.0),
    }
    student = cell.role == "student"
    g = between(near(cell.label_smoothing, GRADIENT), temperature) if student else None
    return {
        "metrics": metrics,
        "best": {"epoch": 4.0, "top1": top1 + 0.2},
        "curve": curve(cell, top1, rng),
        "kd_loss_scale_value": None
        if g is None
        else (1 / g if cell.kd_loss_scale == "equalised" else cell.kd_loss_scale),
        "target_gradient": g,
        "target_entropy": between(near(cell.label_smoothing, ENTROPY), temperature) if student else None,
        "class_geometry": {
            "tightness": 0.52 - 1.4 * cell.label_smoothing + 0.01 * rng.normal(),
            "separation": 0.62 + 0.9 * cell.label_smoothing + 0.01 * rng.normal(),
        },
        "teacher": {"name": cell.teacher.name, "record_sha256": "0" * 64} if student else None,
        "hardware": {"cpu": "Intel(R) Xeon(R) Processor @ 2.20GHz", "gpu": None, "threads": 2, "world_size": 1},
        "durations": {"train": 14.2 + rng.uniform(), "evaluate": 1.3, "total": 15.6 + rng.uniform()},
        "peak_memory_mb": 812.5,
    }


WORDS = (
    *(
        "das",
        "der",
        "ein",
        "ist",
        "rot",
        "alt",
        "Haus",
        "Tag",
        "Baum",
        "Weg",
        "Stadt",
        "Fluss",
        "geht",
        "steht",
        "liegt",
    ),
    *("und", "aber", "nie", "oft", "dort", "hier"),
)


def held_out(plan: Plan) -> list[tuple[str, str]]:
    """(source, reference) of the drawn sentences: a source shares its first word with the reference, and nothing else."""
    rng, words = draw("pairs"), list(plan.words or WORDS)
    references = [" ".join(rng.choice(words, size=rng.integers(6, 14))) + "." for _ in range(plan.pairs)]
    return [(f"{r.split()[0]} " + " ".join(f"w{i}" for i in range(len(r.split()) - 1)), r) for r in references]


def garbled(reference: str, wrong: float, rng: np.random.Generator) -> str:
    """The reference with a share of its words replaced."""
    return " ".join(
        "xx" if draw < wrong else word for word, draw in zip(reference.split(), rng.random(99), strict=False)
    )


def translated(folder: Path, plan: Plan, cell: Cell, record: Mapping[str, Any]) -> dict[str, Any]:
    """What a cell of translation has: made-up translations with the scores that hf_lskd.metrics gives them."""
    from hf_lskd.metrics import score_translations

    pairs = held_out(plan)
    usual = (
        0.08 if cell.role == "teacher" else 0.1 + (0.05 + cell.label_smoothing) * float(np.log(cell.temperature or 1))
    )
    wrong = plan.wrong.get((cell.label_smoothing, cell.temperature or 0.0), usual)
    rng = draw("translation", cell.name)
    made = [garbled(reference, wrong, rng) for _, reference in pairs]
    if plan.translations:
        lines = [
            {"source": s, "target": t, "translation": text, "score": -0.5}
            for (s, t), text in zip(pairs, made, strict=True)
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / "translations.jsonl").write_text(text, encoding="utf-8")
    sources, references = ([pair[i] for pair in pairs] for i in (0, 1))
    score = score_translations(made, references, target_lang="de")
    copy = score_translations(sources, references, target_lang="de")
    names = ("bleu", "chrf", "bleu_tok_lc")
    points = [p | {"nll": 0.4 + wrong} if "top1" in p else p for p in record["curve"]]
    metrics = {name: getattr(score, name) for name in (*names, "length_ratio", "repetition_rate")}
    learnt = {"nll": 0.3 + 4 * wrong, "token_accuracy": 100 * (1 - wrong), "train_nll": 0.2 + 4 * wrong}
    return {
        "metrics": {**metrics, **learnt, **({} if cell.role == "teacher" else {"agreement": 1 - wrong})},
        "best": {"epoch": 4.0, "nll": 0.3 + 3.9 * wrong},
        "curve": [{k: v for k, v in p.items() if k != "top1"} for p in points],
        "translation": {
            **{f"{name}_signature": getattr(score, f"{name}_signature") for name in names},
            **{"beams": 4, "copy": {"bleu": copy.bleu, "chrf": copy.chrf}, "split": "test", "pairs": len(pairs)},
            **{"source_lang": "en", "target_lang": "de", "data": {}},
        },
    }


def wanted_top1(plan: Plan, cell: Cell) -> float:
    noise = plan.noise * (draw("seed", cell.seed).normal() + draw("noise", cell.name).normal())
    if cell.role == "teacher":
        return 89.1 + 6 * cell.label_smoothing + noise
    scale = cell.kd_loss_scale if cell.kd_loss_scale == "equalised" else 1.0
    plain = between(TOP1[0.0, scale], cell.temperature)
    smooth = between(TOP1[0.1, scale], cell.temperature)
    blend = min(cell.label_smoothing / 0.1, 1.5)
    shift = plan.shift.get((cell.label_smoothing, cell.temperature), 0.0) - 4.0 * plan.students.index(cell.student)
    return plain + blend * (smooth - plain) + shift + noise


def curve(cell: Cell, top1: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = []
    for step in range(50, 531, 50):
        epoch = step / 106
        loss = 0.1 + 3.5 * np.exp(-epoch) * (1 + 0.3 * np.log(cell.temperature or 1)) + 0.02 * abs(rng.normal())
        point = {"epoch": epoch, "step": step, "loss": loss, "learning_rate": 0.2 * (1 - epoch / 5), "split": "train"}
        points.append(
            point
            | (
                {"soft_loss": loss, "agreement": 0.85 - 0.5 * np.exp(-epoch) + 0.01 * rng.normal()}
                if cell.temperature
                else {}
            )
        )
    for epoch in range(1, 6):
        value = top1 - 60 * np.exp(-1.1 * epoch) + 60 * np.exp(-5.5)
        points.append(
            {"epoch": float(epoch), "step": 106 * epoch, "top1": value, "nll": 0.5, "loss": 0.5, "split": "validation"}
        )
    return sorted(points, key=lambda p: p["step"])


def result_row(record: Mapping[str, Any]) -> dict[str, Any]:
    best = record["best"] or {}
    agreement = [p["agreement"] for p in record["curve"] if "agreement" in p]
    return {
        **{key: record.get(key) for key in RESULTS},
        **record["metrics"],
        **record.get("class_geometry", {}),
        **{f"best_{key}": value for key, value in best.items()},
        "agreement": record["metrics"].get("agreement", agreement[-1] if agreement else None),
    }


def eta_rows(plan: Plan, records: Sequence[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    for low in records:
        for high in records:
            same = all(low[k] == high[k] for k in [*COLUMN, "seed"])
            if same and low["temperature"] < high["temperature"]:
                yield from eta_pair(plan, low, high, str(low["seed"]), 1.0)


def chance_rows(plan: Plan, records: Sequence[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    for low, high in combinations(records, 2):
        if all(low[k] == high[k] for k in [*COLUMN, "temperature"]):
            yield from eta_pair(plan, low, high, f"{low['seed']}|{high['seed']}", 0.0)


def eta_pair(
    plan: Plan, low: Mapping[str, Any], high: Mapping[str, Any], seed: str, effect: float
) -> Iterable[dict[str, Any]]:
    means = near(low["label_smoothing"], ETA_MEANS)
    at = [[between([m[i] for m in means], c["temperature"]) for i in (0, 1)] for c in (low, high)]
    for split, name in product(("train", "validation"), plan.class_names[: plan.targets]):
        own = draw("target", name).normal()
        rng = draw("eta", seed, low["name"], high["temperature"], split, name)
        similar = effect * (at[1][0] - at[0][0]) + 2.0 * own + 1.2 * rng.normal()
        dissimilar = effect * (at[1][1] - at[0][1]) - 0.7 * own + 0.4 * rng.normal()
        yield {
            **{key: low[key] for key in COLUMN},
            **{"seed": seed, "T1": low["temperature"], "T2": high["temperature"], "split": split, "target": name},
            **{"eta_similar": similar, "eta_dissimilar": dissimilar, "systematic": similar < 0 < dissimilar},
            **{"reference": "sets", "sets": "min_similar=4,dissimilar=20,seed=0,hash=5d1c"},
        }


def projections(plan: Plan, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = []
    for key in dict.fromkeys(tuple(r[k] for k in COLUMN) for r in records if r["seed"] == 0):
        students = [r for r in records if r["seed"] == 0 and tuple(r[k] for k in COLUMN) == key]
        panels = [
            panel(t, split, students[0]["label_smoothing"])
            for t in [None, *(r["temperature"] for r in students)]
            for split in ("train", "validation")
        ]
        rows.append({**dict(zip(COLUMN, key, strict=True)), "seed": 0, "panels": panels})
    names = plan.class_names
    chosen = [{"index": i, "name": names[i]} for i in (0, 1, min(60, len(names) - 1))]
    return {"classes": chosen, "rows": rows, "note": "one basis a model, one PCA a row"}


def panel(temperature: float | None, split: str, alpha: float) -> dict[str, Any]:
    rng = draw("projection", temperature, split, alpha)
    spread = 0.55 - 3.5 * alpha * (temperature is None)
    apart = 2.2 + 6 * alpha - alpha * 12 * np.log(temperature or 1) / np.log(64)
    centres = np.array([[-1.0, apart / 2], [-1.0, -apart / 2], [4.0, 0.0]])
    count = 150 if split == "train" else 50
    labels = np.repeat([0, 1, 2], count)
    points = centres[labels] + spread * rng.normal(size=(3 * count, 2))
    return {
        "temperature": temperature,
        "split": split,
        "points": np.round(points, 4).tolist(),
        "labels": labels.tolist(),
        "centroids": [np.round(points[labels == k].mean(axis=0), 4).tolist() for k in range(3)],
    }


def write_csv(path: Path, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(fields)
        writer.writerows([[shown(row.get(field)) for field in fields] for row in rows])


def shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    return str(round(float(value), 6)) if isinstance(value, float) else str(value)


def dump(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    from hf_lskd.study.report import write_report

    print(write_report(make_study(Path(sys.argv[1]), loss_scales=(1.0, "equalised"))))

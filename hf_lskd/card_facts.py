"""What a model is and how it was trained, as the lines of a card's first table."""

from collections.abc import Mapping
from typing import Any

from hf_lskd.card_tables import number
from hf_lskd.record import exact

Record = Mapping[str, Any]


def extra(record: Record) -> Mapping[str, Any]:
    """What was gathered for the card beyond the cell."""
    return record.get("card") or {}


def model_spec(record: Record) -> Mapping[str, Any]:
    """The recipe's words on the model of this cell; empty where there is no recipe."""
    recipe = record.get("recipe") or {}
    if record["role"] == "teacher":
        return recipe.get("teacher") or {}
    return next((s for s in recipe.get("students") or [] if s.get("name") == record.get("student")), {})


def facts(record: Record) -> list[tuple[str, str]]:
    """(name, text) of everything that the record says of the model."""
    values = (extra(record).get("model") or {}).get("values")
    found = [
        ("cell", cell_words(record)),
        ("model", model_words(record)),
        ("values in the weights", f"{values:,}" if values else ""),
        ("begun with", start_words(record)),
        ("teacher's α", plain(record, "label_smoothing")),
        ("temperature T", plain(record, "temperature")),
        ("teacher", teacher_words(record)),
        ("loss", loss(record)),
        ("gradient scale g", measured(record, "target_gradient", 3, "(a full-size gradient is about one)")),
        ("entropy of the targets", measured(record, "target_entropy", 2, "nats")),
        ("seed", plain(record, "seed")),
        ("seed of the data", plain(record, "data_seed") if record.get("data_seed") != record.get("seed") else ""),
    ]
    return [(name, text) for name, text in found if text]


def plain(record: Record, key: str) -> str:
    return "" if record.get(key) is None else exact(record[key])


def measured(record: Record, key: str, digits: int, unit: str) -> str:
    return "" if record.get(key) is None else f"{number(record[key], digits)} {unit}"


def cell_words(record: Record) -> str:
    study = record.get("study")
    return f"`{record['name']}`" + (f" of the study `{study['name']}`" if study else "")


def model_words(record: Record) -> str:
    model = extra(record).get("model") or {}
    kind = f"`{model['architecture']}`" if model.get("architecture") else None
    return " ".join(filter(None, [model.get("class"), kind]))


def start_words(record: Record) -> str:
    start = model_spec(record).get("pretrained")
    if start is None or isinstance(start, str):
        return f"`{start}`" if start else ""
    return "pretrained weights" if start else "random weights"


def teacher_words(record: Record) -> str:
    if record["role"] != "student":
        return ""
    teacher = extra(record).get("teacher") or {}
    named = teacher.get("name") or (record.get("teacher") or {}).get("name")
    kind = teacher.get("architecture") or ((record.get("recipe") or {}).get("teacher") or {}).get("model")
    placed = [one["repo_id"] for one in teacher.get("members") or [teacher] if one.get("repo_id")]
    where = "".join(f", [{repo_id}](https://huggingface.co/{repo_id})" for repo_id in placed)
    mean = f", the mean of their {teacher['of']}" if teacher.get("members") else ""
    return f"`{named or 'unnamed'}`{mean}" + (f" (`{kind}`)" if kind else "") + where


def loss(record: Record) -> str:
    """The loss that the model was trained with, in words (losses.py is its mathematics)."""
    if record["role"] == "teacher":
        return f"cross-entropy with the targets (1 − α)·onehot + α/K, α = {exact(record['label_smoothing'])}"
    weight, soft = record.get("kd_weight"), soft_loss(record)
    own = record.get("student_label_smoothing")
    hard = "cross-entropy with the labels" + (f" smoothed by {exact(own)}" if own else "")
    if weight == 1:
        return f"{soft}; no hard-label term"
    return hard if weight == 0 else f"W·{soft}; plus (1 − W) times the {hard}; W = {exact(weight)}"


def soft_loss(record: Record) -> str:
    divided = "softmax(student)" if record.get("scale_student") is False else "softmax(student/T)"
    text = f"T²·KL(softmax(teacher/T) ‖ {divided}), T = {exact(record['temperature'])}"
    if record.get("kd_top_k"):
        text += f", over the teacher's {exact(record['kd_top_k'])} most probable classes, renormalised"
    scale, factor = record.get("kd_loss_scale"), record.get("kd_loss_scale_value")
    if scale == "equalised":
        return text + ", times 1/g" + ("" if factor is None else f" = {number(factor, 2)}")
    return text if scale in (None, 1.0) else text + f", times {exact(scale)}"

"""Metadata of a card, as the Hub checks it."""

import re
from collections.abc import Callable
from typing import Any

import yaml

LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "bsd-3-clause", "openrail", "other", "unknown"}
PIPELINES = {
    "image-classification",
    "translation",
    "text-classification",
    "image-feature-extraction",
    "text-generation",
}
RELATIONS = {"adapter", "merge", "quantized", "finetune"}
MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def metadata_errors(text: str) -> tuple[list[str], list[str]]:
    """(errors, warnings) of a card's front matter."""
    found = re.match(r"---\r?\n(.*?)\r?\n---(\r?\n|$)", text, flags=re.DOTALL)
    if not found:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        page = yaml.safe_load(found.group(1))
    except yaml.YAMLError as error:
        return [f"invalid YAML: {error}"], []
    if not isinstance(page, dict):
        return ["metadata must be a mapping"], []
    checks: dict[str, Callable[[Any], bool]] = {
        "license": lambda v: v in LICENSES,
        "pipeline_tag": lambda v: v in PIPELINES,
        "library_name": lambda v: isinstance(v, str),
        "base_model": lambda v: all(isinstance(x, str) and MODEL_ID.fullmatch(x) for x in as_list(v)),
        "base_model_relation": lambda v: v in RELATIONS,
        "datasets": lambda v: all(isinstance(x, str) and MODEL_ID.fullmatch(x) for x in as_list(v)),
        "metrics": lambda v: all(isinstance(x, str) for x in as_list(v)),
        "tags": lambda v: isinstance(v, list) and all(isinstance(x, str) for x in v),
        "language": lambda v: all(isinstance(x, str) and re.fullmatch(r"[a-z]{2,3}(-\w+)?", x) for x in as_list(v)),
        "model-index": is_model_index,
    }
    return [f'"{key}" is not valid' for key, good in checks.items() if key in page and not good(page[key])], []


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def is_model_index(value: Any) -> bool:
    """name; results of task.type, dataset.type and dataset.name, and metrics of type and value."""
    try:
        for model in value:
            assert isinstance(model["name"], str)
            assert model["results"]
            for result in model["results"]:
                assert isinstance(result["task"]["type"], str)
                assert isinstance(result["dataset"]["type"], str)
                assert isinstance(result["dataset"]["name"], str)
                assert result["metrics"]
                assert all(
                    isinstance(m["type"], str) and isinstance(m["value"], int | float | str) for m in result["metrics"]
                )
    except (AssertionError, KeyError, TypeError):
        return False
    return True

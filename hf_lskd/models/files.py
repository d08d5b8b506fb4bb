"""What lies in a model's folder besides weights, and how a library's complaint is quoted."""

import json
from pathlib import Path
from typing import Any

from hf_lskd.errors import InputError


def folder_config(folder: Path) -> dict[str, Any]:
    """config.json of a model's folder. Raises InputError when it is missing or broken."""
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"{folder} has no config.json", "a folder written by save_pretrained, or a name")
    try:
        return read_json(file)
    except ValueError as error:
        raise InputError(
            f"{file} cannot be read ({first_line(error)})", "a JSON mapping", "Copy or download it again."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's mapping. Raises ValueError for text that is none."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"a mapping is expected, not {type(found).__name__}")
    return found


def first_line(error: Exception, most: int = 200) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:most]

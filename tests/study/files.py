"""What lies in a study's folder."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Study = Callable[..., int]


def record(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "cells" / name / "record.json").read_text(encoding="utf-8"))


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "cells" / name / "model" / "model.safetensors")


def predictions(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "cells" / name / "predictions.safetensors")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted((folder / "cells").rglob("*"))}

"""What the tests of launchers share: the tiny study's page, the processes at work on a folder, waiting."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hf_lskd.record import read_record
from tests.tiny_study import changed, dump, values, write_images

ROOT = Path(__file__).resolve().parents[1]
CPU_2 = ROOT / "recipes" / "accelerate" / "cpu_2.yaml"


def page(folder: Path, **settings: Any) -> Path:
    """The tiny study's recipe, with other values: `page(folder, training__max_steps=12)`."""
    recipe = changed(values(write_images(folder / "images")), "projection", None)
    for path, value in settings.items():
        recipe = changed(recipe, path.replace("__", "."), value)
    return dump(recipe, folder / "recipe.yaml")


def processes(*words: str, rank: int | None = None) -> list[int]:
    """Process ids of those whose command line has all of these words; of one rank only when it is given."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            said = (place / "cmdline").read_bytes().decode().split("\0")
            told = (place / "environ").read_bytes().decode().split("\0") if rank is not None else []
        except (OSError, UnicodeDecodeError):
            continue
        if all(word in said for word in words) and (rank is None or f"RANK={rank}" in told):
            found.append(int(place.name))
    return [pid for pid in found if pid != os.getpid()]


def until(holds: Callable[[], Any], limit: float = 120.0) -> None:
    deadline = time.monotonic() + limit
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def record_of(study: Path, name: str) -> dict[str, Any]:
    return read_record(study / "cells" / name) or {}


def weights_of(study: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(study / "cells" / name / "model" / "model.safetensors")

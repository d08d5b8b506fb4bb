"""A study whose cells take a fraction of a second: six classes in two groups, a one-layer ViT, four steps."""

import copy
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from hf_lskd.cli import main

CLASSES = ["a", "à", "á", "o", "ò", "ó"]
GROUPS = ["a", "a", "a", "o", "o", "o"]
VIT = {
    "model": "vit_tiny_patch16_224",
    "model_args": {"img_size": 16, "patch_size": 8, "depth": 1, "embed_dim": 16, "num_heads": 2},
}
NAMES = ["teacher-a0-s0", "student-a0-T1-s0", "student-a0-T2-s0"]
NAMES += ["teacher-a0.1-s0", "student-a0.1-T1-s0", "student-a0.1-T2-s0"]


def write_images(folder: Path, train: int = 96, validation: int = 48, seed: int = 0) -> Path:
    """IDX files of 16x16 pictures: a prototype a class, and noise."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.RandomState(seed)
    prototypes = chance.randint(0, 256, (len(CLASSES), 16, 16))
    for name, count in (("train", train), ("t10k", validation)):
        labels = np.arange(count, dtype=np.uint8) % len(CLASSES)
        noisy = prototypes[labels] + chance.randint(-60, 60, (count, 16, 16))
        write_idx(folder / f"{name}-images-idx3-ubyte", noisy.clip(0, 255).astype(np.uint8))
        write_idx(folder / f"{name}-labels-idx1-ubyte", labels)
    return folder


def write_idx(path: Path, array: np.ndarray) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def values(images: Path) -> dict[str, Any]:
    """The recipe: two teachers, four students."""
    return {
        "name": "tiny",
        "data": {"source": "idx", "path": str(images), "class_names": CLASSES, "groups": GROUPS},
        "training": {
            "max_steps": 4,
            "per_device_train_batch_size": 16,
            "learning_rate": 0.01,
            "optim": "adamw_torch",
            "lr_scheduler_type": "constant",
            "dataloader_pin_memory": False,
        },
        "teacher": copy.deepcopy(VIT),
        "students": [{"name": "student", **copy.deepcopy(VIT)}],
        "grid": {"label_smoothing": [0.0, 0.1], "temperature": [1, 2]},
        "eta": {"min_similar": 2, "dissimilar": 3},
        "projection": {"classes": "auto"},
    }


def changed(recipe: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The recipe with one value set: `changed(r, "students.0.model_args.depth", 2)`."""
    recipe = copy.deepcopy(recipe)
    *parents, last = [int(key) if key.isdecimal() else key for key in path.split(".")]
    at: Any = recipe
    for key in parents:
        at = at[key] if isinstance(key, int) else at.setdefault(key, {})
    at[last] = value
    return recipe


def dump(recipe: dict[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    return path


def finished_study(recipe: dict[str, Any], folder: Path) -> Path:
    """The folder of the recipe's study, made in `folder` on one thread, as every test's own study is."""
    torch.set_num_threads(1)
    assert main(["study", str(dump(recipe, folder / "recipe.yaml")), "--output-dir", str(folder / "run")]) == 0
    return folder / "run"


def bytes_of(folder: Path, *names: str) -> dict[str, bytes]:
    names = names or ("results.csv", "eta.csv", "eta_chance.csv", "projections.json")
    return {name: (folder / name).read_bytes() for name in names}


def fork(argv: Sequence[str], stdout: int | None = None, stderr: int | None = None) -> int:
    """Run the command in a process of its own and return its id; it writes to these descriptors (None: nowhere).

    A fork, so that torch need not be imported again.
    """
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null if stdout is None else stdout, 1)
            os.dup2(null if stderr is None else stderr, 2)
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
            os._exit(main(list(argv)))
        finally:
            os._exit(99)
    return child


def run_and_kill(argv: Sequence[str], when: Callable[[], bool], limit: float = 60.0) -> None:
    """Run the command in a process of its own and kill it with SIGKILL the moment `when` holds.

    Fails when the command ends before `when` held.
    """
    status = run_and_signal(argv, when, signal.SIGKILL, limit)
    assert os.WIFSIGNALED(status), "the command ended before it could be killed"


def run_and_signal(argv: Sequence[str], when: Callable[[], bool], what: signal.Signals, limit: float = 60.0) -> int:
    """Run the command in a process of its own, send it a signal the moment `when` holds, and return how it ended (`os.waitpid`)."""
    child = fork(argv)
    deadline = time.monotonic() + limit
    while not when() and time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        assert ended == 0, f"the command ended with status {status} before it could be killed"
        time.sleep(0.0005)
    os.kill(child, what)
    return os.waitpid(child, 0)[1]

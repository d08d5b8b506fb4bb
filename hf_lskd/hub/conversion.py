"""What every conversion shares: a folder that is made whole or not at all, its own check, and `conversion.json`."""

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_lskd.errors import InputError
from hf_lskd.record import follow_umask

FILE = "conversion.json"
SHOWN = 8  # names of weights in a message


@dataclass
class Conversion:
    """What was converted and how it was checked; `checks` are (what, result), `remarks` what the user has to know."""

    kind: str
    source: str
    sha256: dict[str, str]
    architecture: str
    checks: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def lines(self) -> list[str]:
        """What is printed."""
        digests = [f"sha256 of {name}: {digest}" for name, digest in self.sha256.items()]
        checks = [f"{what}: {result}" for what, result in self.checks.items()]
        return [f"{self.source} ({self.kind}): {self.architecture}", *digests, *checks, *self.remarks]


def check_target(target: Path) -> None:
    """Raise InputError where `target` is a file, or a folder with something in it."""
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        what = "is a file" if target.is_file() else "exists and is not empty"
        raise InputError(f"{target} {what}", "a new folder, or an empty one")


@contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` to fill, which takes its place at the end; nothing is left when it was not filled."""
    check_target(target)
    made = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(made, ignore_errors=True)
    try:
        made.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"{target} cannot be made ({error.strerror})", "a folder that this user may write to", "Choose another DIR."
        ) from error
    try:
        yield made
        follow_umask(made)
        if target.is_dir():
            target.rmdir()
        os.replace(made, target)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def check_weights(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str, optional: Collection[str] = ()
) -> str:
    """That `found` holds every weight of `wanted` in its shape and nothing else; in words.

    Raises InputError that lists what is missing, what is unknown, and what has another shape.
    """
    missing = sorted(wanted.keys() - found.keys() - set(optional))
    unknown = sorted(found.keys() - wanted.keys())
    shapes = [
        f"{key} {list(found[key].shape)} where {list(wanted[key].shape)} belongs"
        for key in sorted(found.keys() & wanted.keys())
        if found[key].shape != wanted[key].shape
    ]
    problems = [
        f"{len(names)} {word}: {', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''}"
        for word, names in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise InputError(f"weights that do not fit {what}: {'; '.join(problems)}", f"every weight of {what}, no others")
    return f"{len(found)} of {len(found)} weights used, {sum(value.numel() for value in found.values())} numbers"


def check_finite(outputs: Tensor, what: str) -> str:
    """That a forward pass gave finite numbers; in words. Raises InputError when it did not."""
    if not bool(torch.isfinite(outputs).all()):
        raise InputError(f"the forward pass of {what} gives NaN or infinity", "weights of a model that was trained")
    return f"finite, {' x '.join(map(str, outputs.shape))}"


def check_read_back(model: nn.Module, read: nn.Module) -> str:
    """That what was read back from the folder is the model, bit for bit; in words. Raises RuntimeError when it is not."""
    before, after = model.state_dict(), read.state_dict()
    if before.keys() != after.keys() or not all(torch.equal(before[key], after[key]) for key in before):
        raise RuntimeError("the saved model reads back with other weights: a defect of hf_lskd or of the libraries")
    return "bit-equal"


def option(args: Any, name: str) -> Any:
    """An option of the command line, None where it was not given."""
    return getattr(args, name, None)

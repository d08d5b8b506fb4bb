"""The one reader of weights on disk: .safetensors, or a pickle of which nothing is run."""

import argparse
import hashlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_lskd.errors import InputError
from hf_lskd.models.files import first_line

# Where training scripts put the weights: averaged ones first, as timm does; the paper's code and torchvision's, then fairseq's.
WEIGHTS = ("state_dict_ema", "model_ema", "state_dict", "model")
WRAPPERS = ("_orig_mod.", "module.", "_orig_mod.")  # of torch.compile and DataParallel, in either order
BLOCKED = re.compile(r"GLOBAL ([\w.]+)")  # in what torch says


def read_checkpoint(path: Path) -> Any:
    """What is in a checkpoint file: tensors, plain values and containers, and `argparse.Namespace`, which only holds values.

    Pickles are read by torch's own unpickler, which calls nothing but what builds those. Raises InputError for a file that
    needs anything else (named), that is cut off, or that is not there.
    """
    import torch
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"{path} is no file", "a checkpoint: .safetensors, or what torch.save wrote")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="torch|hf_lskd")  # what is wrong, we say
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the readers raise is about this file
        raise unreadable_file(path, error) from error


def unreadable_file(path: Path, error: Exception) -> InputError:
    """What is wrong with a checkpoint that could not be read: it names code, or it is damaged."""
    blocked = sorted(set(BLOCKED.findall(str(error))))
    if blocked:
        return InputError(
            f"{path} cannot be read without running code: it names {', '.join(blocked)}; nothing was run",
            "a state dict (.safetensors, or a .pth of tensors alone)",
            "Where it was made, save the state_dict() on its own.",
        )
    why = first_line(error)
    if "weights_only" in why:  # torch says how to run what is in the file: nothing that we pass on
        why = "it holds something else than weights"
    return InputError(
        f"{path} cannot be read ({why})",
        "a state dict (.safetensors, or a .pth of tensors alone)",
        "If the file is truncated, copy or download it again; a pickled module is not opened: save its state_dict().",
    )


def weights_in(checkpoint: Any, path: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint, without the prefixes of wrappers. Raises InputError when there is none."""
    found = checkpoint
    if isinstance(checkpoint, Mapping):
        key = next((key for key in WEIGHTS if isinstance(checkpoint.get(key), Mapping)), None)
        found = checkpoint if key is None else checkpoint[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"{path} holds no state dict", "a mapping of names to tensors")
    return {unwrapped(str(key)): value for key, value in found.items()}


def unwrapped(key: str) -> str:
    for prefix in WRAPPERS:
        key = key.removeprefix(prefix)
    return key


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

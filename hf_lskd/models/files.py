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


# What of a model's folder is anybody else's business: weights as safetensors, configurations, what prepares input. Everything
# else stays at home, and above all what Python's pickle wrote, which runs code when it is read.
SHARED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab-*.json",
    "vocab.txt",
    "merges.txt",
    "*.spm",
    "*.model",
    "chat_template.jinja",
)


def shared_files(folder: Path) -> list[Path]:
    """The files of a model's folder that may be published, in order. Raises InputError without weights as whole safetensors."""
    found = sorted(path for path in folder.iterdir() if path.is_file() and any(path.match(name) for name in SHARED))
    weights = [path for path in found if path.suffix == ".safetensors"]
    if not weights:
        others = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
        received = f"{folder} has no weights as safetensors" + (f", but {', '.join(others)}" if others else "")
        raise InputError(
            received, "*.safetensors", "Save the model by save_pretrained; pickled weights are not published."
        )
    for path in weights:
        shapes_of(path)
    return found


PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".tar")


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes in a safetensors file by name. Raises InputError for a file that is cut or is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read ({first_line(error)})", "a whole safetensors file") from error


def model_facts(folder: Path) -> dict[str, Any]:
    """What a model's folder says of the model: its library, class, architecture, and how many values its weights hold."""
    from math import prod

    config = folder_config(folder)
    weights = [path for path in shared_files(folder) if path.suffix == ".safetensors"]
    named = (config.get("architectures") or [None])[0]
    return {
        "library": "timm" if config.get("model_type") == "timm_wrapper" else "transformers",
        "class": named,
        "architecture": config.get("architecture") or config.get("model_type"),
        "values": sum(prod(shape) for path in weights for shape in shapes_of(path).values()),
    }

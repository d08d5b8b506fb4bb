"""Reading the weights of a checkpoint back into a model whose weights are stored under other names than its own."""

import json
from pathlib import Path
from typing import Any

from torch import nn

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def load_renamed(model: nn.Module, folder: str | Path) -> bool:
    """Load the weights in `folder`, a checkpoint of `model`, where they are stored under other names; whether they are.

    transformers 5 saves many models (ViT, DeiT, …) under the names of their first release and maps them on loading, but its
    Trainer reads checkpoints with `load_state_dict(…, strict=False)`, which skips every renamed weight (measured, 5.23): a
    resumed run and the "best model at the end" then hold other weights than were saved. Drop this when its Trainer maps too.
    """
    from transformers import PreTrainedModel, TimmWrapperForImageClassification

    if not isinstance(model, PreTrainedModel) or isinstance(model, TimmWrapperForImageClassification):
        return False  # a timm wrapper maps names in its own load_state_dict
    stored = stored_names(Path(folder))
    if stored <= model.state_dict().keys():
        return False
    kind: Any = type(model)
    read = kind.from_pretrained(folder, config=model.config, dtype=model.dtype)
    model.load_state_dict(read.state_dict())
    return True


def stored_names(folder: Path) -> set[str]:
    """The names of the weights in a folder written by save_pretrained; empty where it holds no safetensors."""
    from safetensors import safe_open

    if (folder / INDEX).is_file():
        return set(json.loads((folder / INDEX).read_text())["weight_map"])
    if not (folder / WHOLE).is_file():
        return set()
    with safe_open(str(folder / WHOLE), framework="pt") as file:
        return set(file.keys())

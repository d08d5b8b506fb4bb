"""Models inside PEFT's wrapper."""

from typing import Any

from torch import nn


def without_adapter(model: nn.Module) -> Any:
    """The model that PEFT has wrapped, its adapters still in it; every other model unchanged."""
    base = getattr(model, "get_base_model", None)
    return base() if callable(base) else model

"""Which timm model is which torchvision model, and what their weights are called on either side."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_lskd.errors import InputError, nearest

# torchvision's name: timm's, for models that compute the same (norms' epsilon, padding, activations) from the same weights.
TIMM_NAMES = {
    "resnet18": "resnet18", "resnet34": "resnet34", "resnet50": "resnet50", "resnet101": "resnet101", "resnet152": "resnet152",
    "mobilenet_v2": "mobilenetv2_100", "efficientnet_b0": "efficientnet_b0", "efficientnet_b1": "efficientnet_b1",
    "efficientnet_b2": "efficientnet_b2", "efficientnet_b3": "efficientnet_b3", "efficientnet_b4": "efficientnet_b4",
    "convnext_tiny": "convnext_tiny", "convnext_small": "convnext_small", "convnext_base": "convnext_base",
    "convnext_large": "convnext_large",
}  # fmt: skip


def torchvision_name(name: str) -> str:
    """torchvision's name of an architecture, from either library's. Raises InputError for one that is not in the table."""
    bare = name.removeprefix("timm/").split(".")[0]
    if bare in TIMM_NAMES:
        return bare
    back = {timm: own for own, timm in TIMM_NAMES.items()}
    if bare not in back:
        raise InputError(
            f"architecture {name!r}", ", ".join(TIMM_NAMES), nearest(bare, list(dict.fromkeys([*TIMM_NAMES, *back])))
        )
    return back[bare]


def torchvision_model(name: str, classes: int) -> nn.Module:
    import torchvision

    return torchvision.models.get_model(name, weights=None, num_classes=classes)


def paired_names(ours: nn.Module, theirs: nn.Module) -> dict[str, str]:
    """{torchvision's name: timm's} of each weight. Both libraries define these models in the order in which they compute.

    Raises RuntimeError when the two do not line up, shape by shape: then one of the libraries has changed.
    """
    timm_state, own_state = theirs.state_dict(), ours.state_dict()
    shapes = [[squeezed(value) for value in state.values()] for state in (own_state, timm_state)]
    if shapes[0] != shapes[1]:
        raise RuntimeError("torchvision and timm define this model in different orders")
    return dict(zip(own_state, timm_state))


def squeezed(value: Tensor) -> list[int]:
    """A shape without the ones at its end: ConvNeXt's layer scale is [C, 1, 1] here and [C] there."""
    shape = list(value.shape)
    while len(shape) > 1 and shape[-1] == 1:
        shape.pop()
    return shape


def renamed(state: Mapping[str, Tensor], names: Mapping[str, str], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the other library's names, in its shapes."""
    return {names[key]: value.reshape(wanted[names[key]].shape) for key, value in state.items()}


def classes_of(state: Mapping[str, Tensor]) -> int | None:
    """How many classes the head of a torchvision state dict has: the rows of its last matrix."""
    matrices = [value for value in state.values() if value.ndim == 2]
    return len(matrices[-1]) if matrices else None


def nearest_by_weights(state: Mapping[str, Tensor]) -> tuple[str, float]:
    """The torchvision architecture that has most weights of these names and shapes, and which share of both they are."""
    shapes = {(key, value.shape) for key, value in state.items()}
    shares = {}
    for name in TIMM_NAMES:
        with torch.device("meta"):
            own = torchvision_model(name, classes_of(state) or 1000).state_dict()
        other = {(key, value.shape) for key, value in own.items()}
        shares[name] = len(shapes & other) / len(shapes | other)
        if shares[name] == 1:
            break
    best = max(shares, key=shares.__getitem__)
    return best, shares[best]


def preparation(name: str) -> dict[str, Any]:
    """How torchvision prepares images for its first weights of a model, in timm's keys."""
    import torchvision

    first = next(iter(torchvision.models.get_model_weights(name)))
    steps = first.transforms()
    return {
        "input_size": [3, *steps.crop_size * 2],
        "crop_pct": steps.crop_size[0] / steps.resize_size[0],
        "interpolation": steps.interpolation.value,
        "mean": list(steps.mean),
        "std": list(steps.std),
    }

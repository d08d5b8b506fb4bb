"""The layer that says a model's logits, and what it reads: the penultimate embedding."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hf_lskd.errors import InputError

ONE_HEAD = "a classifier whose logits are one linear layer (or 1x1 convolution) of the embedding"


def find_classifier(model: nn.Module) -> nn.Module:
    """The last layer: the linear layer or 1x1 convolution whose output is the logits. Its input is the penultimate embedding.

    timm models name it; in any other it is the last layer with as many outputs as the model has classes.
    Raises InputError when there is none, and for models that average several heads.
    """
    named = getattr(getattr(model, "timm_model", model), "get_classifier", None)
    head = named() if callable(named) else None
    if isinstance(head, nn.Linear | nn.Conv2d):
        return head
    if isinstance(head, tuple | list | nn.ModuleList):
        raise InputError(
            f"{type(getattr(model, 'timm_model', model)).__name__} has {len(head)} classifiers, each with an input of its own",
            ONE_HEAD,
            "timm has most such models with one head too, without `distilled` in their name.",
        )
    classes = num_classes(model)
    layers = [module for module in model.modules() if classes and outputs_of(module) == classes]
    if not layers:
        raise InputError(f"{type(model).__name__} has no linear layer with {classes} outputs", ONE_HEAD)
    return layers[-1]


@contextmanager
def reading_classifier(model: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """A function that gives, after a forward pass that returned logits `[B, C]`, what the classifier read: `[B, D]`.

    Its first call checks that the classifier's own output is these logits, so that no statistics are taken of anything else.
    Raises InputError when it is not, and when no classifier is found.
    """
    head = find_classifier(model)
    passed: list[tuple[Tensor, Tensor]] = []
    checked = False

    def read(logits: Tensor) -> Tensor:
        nonlocal checked
        if not passed or not (checked or is_same(passed[-1][1].flatten(1), logits)):
            raise InputError(f"the logits of {type(model).__name__} are not the output of one layer", ONE_HEAD)
        features = passed[-1][0]
        passed.clear()
        checked = True
        return features.flatten(1)

    hook = head.register_forward_hook(lambda _, inputs, output: passed.append((inputs[0], output)))
    try:
        yield read
    finally:
        hook.remove()


def is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors agree but for rounding."""
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=1e-3, atol=1e-5)


def num_classes(model: nn.Module) -> int | None:
    """How many classes a model says it has; for a plain module the width of its last linear layer, None without one."""
    config = getattr(model, "config", None)
    names = getattr(config, "id2label", None)
    widths = (width for width in map(outputs_of, reversed(list(model.modules()))) if width)
    said = (getattr(config, "num_labels", None), len(names) if names else None, getattr(model, "num_classes", None))
    return next((count for count in said if count is not None), next(widths, None))


def outputs_of(module: nn.Module) -> int | None:
    """The number of outputs of a linear layer or 1x1 convolution; None for every other module."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
        return module.out_channels
    return None

"""timm modules inside transformers' wrapper, so that what is saved loads through both libraries."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_lskd.errors import InputError

logger = logging.getLogger(__name__)

# Of a pretrained_cfg: the head's size is told beside it, and where weights once lay does not concern what is saved now.
NOT_SAVED = ("num_classes", "file", "source", "state_dict")


def label_maps(class_names: Sequence[str]) -> dict[str, dict]:
    """`id2label` and `label2id` as transformers' configurations hold them."""
    return {"id2label": dict(enumerate(class_names)), "label2id": {name: i for i, name in enumerate(class_names)}}


def wrap_timm(
    module: nn.Module,
    *,
    class_names: Sequence[str] | None = None,
    data_config: Mapping[str, Any] | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> Any:
    """The timm `module` itself inside transformers' wrapper, so that what is saved loads through both libraries.

    `model_args` are the arguments of `timm.create_model` that rebuild it. The wrapper is built without weights around it:
    transformers' own construction would draw every convolution and linear layer again from N(0, 0.02), which is not
    timm's initialisation.
    """
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    own = saved_cfg(module)
    settings: dict[str, Any] = {
        "architecture": own["architecture"],
        "model_args": dict(model_args or {}),
        "pretrained_cfg": {**own, **(data_config or {})},
        "problem_type": "single_label_classification",
        **({"num_labels": module.num_classes} if class_names is None else label_maps(class_names)),
    }
    config = TimmWrapperConfig(**settings)
    with torch.device("meta"):
        wrapper = TimmWrapperForImageClassification(config)
    wrapper.timm_model = module
    return save_like_timm(wrapper)


def saved_cfg(module: nn.Module) -> dict[str, Any]:
    """What of a timm module's configuration is saved with it."""
    own = dict(module.pretrained_cfg)  # type: ignore[arg-type]
    return {key: value for key, value in own.items() if key not in NOT_SAVED}


def save_like_timm(model: Any) -> Any:
    """Let a timm wrapper save the keys, arguments and data configuration that timm's own loader expects; others stay as they are."""
    from transformers import TimmWrapperForImageClassification
    from transformers.conversion_mapping import get_model_conversion_mapping

    if isinstance(model, TimmWrapperForImageClassification):
        conversions: Any = get_model_conversion_mapping(model, add_legacy=False)
        model._weight_conversions = conversions
        model.config.model_args = model.config.model_args or {}
        if getattr(model.config, "pretrained_cfg", None) is None:
            model.config.pretrained_cfg = saved_cfg(model.timm_model)
    return model


def as_transformers(model: nn.Module) -> nn.Module:
    """A bare timm module as a transformers model around the same module; every other module unchanged.

    A module that its name alone does not describe (built with arguments that timm does not keep) stays bare: it trains, but
    what is saved is a plain state dict.
    """
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel):
        return save_like_timm(model)
    if not getattr(model, "pretrained_cfg", None) or not getattr(model, "num_classes", 0):
        return model
    model_args = rebuild_arguments(model)
    if model_args is None:
        logger.info(
            "%s was built with arguments that timm does not record: it is saved as a plain state dict. "
            "Pass its name and arguments through hf_lskd.models.load_image_classifier to save a loadable model.",
            type(model).__name__,
        )
        return model
    return wrap_timm(model, model_args=model_args)


def rebuild_arguments(module: nn.Module) -> dict[str, Any] | None:
    """The `timm.create_model` arguments that build a bare module's twin, or None when no guess does."""
    import timm

    architecture = saved_cfg(module)["architecture"]
    for arguments in guesses(module):
        try:
            with torch.device("meta"):
                twin = timm.create_model(architecture, num_classes=module.num_classes, **arguments)
        except Exception:  # a module of another timm, or arguments that do not fit: then this guess is wrong
            continue
        if is_twin(module, twin):
            return arguments
    return None


def guesses(module: nn.Module) -> Iterator[dict[str, Any]]:
    """Arguments that a module may have been built with, the fewest first: only input channels and image size show in it."""
    stored = dict(getattr(module, "pretrained_model_args", None) or {})
    channels = {"in_chans": next((m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d)), 3)}
    size = getattr(getattr(module, "patch_embed", None), "img_size", None)
    sizes = {"img_size": list(size) if isinstance(size, tuple) else size} if size else {}
    for guess in ({}, channels, sizes, {**channels, **sizes}):
        yield {**stored, **guess}


def is_twin(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules compute the same from the same weights, as far as shapes, types and plain attributes tell.

    Shapes alone would not do: attention heads, strides and activations have none. Drop rates may differ: they change nothing
    of what is saved.
    """
    shapes = [{key: value.shape for key, value in module.state_dict().items()} for module in (one, other)]
    return shapes[0] == shapes[1] and list(build_of(one)) == list(build_of(other))


def build_of(module: nn.Module) -> Iterator[tuple[str, str, dict[str, str]]]:
    from timm.layers import DropPath

    transient = {"training", "grad_checkpointing", "fused_attn"}
    for name, part in module.named_modules():
        if isinstance(part, nn.Dropout | DropPath | nn.Identity):
            yield name, "Identity", {}
            continue
        plain = {
            key: repr(value)
            for key, value in vars(part).items()
            if key not in transient
            and not key.startswith("_")
            and "drop" not in key
            and isinstance(value, int | float | str | tuple | torch.Size | None)
        }
        yield name, type(part).__qualname__, plain


def check_model_args(model_args: Mapping[str, Any], classes: str) -> None:
    """Refuse model arguments that are set elsewhere, and such that a config.json cannot hold. Raises InputError.

    `classes` says in words what the number of classes follows from."""
    ours = {"num_classes": classes, "pretrained": "pretrained", "checkpoint_path": "pretrained: <path>"}
    for key in ("features_only", "pretrained_cfg", "pretrained_cfg_overlay", *ours):
        if key in model_args:
            where = f"It follows from {ours[key]}." if key in ours else ""
            raise InputError(f"model_args: {key}", "arguments that shape a classifier", where)
    for key, value in model_args.items():
        try:
            json.dumps(value)
        except TypeError as error:
            raise InputError(
                f"model_args: {key}: {value!r}",
                "numbers, texts, and lists of these: they are saved in config.json",
                "timm takes most layers by name, such as act_layer: gelu.",
            ) from error

"""From a name, a path or a bare timm module to a model that trains, saves and loads everywhere; and what its head reads."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_lskd.errors import InputError, nearest

logger = logging.getLogger(__name__)

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def load_image_classifier(
    name: str,
    *,
    class_names: Sequence[str] | None = None,
    pretrained: bool | str = True,
    model_args: Mapping[str, Any] | None = None,
    data_config: Mapping[str, Any] | None = None,
) -> Any:
    """A transformers image classifier from a timm name (`resnet50`, `timm/resnet50`, `hf-hub:…`), a local folder, or a Hub id.

    With `class_names` the head has these classes, newly initialised where the weights have others; without, the weights' own.
    `pretrained`: True loads the weights that belong to the name, False initialises as the library does, a path loads a
    checkpoint file or a folder. `data_config` (timm's keys: input_size, mean, std, interpolation, crop_pct, crop_mode) is
    what images are prepared with, saved with the model.
    Raises InputError for an unknown name (with the nearest known ones) and for weights that cannot be read.
    """
    if Path(name).is_dir() or (pretrained is True and is_transformers_id(name)):
        model = from_pretrained(name, class_names)
        return with_data_config(model, data_config)
    architecture = timm_name(name)
    module = create_timm(architecture, name, pretrained, None if class_names is None else len(class_names), model_args)
    return wrap_timm(module, class_names=class_names, data_config=data_config, model_args=model_args)


def load_trained(name: str) -> Any:
    """A finished model from a folder or a name, for use as it is (as a teacher).

    Raises InputError when loading reports missing or mismatched weights: such a model has a random head.
    """
    if not Path(name).is_dir() and not is_transformers_id(name):
        return wrap_timm(create_timm(timm_name(name), name, True, None, None))
    from transformers import AutoModelForImageClassification

    model, report = read_weights(AutoModelForImageClassification, name, output_loading_info=True)
    unloaded = sorted(str(key) for part in ("missing_keys", "mismatched_keys") for key in report[part])
    if unloaded:
        raise InputError(
            f"{name} loads with {len(unloaded)} missing or mismatched weights, such as {unloaded[0]}",
            "a checkpoint that holds every weight of its model, the classifier's too",
            "A teacher with a random head teaches noise: fine-tune it first.",
        )
    return save_like_timm(model)


def from_pretrained(name: str, class_names: Sequence[str] | None) -> Any:
    """A model from a folder or Hub id, its head replaced where `class_names` differ in number from the checkpoint's."""
    from transformers import AutoModelForImageClassification

    labels = {} if class_names is None else {"num_labels": len(class_names), **label_maps(class_names)}
    model = read_weights(AutoModelForImageClassification, name, ignore_mismatched_sizes=True, **labels)
    return save_like_timm(model)


def read_weights(auto_class: Any, name: str, **kwargs: Any) -> Any:
    """`auto_class.from_pretrained`, with one message for everything that a broken or foreign checkpoint can raise."""
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise InputError(f"{name} has no config.json", "a folder written by save_pretrained, or a name")
    if folder.is_dir() and not any((folder / file).is_file() for file in WEIGHT_FILES):
        raise InputError(f"{name} has no weights", f"one of {', '.join(WEIGHT_FILES)} beside config.json")
    try:
        return auto_class.from_pretrained(name, **kwargs)
    except Exception as error:
        raise InputError(
            f"{name} cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})",
            "a complete checkpoint that matches its config.json",
            "If the file is truncated, copy or download it again.",
        ) from error


def create_timm(
    architecture: str, name: str, pretrained: bool | str, num_classes: int | None, model_args: Mapping[str, Any] | None
) -> nn.Module:
    """`timm.create_model`, with weights from the name, from a file or folder, or none."""
    import timm

    kwargs: dict[str, Any] = dict(model_args or {})
    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    source = architecture
    if isinstance(pretrained, str):
        if not Path(pretrained).exists():
            raise InputError(f"pretrained: {pretrained} does not exist", "true, false, or the path of weights")
        if Path(pretrained).is_dir():
            source = f"local-dir:{pretrained}"
        else:
            kwargs["pretrained_cfg_overlay"] = {"file": pretrained}
    elif pretrained and name.startswith("hf-hub:"):
        source = name
    try:
        return timm.create_model(source, pretrained=bool(pretrained), **kwargs)
    except TypeError as error:
        raise InputError(
            f"model_args {dict(model_args or {})} for {architecture} ({error})", "arguments of timm.create_model"
        ) from error
    except Exception as error:
        raise InputError(
            f"{name} with pretrained={pretrained} cannot be loaded ({type(error).__name__}: {str(error)[:200]})",
            "weights that can be reached, or pretrained: false",
            "Without the Hub, name a local folder or checkpoint file.",
        ) from error


def pretrained_cfg(name: str) -> dict[str, Any]:
    """timm's configuration of a model (input size, mean, std, …) from its name or from the config.json of a local folder.

    Empty for a Hub id of another library; raises InputError for an unknown name.
    """
    import json

    import timm

    config = Path(name) / "config.json"
    if config.is_file():
        return json.loads(config.read_text()).get("pretrained_cfg", {})
    if is_transformers_id(name):
        return {}
    found = timm.get_pretrained_cfg(timm_name(name), allow_unregistered=True)
    return found.to_dict() if found is not None else {}


def timm_name(name: str) -> str:
    """The timm architecture behind `name`, tag included. Raises InputError with the nearest names when there is none."""
    import timm

    bare = name.removeprefix("hf-hub:").removeprefix("timm/")
    architecture = bare.rsplit("/", 1)[-1]
    if not timm.is_model(architecture.split(".")[0]):
        raise InputError(
            f"model {name!r} is neither a folder here nor a timm model",
            "a timm name, a local folder, or a Hub id with pretrained: true",
            nearest(architecture.split(".")[0], timm.list_models()),
        )
    return architecture


def is_transformers_id(name: str) -> bool:
    """Whether a name that is no folder should be looked up on the Hub by transformers (`owner/model`)."""
    return "/" in name and not name.startswith(("hf-hub:", "timm/", ".")) and not os.path.isabs(name)


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

    The wrapper is built without weights around it: transformers' own construction would draw every convolution and linear
    layer again from N(0, 0.02), which is not timm's initialisation.
    """
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    pretrained_cfg = {
        k: v for k, v in dict(module.pretrained_cfg).items() if k not in ("num_classes", "file", "source")
    }  # type: ignore[arg-type]
    labels: dict[str, Any] = {"num_labels": module.num_classes} if class_names is None else label_maps(class_names)
    config = TimmWrapperConfig(
        architecture=pretrained_cfg["architecture"],
        model_args=dict(model_args or {}),
        **{"pretrained_cfg": {**pretrained_cfg, **(data_config or {})}},
        problem_type="single_label_classification",
        **labels,
    )
    with torch.device("meta"):
        wrapper = TimmWrapperForImageClassification(config)
    wrapper.timm_model = module
    return save_like_timm(wrapper)


def save_like_timm(model: Any) -> Any:
    """Let a timm wrapper save the keys, arguments and data configuration that timm's own loader expects; others stay as they are."""
    from transformers import TimmWrapperForImageClassification
    from transformers.conversion_mapping import get_model_conversion_mapping

    if isinstance(model, TimmWrapperForImageClassification):
        model._weight_conversions = get_model_conversion_mapping(model, add_legacy=False)
        model.config.model_args = model.config.model_args or {}
        if getattr(model.config, "pretrained_cfg", None) is None:
            model.config.pretrained_cfg = dict(model.timm_model.pretrained_cfg)
    return model


def with_data_config(model: Any, data_config: Mapping[str, Any] | None) -> Any:
    """The model with another image preparation written into its configuration (timm wrappers only: others keep a processor)."""
    if data_config and hasattr(model, "timm_model"):
        model.config.pretrained_cfg = {**model.config.pretrained_cfg, **data_config}
    return model


def as_transformers(model: nn.Module) -> nn.Module:
    """A bare timm module as a transformers model around the same module; every other module unchanged.

    A module that its name alone does not describe (built with arguments that timm does not keep) stays bare: it trains, but
    what is saved is a plain state dict.
    """
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel):
        return save_like_timm(model)
    if not hasattr(model, "pretrained_cfg") or not hasattr(model, "num_classes"):
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
    """The `timm.create_model` arguments that rebuild a bare module's weights shape by shape, or None."""
    import timm

    shapes = {key: value.shape for key, value in module.state_dict().items()}
    architecture = dict(module.pretrained_cfg)["architecture"]  # type: ignore[arg-type]
    in_chans = getattr(module, "in_chans", None) or first_input_channels(module)
    guesses: list[dict[str, Any]] = [{}, {"in_chans": in_chans}]
    for extra in guesses:
        try:
            with torch.device("meta"):
                twin = timm.create_model(architecture, num_classes=module.num_classes, **extra)
        except Exception:  # a module of another timm, or arguments that do not fit: then it cannot be rebuilt
            continue
        if {key: value.shape for key, value in twin.state_dict().items()} == shapes:
            return extra
    return None


def first_input_channels(module: nn.Module) -> int:
    return next((part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d)), 3)


def normalization_of(source: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(mean, std) per channel that `source` (an image processor, a model or a data set) prepares its images with, or None."""
    if source is None:
        return None
    own = getattr(source, "normalization", None)
    if own is not None:
        return tuple(own.mean), tuple(own.std)
    config = getattr(source, "data_config", None) or getattr(source, "pretrained_cfg", None)
    if config is None:
        config = getattr(getattr(source, "config", None), "pretrained_cfg", None)
    if config is not None:
        config = dict(config)
        mean, std = config.get("mean"), config.get("std")
    elif getattr(source, "do_normalize", False):
        mean, std = getattr(source, "image_mean", None), getattr(source, "image_std", None)
    else:
        return None
    return None if mean is None or std is None else (tuple(map(float, mean)), tuple(map(float, std)))


def find_classifier(model: nn.Module) -> nn.Module:
    """The last layer: the linear layer or 1x1 convolution whose output is the logits. Its input is the penultimate embedding.

    Found by its width among the leaves of any timm model or `AutoModelForImageClassification`.
    Raises InputError when no layer has as many outputs as the model has classes.
    """
    named = getattr(getattr(model, "timm_model", model), "get_classifier", None)
    head = named() if callable(named) else None
    if isinstance(head, nn.Linear | nn.Conv2d):
        return head
    classes = num_classes(model)
    layers = [m for m in model.modules() if outputs_of(m) == classes]
    if not layers:
        raise InputError(
            f"{type(model).__name__} has no linear layer with {classes} outputs",
            "a classifier whose last layer is linear (or a 1x1 convolution)",
        )
    return layers[-1]


def num_classes(model: nn.Module) -> int | None:
    config = getattr(model, "config", None)
    count = getattr(config, "num_labels", None) if config is not None else getattr(model, "num_classes", None)
    if count is None:
        widths = [outputs_of(m) for m in model.modules() if outputs_of(m)]
        count = widths[-1] if widths else None
    return count


def outputs_of(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
        return module.out_channels
    return None

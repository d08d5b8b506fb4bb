"""Models from timm names, folders, checkpoint files and the Hub, with one clear message for whatever is wrong with them."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_lskd.errors import InputError, nearest
from hf_lskd.models.classifier import num_classes, outputs_of
from hf_lskd.models.files import first_line, folder_config
from hf_lskd.models.preparation import data_config_of, stored_processor
from hf_lskd.models.timm_weights import create_timm, stored_arguments, timm_with_weights
from hf_lskd.models.timm_wrapper import check_model_args, label_maps, save_like_timm, wrap_timm

logger = logging.getLogger(__name__)

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


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
    checkpoint file or a folder; pickles are read weights-only. `model_args` go to the library's constructor.
    `data_config` (timm's keys: input_size, mean, std, interpolation, crop_pct, crop_mode) is what images are prepared with,
    saved with a timm model (for others see `image_processor`).
    Raises InputError for an unknown name (with the nearest known ones) and for weights that cannot be read or do not fit.
    """
    own_args = dict(model_args or {})
    check_model_args(own_args, "the weights, or class_names" if class_names is None else "the data's classes")
    if isinstance(pretrained, str) and not Path(pretrained).exists():
        raise InputError(f"pretrained: {pretrained} does not exist", "true, false, or the path of weights")
    if not is_timm(name):
        if pretrained is True:
            return with_data_config(from_pretrained(name, class_names, own_args), data_config)
        config = read_config(name, class_names, own_args)
        if config.model_type != "timm_wrapper":
            return without_weights(config) if pretrained is False else from_pretrained(str(pretrained), config=config)
        data_config = {**(getattr(config, "pretrained_cfg", None) or {}), **(data_config or {})}
        class_names = list(config.id2label.values()) if class_names is None else class_names
        name, own_args = config.architecture, config.model_args or {}
    source = name if name.startswith("hf-hub:") and pretrained is True else timm_name(name)
    if isinstance(pretrained, str):
        own_args = {**stored_arguments(Path(pretrained), source), **own_args}
        module = timm_with_weights(
            source, Path(pretrained), None if class_names is None else len(class_names), own_args
        )
    else:
        head = {} if class_names is None else {"num_classes": len(class_names)}
        module = create_timm(source, pretrained=pretrained, **head, **own_args)
    return wrap_timm(module, class_names=class_names, data_config=data_config, model_args=own_args)


def load_trained(name: str) -> Any:
    """A finished model from a folder or a name, for use as it is (as a teacher).

    Raises InputError when loading reports missing or mismatched weights: such a model has a random head.
    """
    if is_timm(name):
        source = name if name.startswith("hf-hub:") else timm_name(name)
        return wrap_timm(create_timm(source, pretrained=True))
    model, report = read_weights(name)
    unloaded = sorted(report.missing | report.mismatched)
    if unloaded:
        raise InputError(
            f"{name} loads with {len(unloaded)} missing or mismatched weights, such as {unloaded[0]}",
            "a checkpoint that holds every weight of its model, the classifier's too",
            "A teacher with a random head teaches noise: fine-tune it first.",
        )
    return save_like_timm(model)


# ---- Which library a name belongs to


def is_timm(name: str) -> bool:
    """Whether timm is to resolve `name`; a folder and `owner/model` are for transformers."""
    if (Path(name) / "config.json").is_file():
        return False
    if name.startswith(("hf-hub:", "timm/")):
        return True
    return "/" not in name and (not Path(name).is_dir() or is_architecture(name))


def is_architecture(name: str) -> bool:
    import timm

    return "/" not in name and timm.is_model(name.split(".")[0])


def timm_name(name: str) -> str:
    """The timm architecture behind `name`, tag included. Raises InputError with the nearest names when there is none."""
    import timm

    bare = name.removeprefix("hf-hub:").removeprefix("timm/")
    if not is_architecture(bare):
        raise InputError(
            f"model {name!r} is neither a folder here nor a timm model",
            "a timm name, a local folder, or a Hub id",
            nearest(bare.rsplit("/", 1)[-1].split(".")[0], timm.list_models()),
        )
    return bare


def pretrained_cfg(name: str) -> dict[str, Any]:
    """How images are prepared for a model (timm's keys: input_size, mean, std, …), from its name or from the files beside it.

    Empty where nothing says so; raises InputError for an unknown name and for a config.json that cannot be read.
    """
    import timm

    if is_timm(name):
        try:
            if name.startswith("hf-hub:") and not is_architecture(name.removeprefix("hf-hub:timm/")):
                return timm.models.load_model_config_from_hf(name.removeprefix("hf-hub:"))[0]
            found = timm.get_pretrained_cfg(timm_name(name), allow_unregistered=True)
        except (RuntimeError, OSError, ValueError) as error:
            raise unreadable(name, error) from error
        return found.to_dict() if found is not None else {}
    file = Path(name) / "config.json"
    if file.is_file():
        config = folder_config(Path(name))
        if "architecture" in config:
            return config.get("pretrained_cfg", config)
    processor = stored_processor(name)
    return {} if processor is None else data_config_of(processor)


def with_data_config(model: Any, data_config: Mapping[str, Any] | None) -> Any:
    """The model with another image preparation written into its configuration (timm wrappers only: others keep a processor)."""
    if data_config and hasattr(model, "timm_model"):
        model.config.pretrained_cfg = {**model.config.pretrained_cfg, **data_config}
    return model


# ---- transformers


class Report:
    """Which of a model's weights no checkpoint filled: `missing` from it, or `mismatched` in shape."""

    def __init__(self, info: Mapping[str, Any]) -> None:
        self.missing = {str(key) for key in info["missing_keys"]}
        self.mismatched = {str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"]}


def from_pretrained(
    name: str,
    class_names: Sequence[str] | None = None,
    model_args: Mapping[str, Any] | None = None,
    config: Any = None,
) -> Any:
    """A model to train, in float32, from a folder or Hub id; its head is new where the checkpoint's has other classes.

    Raises InputError when weights other than the head's have other shapes, or when none of them is there.
    """
    config = read_config(name, class_names, model_args or {}) if config is None else config
    model, report = read_weights(name, ignore_mismatched_sizes=True, config=config, dtype=torch.float32)
    body = set(model.state_dict()) - head_keys(model)
    wrong = sorted(report.mismatched & body)
    if wrong:
        raise InputError(
            f"{name} has {len(wrong)} weights of other shapes than its config.json says, such as {wrong[0]}",
            "weights that fit the model, all but the classifier's",
        )
    if body and body <= report.missing:
        raise InputError(f"none of the weights in {name} belongs to a {type(model).__name__}", "weights of this model")
    if report.missing & body:
        logger.warning("%s lacks %s: newly initialised.", name, ", ".join(sorted(report.missing & body)))
    return save_like_timm(model)


def head_keys(model: nn.Module) -> set[str]:
    """The names of the parameters of every layer as wide as the classes: what a checkpoint of other classes may lack."""
    classes = num_classes(model)
    heads = [name for name, module in model.named_modules() if outputs_of(module) == classes]
    return {f"{name}.{key}" for name in heads for key in ("weight", "bias")}


def read_config(name: str, class_names: Sequence[str] | None, model_args: Mapping[str, Any]) -> Any:
    """A model's transformers configuration, with its labels and with `model_args` over its own."""
    from transformers import AutoConfig

    if Path(name).is_dir():
        folder_config(Path(name))
    labels = {} if class_names is None else {"num_labels": len(class_names), **label_maps(class_names)}
    try:
        config = AutoConfig.from_pretrained(name, **labels)
        if config.model_type == "timm_wrapper":
            config.model_args = {**(config.model_args or {}), **model_args}
            return config
        unknown = [key for key in model_args if not hasattr(config, key)]
        for key, value in model_args.items():
            setattr(config, key, value)
    except Exception as error:
        raise unreadable(name, error) from error
    if unknown:
        raise InputError(
            f"model_args: {unknown[0]}", f"settings of {type(config).__name__}", nearest(unknown[0], dir(config))
        )
    return config


def check_readable(name: str) -> None:
    """Raise InputError for a model of transformers whose configuration cannot be read: a folder or Hub id that is not there."""
    if not is_timm(name):
        read_config(name, None, {})


def without_weights(config: Any) -> Any:
    from transformers import AutoModelForImageClassification

    try:
        return AutoModelForImageClassification.from_config(config)
    except ValueError as error:
        raise InputError(f"a {config.model_type} ({first_line(error)})", "an image classifier") from error


def read_weights(name: str, **kwargs: Any) -> tuple[Any, Report]:
    """A transformers image classifier, with one message for everything that a broken or foreign checkpoint can raise."""
    from transformers import AutoModelForImageClassification

    folder = Path(name)
    if folder.is_dir():
        folder_config(folder)
        if not any((folder / file).is_file() for file in WEIGHT_FILES):
            raise InputError(f"{name} has no weights", f"one of {', '.join(WEIGHT_FILES)} beside config.json")
    try:
        model, info = AutoModelForImageClassification.from_pretrained(name, output_loading_info=True, **kwargs)
    except Exception as error:
        raise unreadable(name, error) from error
    return model, Report(info)


def unreadable(name: str, error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    if not Path(name).exists():
        allowed = "a folder here, a timm name, or a model of the Hub that can be reached"
        return InputError(f"model {name!r} cannot be loaded ({first_line(error)})", allowed)
    return InputError(
        f"{name} cannot be loaded ({first_line(error)})",
        "a complete checkpoint that matches its config.json",
        "If the file is truncated, copy or download it again.",
    )

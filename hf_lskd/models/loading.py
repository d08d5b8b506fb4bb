"""Models from timm names, folders, checkpoint files and the Hub, with one clear message for whatever is wrong with them."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_lskd.errors import InputError, nearest
from hf_lskd.models.classifier import num_classes, outputs_of
from hf_lskd.models.preparation import data_config_of, read_json, stored_processor
from hf_lskd.models.timm_wrapper import check_model_args, label_maps, save_like_timm, wrap_timm

logger = logging.getLogger(__name__)

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TIMM_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")


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
    check_model_args(own_args)
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


def first_line(error: Exception, most: int = 200) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:most]


# ---- timm


def create_timm(source: str, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """`timm.create_model` that answers unknown arguments and unreachable or foreign weights with an InputError."""
    import timm

    try:
        return timm.create_model(source, pretrained=pretrained, **kwargs)
    except TypeError as error:
        raise InputError(f"model_args for {source}: {first_line(error)}", "arguments of timm.create_model") from error
    except Exception as error:
        given = {key: value for key, value in kwargs.items() if key != "pretrained_cfg_overlay"}
        raise InputError(
            f"{source} with {'its weights' if pretrained else 'no weights'} and {given} cannot be built ({first_line(error)})",
            "weights that can be reached, arguments that fit the model, or pretrained: false",
            "Without the Hub, name a local folder or checkpoint file.",
        ) from error


def timm_with_weights(architecture: str, path: Path, classes: int | None, model_args: Mapping[str, Any]) -> nn.Module:
    """A timm model with the weights of a file or folder: every one of them, but the head's where its classes differ.

    A checkpoint without a head is given one. Raises InputError when any other weight is missing or does not fit.
    """
    import timm

    state = read_state(path)
    known = timm.get_pretrained_cfg(architecture.split(".")[0])
    heads = known.classifier if known is not None else None
    head = state.get(f"{heads if isinstance(heads, str) else (heads or ('',))[0]}.weight")
    tried = [head.shape[0]] if head is not None else [known.num_classes if known is not None else 1000, 0]
    for own in tried:
        overlay = {"state_dict": dict(state), "num_classes": own, "label_offset": 0, "custom_load": False}
        try:
            whole = create_timm(
                architecture, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=own, **model_args
            )
            break
        except InputError as error:
            problem = error.__cause__ if isinstance(error.__cause__, Exception) else error
    else:
        raise InputError(
            f"{path} does not fit {architecture} ({detail(problem)})",
            f"the weights of a {architecture} with these model_args",
        )
    module = create_timm(architecture, num_classes=own if classes is None else classes, **model_args)
    wanted = module.state_dict()
    kept = {
        key: value for key, value in whole.state_dict().items() if key in wanted and value.shape == wanted[key].shape
    }
    module.load_state_dict(kept, strict=False)
    return module


def detail(error: Exception, most: int = 200) -> str:
    """What torch says of a state dict that does not fit: its second line; the first names the class only."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[1] if len(lines) > 1 else first_line(error))[:most]


def read_state(path: Path) -> dict[str, Tensor]:
    """The weights in a file (.safetensors, or a pickle read weights-only) or in a folder's file, under timm's own names."""
    import timm.models

    file = path
    if path.is_dir():
        files = [path / name for name in TIMM_FILES if (path / name).is_file()]
        if not files:
            raise InputError(f"{path} has no weights", f"one of {', '.join(TIMM_FILES)}")
        file = files[0]
    try:
        state = timm.models.load_state_dict(str(file))
    except Exception as error:
        raise InputError(
            f"{file} cannot be read ({first_line(error)})",
            "a state dict (.safetensors, or a .pth of tensors alone)",
            "If the file is truncated, copy or download it again; a pickled module is not opened: save its state_dict().",
        ) from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{file} holds no state dict", "a mapping of names to tensors")
    return {key.removeprefix("timm_model."): value for key, value in state.items()}


def stored_arguments(path: Path, architecture: str) -> dict[str, Any]:
    """The timm arguments in the config.json beside the weights, if there is one. Raises InputError for another architecture."""
    if not (path / "config.json").is_file():
        return {}
    config = folder_config(path)
    own = config.get("architecture")
    if own != architecture.split(".")[0]:
        what = own or config.get("model_type", "an unknown model")
        raise InputError(f"pretrained: {path} holds {what}, not {architecture}", f"weights of {architecture}")
    return dict(config.get("model_args") or {})

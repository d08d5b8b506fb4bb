"""timm models built fresh, with timm's own weights, or with those of a file or folder, all of which have to fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hf_lskd.errors import InputError
from hf_lskd.models.files import first_line, folder_config
from hf_lskd.models.weights_file import read_checkpoint, weights_in

TIMM_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")


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
    return timm_from_state(architecture, read_state(path), path, classes, model_args)


def timm_from_state(
    architecture: str, state: Mapping[str, Tensor], path: Path, classes: int | None, model_args: Mapping[str, Any]
) -> nn.Module:
    """`timm_with_weights` for a state dict that was read already; `path` is for messages."""
    import timm

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


def detail(error: Exception, most: int = 300) -> str:
    """What torch says of a state dict that does not fit: its lines but the first, which names the class only."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (" ".join(lines[1:]) if len(lines) > 1 else first_line(error))[:most]


def read_state(path: Path) -> dict[str, Tensor]:
    """The weights in a file (.safetensors, or a pickle read weights-only) or in a folder's file, under timm's own names."""
    file = weights_file(path)
    return timm_names(weights_in(read_checkpoint(file), file))


def weights_file(path: Path) -> Path:
    """The file itself, or the weights in a folder. Raises InputError for a folder without any."""
    if not path.is_dir():
        return path
    files = [path / name for name in TIMM_FILES if (path / name).is_file()]
    if not files:
        raise InputError(f"{path} has no weights", f"one of {', '.join(TIMM_FILES)}")
    return files[0]


def timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the prefix that transformers' wrapper saves."""
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

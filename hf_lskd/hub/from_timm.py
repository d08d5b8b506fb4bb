"""timm's checkpoints as folders for transformers and timm, or as torchvision state dicts."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_lskd.errors import InputError
from hf_lskd.hub.conversion import Conversion, check_finite, check_read_back, check_weights, fresh_folder
from hf_lskd.hub.from_torchvision import check_names, write_torchvision
from hf_lskd.models import load_trained
from hf_lskd.models.files import folder_config
from hf_lskd.models.loading import timm_name
from hf_lskd.models.timm_weights import timm_from_state, timm_names, weights_file
from hf_lskd.models.timm_wrapper import check_model_args, wrap_timm
from hf_lskd.models.weights_file import read_checkpoint, sha256_of, weights_in

PREPARATION = ("mean", "std", "crop_pct", "interpolation", "input_size")


def convert_timm(
    source: Path,
    target: Path,
    *,
    architecture: str | None = None,
    class_names: Sequence[str] | None = None,
    model_args: Mapping[str, Any] | None = None,
    output_format: str = "timm",
) -> Conversion:
    """A folder for transformers and timm (or, by `output_format`, torchvision) from a timm checkpoint or folder.

    Averaged weights come before plain ones. The architecture and its arguments are those given, else those in the config.json
    beside the weights, else those that timm's training script wrote into the checkpoint. Raises InputError for files that
    cannot be read, an unknown or missing architecture, weights that do not fit, and a `target` with content.
    """
    file = weights_file(source)
    checkpoint = read_checkpoint(file)
    said = said_by_folder(source) if source.is_dir() else said_by_script(checkpoint)
    name = architecture or said.get("architecture")
    if not name:
        raise InputError(f"{source} does not say its architecture", "--architecture, one of timm's names")
    name = timm_name(str(name))
    own_args = {**said.get("model_args", {}), **(model_args or {})}
    check_model_args(own_args, "the weights")
    state = timm_names(weights_in(checkpoint, file))
    module = timm_from_state(name, state, file, None, own_args).eval()
    if not module.num_classes:
        raise InputError(f"{file} has no classifier", "the weights of a classifier")
    names = class_names or said.get("class_names")
    check_names(names, int(module.num_classes))  # type: ignore[arg-type]
    found = Conversion("timm", source.name, {file.name: sha256_of(file)}, name)
    if output_format == "torchvision":
        return write_torchvision(module, name, target, found)
    model = wrap_timm(module, class_names=names, data_config=said.get("data_config"), model_args=own_args)
    found.checks = {"weights": used_weights(state, module, name), "forward": forward(model)}
    with fresh_folder(target) as folder:
        model.save_pretrained(folder)
        found.checks["read back"] = check_read_back(model, load_trained(str(folder)))
        found.write(folder)
    return found


def said_by_folder(folder: Path) -> dict[str, Any]:
    """What the config.json beside the weights says, in timm's form or transformers'."""
    if not (folder / "config.json").is_file():
        return {}
    config = folder_config(folder)
    labels = config.get("id2label")
    names = [labels[key] for key in sorted(labels, key=int)] if labels else config.get("label_names")
    prepared = config.get("pretrained_cfg") or {}
    return {
        "architecture": config.get("architecture"),
        "model_args": dict(config.get("model_args") or {}),
        "class_names": names,
        "data_config": {key: prepared[key] for key in PREPARATION if prepared.get(key) is not None},
    }


def said_by_script(checkpoint: Any) -> dict[str, Any]:
    """What timm's training script writes beside the weights: `arch`, and its arguments as a Namespace."""
    if not isinstance(checkpoint, Mapping):
        return {}
    args = checkpoint.get("args")
    given = vars(args) if isinstance(args, argparse.Namespace) else {}
    channels = {} if given.get("in_chans") is None else {"in_chans": given["in_chans"]}
    return {
        "architecture": given.get("model") or checkpoint.get("arch"),
        "model_args": {**channels, **(given.get("model_kwargs") or {})},
        "data_config": {key: given[key] for key in PREPARATION if given.get(key) is not None},
    }


def used_weights(state: Mapping[str, Any], module: nn.Module, name: str) -> str:
    """That every weight was used; `timm_from_state` has seen to it also where timm renames them."""
    own = module.state_dict()
    if state.keys() == own.keys():
        return check_weights(state, own, name)
    return f"{len(state)} of {len(state)} weights used, as timm renames them"


@torch.no_grad()
def forward(model: Any) -> str:
    config = model.config.pretrained_cfg
    channels = model.config.model_args.get("in_chans", config["input_size"][0])
    size = model.config.model_args.get("img_size") or config["input_size"][1:]
    sides = [size, size] if isinstance(size, int) else list(size)
    draw = torch.Generator().manual_seed(0)
    return check_finite(model(torch.randn(2, channels, *sides, generator=draw)).logits, "the converted model")

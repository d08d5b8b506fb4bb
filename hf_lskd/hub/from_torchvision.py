"""torchvision's checkpoints, the paper's among them, as timm models; and back."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_lskd.errors import InputError
from hf_lskd.hub.conversion import Conversion, check_finite, check_read_back, check_weights, fresh_folder
from hf_lskd.hub.torchvision_names import (
    TIMM_NAMES,
    classes_of,
    nearest_by_weights,
    paired_names,
    preparation,
    renamed,
    torchvision_model,
    torchvision_name,
)
from hf_lskd.models import load_trained
from hf_lskd.models.timm_weights import create_timm
from hf_lskd.models.timm_wrapper import wrap_timm
from hf_lskd.models.weights_file import read_checkpoint, sha256_of, weights_in

CLOSE = 0.5  # share of weights in common from which one architecture is meant, and what differs is told
TOLERANCE = 1e-5  # of logits, beside the largest of them or 1
# torch's ImageNet example, which writes `arch` beside the weights, evaluates every model so; the paper's code comes from it.
EXAMPLE = {"input_size": [3, 224, 224], "crop_pct": 224 / 256, "interpolation": "bilinear"}


def convert_torchvision(
    source: Path, target: Path, *, architecture: str | None = None, class_names: Sequence[str] | None = None
) -> Conversion:
    """A folder for transformers and timm from a torchvision state dict, or from a checkpoint of torch's ImageNet example.

    The architecture is the one given, else the checkpoint's `arch`, else told by the weights. Raises InputError for files that
    cannot be read, an architecture that is not in the table, weights that do not fit, and a `target` with content.
    """
    checkpoint = read_checkpoint(source)
    state = weights_in(checkpoint, source)
    said = checkpoint.get("arch") if isinstance(checkpoint, Mapping) else None
    named = architecture or (said if isinstance(said, str) else None)
    name = chosen_architecture(source, state, named)
    classes = classes_of(state) or 1000  # of none the head is missing, which is told below
    with torch.device("meta"):
        shapes = torchvision_model(name, classes).state_dict()
    used = check_weights(state, shapes, f"torchvision's {name}{'' if named else ', the nearest architecture'}")
    check_names(class_names, classes)
    ours, module = both_models(name, classes)
    ours.load_state_dict(state)
    module.load_state_dict(renamed(state, paired_names(ours, module), module.state_dict()))
    data_config = preparation(name) | (EXAMPLE if isinstance(said, str) else {})
    model = wrap_timm(module, class_names=class_names, data_config=data_config)
    found = Conversion(
        "torchvision", source.name, {source.name: sha256_of(source)}, f"{name}, timm's {TIMM_NAMES[name]}"
    )
    found.checks = {"weights": used, **same_logits(ours, module, data_config)}
    found.remarks = [f"images: {', '.join(f'{key} {value}' for key, value in data_config.items())}"]
    with fresh_folder(target) as folder:
        model.save_pretrained(folder)
        found.checks["read back"] = check_read_back(model, load_trained(str(folder)))
        found.write(folder)
    return found


def write_torchvision(module: nn.Module, architecture: str, target: Path, found: Conversion) -> Conversion:
    """`target/NAME.pth`, a state dict for `torchvision.models.NAME`, from a timm module; the other way round.

    Raises InputError for an architecture that torchvision has no twin of, and for a `target` with content.
    """
    name = torchvision_name(architecture)
    ours, twin = both_models(name, int(module.num_classes))  # type: ignore[arg-type]
    state = module.state_dict()
    used = check_weights(state, twin.state_dict(), f"timm's {TIMM_NAMES[name]} as torchvision has it")
    back = {timm: own for own, timm in paired_names(ours, twin).items()}
    ours.load_state_dict(renamed(state, back, ours.state_dict()))
    found.checks |= {"weights": used, **same_logits(ours, module, preparation(name))}
    with fresh_folder(target) as folder:
        torch.save(ours.state_dict(), folder / f"{name}.pth")
        read = torchvision_model(name, int(module.num_classes))  # type: ignore[arg-type]
        read.load_state_dict(weights_in(read_checkpoint(folder / f"{name}.pth"), folder))
        found.checks["read back"] = check_read_back(ours, read)
        found.write(folder)
    return found


def chosen_architecture(source: Path, state: Mapping[str, Tensor], said: str | None) -> str:
    """torchvision's name of the architecture that was said, or that the weights tell: with some missing or too many, the nearest."""
    if said:
        return torchvision_name(said)
    name, share = nearest_by_weights(state)
    if share < CLOSE:
        keys = ", ".join(list(state)[:3])
        raise InputError(
            f"{source}: no architecture has weights of these names and shapes ({keys}, …)",
            f"weights of {', '.join(TIMM_NAMES)}",
            "--architecture NAME says what is missing.",
        )
    return name


def both_models(name: str, classes: int) -> tuple[nn.Module, nn.Module]:
    """torchvision's and timm's model of one architecture, evaluating."""
    return torchvision_model(name, classes).eval(), create_timm(TIMM_NAMES[name], num_classes=classes).eval()


def check_names(names: Sequence[str] | None, classes: int) -> None:
    if names is not None and len(names) != classes:
        raise InputError(f"{len(names)} class names for {classes} classes", "a name a class")


@torch.no_grad()
def same_logits(ours: nn.Module, theirs: nn.Module, data_config: Mapping[str, Any]) -> dict[str, str]:
    """That both libraries' models say the same of one random image; in words. Raises InputError for NaN.

    Raises RuntimeError when they differ: then one of the libraries has changed its model.
    """
    images = torch.randn(1, *data_config["input_size"], generator=torch.Generator().manual_seed(0))
    one, other = ours.eval()(images), theirs.eval()(images)
    finite = check_finite(other, "the converted model")
    difference = float((one - other).abs().max()) / max(1.0, float(one.abs().max()))
    if difference > TOLERANCE:
        raise RuntimeError(f"the logits of torchvision's and timm's model differ by {difference:.1e}")
    return {"forward": finite, "largest difference of logits, torchvision and timm": f"{difference:.1e}"}

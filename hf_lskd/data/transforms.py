"""From a picture to the model's input: the model's own preparation, the recipe's augmentation, and where chance comes from."""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_lskd.data.draft import DraftedCrop, Read
from hf_lskd.data.pictures import as_rgb
from hf_lskd.errors import InputError, nearest

AUGMENTATION_KEYS = ("random_resized_crop", "horizontal_flip", "rotation", "grayscale", "color_jitter", "shift")
STANDARD: dict[str, Any] = {"random_resized_crop": {}, "horizontal_flip": 0.5}
_CROP_DEFAULTS = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}
_JITTER_DEFAULTS = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation a channel, of pixels in [0, 1]; the model sees (pixel − mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def normalization_of(data_config: Mapping[str, Any]) -> Normalization:
    """The normalisation of a timm data config. Raises InputError unless it has three channels and positive std."""
    size = tuple(data_config["input_size"])
    mean, std = tuple(map(float, data_config["mean"])), tuple(map(float, data_config["std"]))
    if len(size) != 3 or size[0] != 3 or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise InputError(
            f"input_size {size}, mean {mean}, std {std}",
            "three channels (a grey image is repeated) and std above 0",
            "Build the model with in_chans=3: the pipelines of transformers hand it RGB.",
        )
    return Normalization(mean, std)


def evaluation_geometry(data_config: Mapping[str, Any]) -> Callable[[Image.Image], Image.Image]:
    """The resize and crop of timm's evaluation transform: RGB picture in, RGB picture of the model's size out."""
    from timm.data.transforms import MaybePILToTensor
    from timm.data.transforms_factory import transforms_imagenet_eval
    from torchvision.transforms import Compose

    whole = transforms_imagenet_eval(
        img_size=tuple(data_config["input_size"][1:]),
        crop_pct=data_config.get("crop_pct"),
        crop_mode=data_config.get("crop_mode"),
        interpolation=data_config.get("interpolation", "bicubic"),
        mean=tuple(data_config["mean"]),
        std=tuple(data_config["std"]),
        normalize=False,  # then the last step only makes a tensor of the picture, which is ours to do
    )
    return Compose([step for step in whole.transforms if not isinstance(step, MaybePILToTensor)])


def evaluation_transform(data_config: Mapping[str, Any]) -> "Prepare":
    """timm's evaluation transform for this data config: picture -> float32 [3, H, W], normalised."""
    geometry, normalization = evaluation_geometry(data_config), normalization_of(data_config)
    return Prepare([geometry], normalization)


def training_transform(data_config: Mapping[str, Any], augmentation: Mapping[str, Any] | str) -> "Prepare":
    """The augmentation followed by normalisation: picture -> float32 [3, H, W].

    `none` is the evaluation transform, `standard` a random resized crop and a horizontal flip as on ImageNet; a mapping
    has any of random_resized_crop {scale, ratio}, horizontal_flip (probability), rotation (degrees), grayscale
    (probability), color_jitter {brightness, contrast, saturation, hue}, shift (pixels). Without a random crop the
    picture is resized and cropped as in evaluation. It draws from the global generators: call it within `pure_random`.
    Raises InputError for unknown names and keys and for values out of range.
    """
    chosen = augmentation_of(augmentation)
    normalization = normalization_of(data_config)
    if not chosen:
        return evaluation_transform(data_config)
    return Prepare(_augmentation_steps(chosen, data_config), normalization)


def augmentation_of(augmentation: Mapping[str, Any] | str) -> dict[str, Any]:
    """The augmentation as a checked mapping, its defaults filled in; empty for `none`."""
    if augmentation in ("none", None):
        return {}
    if isinstance(augmentation, str):
        if augmentation != "standard":
            hint = nearest(augmentation, ["none", "standard"])
            raise InputError(f"data.augmentation: {augmentation!r}", "none, standard, or a mapping", hint)
        augmentation = STANDARD
    if not isinstance(augmentation, Mapping):
        raise InputError(f"data.augmentation: {augmentation!r}", "none, standard, or a mapping")
    _reject_unknown("data.augmentation", augmentation, AUGMENTATION_KEYS)
    chosen = {key: value for key, value in augmentation.items() if value is not None and value is not False}
    for key, value in chosen.items():
        chosen[key] = _CHECKS[key](f"data.augmentation.{key}", value)
    return chosen


@contextmanager
def pure_random(*key: int) -> Iterator[None]:
    """Chance as a function of `key` alone: the generators of `random`, numpy and torch (CPU) are seeded from it.

    On leaving, all three are as they were before.
    """
    with preserved_generators():
        seed_generators(*key)
        yield


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Whatever happens inside, the global generators of `random`, numpy and torch (CPU) are afterwards as before."""
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.default_generator.set_state(cpu)


def seed_generators(*key: int) -> None:
    """Seed the three global generators from `key`; not by torch.manual_seed, which would reach into the GPU's too."""
    random.seed(seed_of("python", *key))
    np.random.seed(seed_of("numpy", *key) % 2**32)
    torch.default_generator.manual_seed(seed_of("torch", *key))


def seed_of(purpose: str, *key: int) -> int:
    """A 63-bit seed: BLAKE2b over `purpose` and `key`, so neighbouring keys give unrelated streams."""
    text = ",".join([purpose, *(str(int(part)) for part in key)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


class Prepare:
    """Picture steps, then a normalised tensor. A class, not a closure, so that spawned workers can receive it."""

    def __init__(self, steps: Sequence[Callable[[Image.Image], Image.Image]], normalization: Normalization) -> None:
        from torchvision.transforms import v2

        self.steps = list(steps)
        self.normalization = normalization
        self.drafted = DraftedCrop(steps[0]) if isinstance(steps[0], v2.RandomResizedCrop) else None

    def __call__(self, picture: Image.Image) -> Tensor:
        return self._finish(as_rgb(picture), self.steps)

    def of_stored(self, read: Read) -> Tensor:
        """The same of a picture that is still encoded: where it is first cropped at random, see `draft.py`."""
        if self.drafted is None:
            return self(read(None))
        return self._finish(self.drafted(read), self.steps[1:])

    def _finish(self, picture: Image.Image, steps: Sequence[Callable[[Image.Image], Image.Image]]) -> Tensor:
        for step in steps:
            picture = step(picture)
        pixels = np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))  # in this order float arithmetic is fast
        return normalize(torch.from_numpy(pixels).unsqueeze(0), self.normalization)[0]


def normalize(pixels: Tensor, normalization: Normalization) -> Tensor:
    """uint8 [N, 3, H, W] (or [N, 1, H, W], repeated) -> float32 [N, 3, H, W]: (pixel / 255 − mean) / std."""
    mean = torch.tensor(normalization.mean).view(1, 3, 1, 1)
    std = torch.tensor(normalization.std).view(1, 3, 1, 1)
    return pixels.float().div_(255).sub(mean).div_(std)


def _augmentation_steps(chosen: Mapping[str, Any], data_config: Mapping[str, Any]) -> list[Callable[[Any], Any]]:
    """Geometry first, colour after it, in one fixed order whatever the order of the recipe's keys."""
    from timm.data.transforms import str_to_interp_mode
    from torchvision.transforms import v2

    height, width = data_config["input_size"][1:]
    interpolation = str_to_interp_mode(data_config.get("interpolation", "bicubic"))
    steps: list[Callable[[Any], Any]] = []
    if "random_resized_crop" in chosen:
        crop = chosen["random_resized_crop"]
        steps += [v2.RandomResizedCrop((height, width), crop["scale"], crop["ratio"], interpolation)]
    else:
        steps += [evaluation_geometry(data_config)]
    if "horizontal_flip" in chosen:
        steps += [v2.RandomHorizontalFlip(chosen["horizontal_flip"])]
    if "rotation" in chosen:
        steps += [v2.RandomRotation(chosen["rotation"], v2.InterpolationMode.BILINEAR)]
    if "shift" in chosen:
        steps += [v2.RandomCrop((height, width), padding=chosen["shift"])]
    if "color_jitter" in chosen:
        steps += [v2.ColorJitter(**chosen["color_jitter"])]
    if "grayscale" in chosen:
        steps += [v2.RandomGrayscale(chosen["grayscale"])]
    return steps


def _reject_unknown(where: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            raise InputError(f"{where}.{key}", ", ".join(known), nearest(str(key), known))


def _number(where: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{where}: {value!r}", f"a number from {low:g} to {high:g}")
    return float(value)


def _probability(where: str, value: Any) -> float:
    return 0.5 if value is True else _number(where, value, 0, 1)


def _degrees(where: str, value: Any) -> float:
    return _number(where, value, 0, 180)


def _pixels(where: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{where}: {value!r}", "a whole number of pixels, 0 or more")
    return value


def _crop(where: str, value: Any) -> dict[str, tuple[float, float]]:
    given = {} if value is True else value
    if not isinstance(given, Mapping):
        raise InputError(f"{where}: {value!r}", "a mapping with scale and ratio")
    _reject_unknown(where, given, list(_CROP_DEFAULTS))
    crop = {}
    for key, default in _CROP_DEFAULTS.items():
        pair, high = given.get(key, default), 1.0 if key == "scale" else 100.0
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise InputError(f"{where}.{key}: {pair!r}", "two numbers, [low, high]")
        low_high = tuple(_number(f"{where}.{key}", part, 1e-3, high) for part in pair)
        if low_high[0] > low_high[1]:
            raise InputError(f"{where}.{key}: {pair!r}", "two numbers, the lower one first")
        crop[key] = (low_high[0], low_high[1])
    return crop


def _jitter(where: str, value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: {value!r}", "a mapping with brightness, contrast, saturation, hue")
    _reject_unknown(where, value, list(_JITTER_DEFAULTS))
    filled = {**_JITTER_DEFAULTS, **value}
    return {key: _number(f"{where}.{key}", part, 0, 0.5 if key == "hue" else 10) for key, part in filled.items()}


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "random_resized_crop": _crop,
    "horizontal_flip": _probability,
    "rotation": _degrees,
    "grayscale": _probability,
    "color_jitter": _jitter,
    "shift": _pixels,
}

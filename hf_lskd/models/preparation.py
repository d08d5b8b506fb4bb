"""How a model wants its images: statistics and sizes from timm's configurations, image processors and data sets."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
PROCESSOR_FILE = "preprocessor_config.json"


def normalization_of(source: Any) -> Statistics | None:
    """(mean, std) per channel, for pixels in [0, 1], that `source` prepares its images with; None where it does not say.

    `source` is a data set, an image processor, or a model: a timm model holds its configuration, another transformers model
    remembers where it was loaded from, and the image processor lies there.
    """
    own = getattr(source, "normalization", None)
    if own is not None:
        return tuple(own.mean), tuple(own.std)
    for holder in (source, getattr(source, "config", None)):
        config = getattr(holder, "data_config", None) or getattr(holder, "pretrained_cfg", None)
        if config is not None:
            return in_floats(dict(config).get("mean"), dict(config).get("std"))
    if hasattr(source, "do_normalize"):
        return statistics_of_processor(source)
    if getattr(source, "main_input_name", None) != "pixel_values":
        return None
    processor = stored_processor(getattr(source, "name_or_path", None))
    return None if processor is None else normalization_of(processor)


def in_floats(mean: Any, std: Any) -> Statistics | None:
    if mean is None or std is None:
        return None
    return tuple(map(float, mean)), tuple(map(float, std))


def statistics_of_processor(processor: Any) -> Statistics | None:
    """(mean, std) of everything that a transformers image processor does to the values of a pixel in [0, 1].

    None where that is more than a shift and a scale (channels in another order). `rescale_offset` and `include_top` are
    EfficientNet's: images in [-1, 1], and a second division by the standard deviation.
    """
    if getattr(processor, "do_flip_channel_order", False):
        return None
    scale = 255 * processor.rescale_factor if getattr(processor, "do_rescale", False) else 255.0
    scale = 1.0 if math.isclose(scale, 1.0) else scale
    offset = 1.0 if getattr(processor, "rescale_offset", False) else 0.0
    mean, std = per_channel(0.0), per_channel(1.0)
    if processor.do_normalize:
        if processor.image_mean is None or processor.image_std is None:
            return None
        mean, std = per_channel(processor.image_mean), per_channel(processor.image_std)
    twice = std if getattr(processor, "include_top", False) else (1.0,) * len(std)
    return tuple((m + offset) / scale for m in mean), tuple(s * t / scale for s, t in zip(std, twice))


def per_channel(values: Any) -> tuple[float, ...]:
    return (float(values),) * 3 if isinstance(values, int | float) else tuple(map(float, values))


def stored_processor(name: str | None) -> Any:
    """The image processor that lies with a model in a folder or on the Hub; None when there is none or it cannot be read."""
    if not name or (Path(name).exists() and not (Path(name) / PROCESSOR_FILE).is_file()):
        return None
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(name)
    except (
        Exception
    ):  # no processor there, no connection, or one of a library that is not installed: then it is unknown
        return None


def data_config_of(processor: Any) -> dict[str, Any]:
    """timm's keys (input_size, mean, std, interpolation, crop_pct) from a transformers image processor, as far as they are told."""
    config: dict[str, Any] = {}
    statistics = statistics_of_processor(processor) if hasattr(processor, "do_normalize") else None
    if statistics is not None:
        config["mean"], config["std"] = statistics
    crop = dict(getattr(processor, "crop_size", None) or {}) if getattr(processor, "do_center_crop", False) else {}
    size = dict(getattr(processor, "size", None) or {})
    side = crop.get("height") or size.get("height") or size.get("shortest_edge")
    if side:
        config["input_size"] = (3, side, crop.get("width") or size.get("width") or side)
        ratio = getattr(processor, "crop_pct", None) or side / (size.get("shortest_edge") or size.get("height") or side)
        config["crop_pct"] = min(ratio, 1.0)
    names = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
    resample = getattr(processor, "resample", None)
    if resample in names:
        config["interpolation"] = names[resample]
    return config


def image_processor(data_config: Mapping[str, Any]) -> Any:
    """A transformers image processor that prepares images as `data_config` (timm's keys) says: resize, centre crop, normalise."""
    from PIL import Image
    from transformers import BitImageProcessor

    height, width = data_config["input_size"][-2:]
    return BitImageProcessor(
        size={"shortest_edge": math.floor(min(height, width) / data_config.get("crop_pct", 1.0))},
        crop_size={"height": height, "width": width},
        resample=Image.Resampling[data_config.get("interpolation", "bicubic").upper()],
        image_mean=list(data_config["mean"]),
        image_std=list(data_config["std"]),
        do_convert_rgb=True,
    )

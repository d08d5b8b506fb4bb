"""Encoded image files -> Pillow pictures of mode L or RGB, the right way up."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from hf_lskd.errors import InputError

Choose = Callable[[int, int], int]  # (width, height) of the whole picture -> 1, 2, 4 or 8: decode it that much smaller
ORIENTATION = 0x0112


class PictureError(InputError):
    """A picture that cannot be read, named by its path."""

    def __init__(self, received: str, allowed: str = "", hint: str = "") -> None:
        # A data loader raises a worker's error again as type(text of its traceback); the last line is the message.
        super().__init__(received.rsplit("PictureError: ", 1)[-1].strip(), allowed, hint)


def open_picture(value: Any, where: str, choose: Choose | None = None) -> Image.Image:
    """The picture of `value`: bytes, a path, or a mapping with `bytes` and `path` as `datasets` stores it.

    `choose` is asked, before anything is decoded, how much smaller a JPEG may be decoded: pixel (x, y) of the result stands
    for n × n pixels from (n·x, n·y) on. It is not asked for other formats, nor for a JPEG that its EXIF tag turns.
    Raises PictureError that begins with the path (or with `where`, for a picture without one) when it cannot be read.
    """
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, None)
    if isinstance(value, bytes):
        content = value
    elif isinstance(value, str | Path):
        path = str(value)
    name = f"{path} ({where})" if path else where
    if content is None and not path:
        raise PictureError(f"{where} has no picture ({type(value).__name__})", "encoded bytes or a path")
    try:
        with Image.open(io.BytesIO(content) if content is not None else str(path)) as picture:
            if choose is not None:
                shrink(picture, choose)
            picture.load()
            return grey_or_rgb(picture)
    # Pillow's decoders raise SyntaxError and ValueError too on damaged files; a decompression bomb is one as well.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise PictureError(
            f"{name} cannot be read as an image ({type(error).__name__}: {error})",
            "whole files of a format that Pillow reads",
            "Remove or replace this file.",
        ) from error


def shrink(picture: Image.Image, choose: Choose) -> None:
    """Set the scale that a JPEG, not yet decoded, is going to be decoded at."""
    if picture.format != "JPEG" or picture.getexif().get(ORIENTATION, 1) != 1:
        return
    width, height = picture.size
    divisor = choose(width, height)
    if divisor > 1:
        picture.draft(None, (width // divisor, height // divisor))


def grey_or_rgb(picture: Image.Image) -> Image.Image:
    """Turned upright by its EXIF tag, on white where it is transparent, 16-bit grey scaled to 8; mode L or RGB.

    Raises ValueError for mode F, whose range nobody knows.
    """
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode == "F":
        raise ValueError("mode F (32-bit float) has no known range: save it as 8-bit grey")
    if picture.mode.startswith("I"):
        # Pillow's own conversion would clip 16-bit values at 255 instead of scaling them.
        return Image.fromarray((np.asarray(picture).clip(0, 65535) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        grey = picture.mode in ("LA", "La", "L", "1")
        layers = picture.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
        return upright.convert("L") if grey else upright
    if picture.mode in ("L", "1"):
        return picture if picture.mode == "L" else picture.convert("L")
    return as_rgb(picture)


def as_rgb(picture: Image.Image) -> Image.Image:
    """The picture in mode RGB; itself when it has it, since Pillow's own conversion would copy it."""
    return picture if picture.mode == "RGB" else picture.convert("RGB")

"""Drawing the letters of one font face, the same bytes on every machine with the same font, Pillow and FreeType.

FreeType works in fixed point. The affine maps are rounded to multiples of 2^-10, which makes the interpolation exact in
float64 (no rounding, so no difference between processors that fuse multiplications and those that do not), and the
reduction by 4 is integer arithmetic. Random numbers are Python's `random.Random`, whose stream is promised to stay.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features
from PIL import __version__ as pillow_version

from hf_lskd.data.fonts import FontFace

DRAWING = 2  # to be raised with every change that changes a pixel
OVERSAMPLING = 4
EM = 3  # pixels of the em a pixel of the image, before the reduction
SLANTS, X_SCALES, Y_SCALES = (-0.2, 0.3), (0.8, 1.15), (0.85, 1.05)
STROKES = (0.0, 0.5, 1.0, 1.5, 2.0)  # pixels at 60 pixels an em


@dataclass(frozen=True)
class Variant:
    """Shear (to the right, per unit of height), scales, and the width in pixels (at 60 an em) that thickens the strokes."""

    slant: float = 0.0
    x_scale: float = 1.0
    y_scale: float = 1.0
    stroke: float = 0.0


def drawing_versions() -> dict[str, str]:
    """What besides font and parameters determines the pixels."""
    return {"drawing": str(DRAWING), "pillow": pillow_version, "freetype": str(features.version("freetype2"))}


def variants_of(face: FontFace, count: int, seed: int) -> list[Variant]:
    """The font as it is, then `count` random variants, drawn once for the font and the same for all letters."""
    draw = random.Random(f"{seed}/{face.name}")
    return [Variant()] + [
        Variant(
            draw.uniform(*SLANTS), draw.uniform(*X_SCALES), draw.uniform(*Y_SCALES), STROKES[int(5 * draw.random())]
        )
        for _ in range(count)
    ]


def draw_face(face: FontFace, letters: Sequence[str], *, size: int, variants: int, seed: int) -> np.ndarray:
    """White letters on black: uint8 [1 + variants, letters, size, size].

    An em is 3·size pixels on a canvas of 4·size, reduced by 4, with one baseline a third of an em below the middle: scale
    and baseline are the same for all fonts, so capitals, small letters and the height of marks stay comparable. Sideways,
    letters are centred on their ink. What would not fit is moved, then narrowed or flattened, never cut.
    Raises OSError for a face that has no outlines of this size.
    """
    em = EM * size
    font = ImageFont.truetype(str(face.path), em, index=face.index, layout_engine=ImageFont.Layout.BASIC)
    boxes = [font.getbbox(letter, anchor="ls") for letter in letters]
    drawn = variants_of(face, variants, seed)
    pixels = np.zeros((len(drawn), len(letters), size, size), np.uint8)
    for column, (letter, box) in enumerate(zip(letters, boxes)):
        masks: dict[float, Image.Image] = {}
        for row, variant in enumerate(drawn):
            stroke = variant.stroke * em / 60
            if stroke not in masks:
                masks[stroke] = _mask(font, letter, box, stroke, _margin(size))
            pixels[row, column] = _place(masks[stroke], box, variant, size)
    return pixels


def _margin(size: int) -> int:
    return 4 + size // 8  # room for the widest stroke and for interpolation


def _mask(font: ImageFont.FreeTypeFont, letter: str, box: Sequence[float], stroke: float, margin: int) -> Image.Image:
    """The letter at full size; the box of its unstroked ink lies at (margin, margin)."""
    left, top, right, bottom = (int(edge) for edge in box)
    mask = Image.new("L", (right - left + 2 * margin, bottom - top + 2 * margin))
    origin = (margin - left, margin - top)
    ImageDraw.Draw(mask).text(origin, letter, fill=255, font=font, anchor="ls", stroke_width=stroke)
    return mask


def _place(mask: Image.Image, box: Sequence[float], variant: Variant, size: int) -> np.ndarray:
    """The mask under the variant's affine map, reduced to uint8 [size, size]."""
    canvas, margin, em = OVERSAMPLING * size, _margin(size), EM * size
    room = canvas - size / 5  # leaves the widest stroke inside
    left, top, right, bottom = box
    tall = (bottom - top) * variant.y_scale
    wide = (right - left + abs(variant.slant) * (bottom - top)) * variant.x_scale
    x_scale = variant.x_scale * min(1.0, room / max(wide, 1))
    y_scale = variant.y_scale * min(1.0, room / max(tall, 1))
    # The middle of the ink goes to (canvas / 2, middle): as high over the common baseline as the room allows.
    half = y_scale * (bottom - top) / 2
    middle = canvas / 2 + y_scale * ((top + bottom) / 2 + em / 3)
    middle = min(max(middle, (canvas - room) / 2 + half), (canvas + room) / 2 - half)
    # Pillow wants the inverse map, canvas to mask: x = a·u + b·v + c, y = e·v + f.
    a, e = _exact(1 / x_scale), _exact(1 / y_scale)
    b = _exact(variant.slant * e)
    c = _exact(margin + (right - left) / 2 - a * canvas / 2 - b * middle)
    f = _exact(margin + (bottom - top) / 2 - e * middle)
    placed = mask.transform((canvas, canvas), Image.Transform.AFFINE, (a, b, c, 0, e, f), Image.Resampling.BILINEAR)
    return np.asarray(placed.reduce(OVERSAMPLING))


def _exact(value: float) -> float:
    return round(value * 1024) / 1024

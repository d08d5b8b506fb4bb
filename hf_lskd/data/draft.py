"""JPEGs decoded at half, a quarter or an eighth of their size where the random crop is still at least as large as the target.

The crop is drawn in the coordinates of the whole picture, from the same chance, whatever the scale: which part of a picture
an example shows is a pure function of (data seed, epoch, index) with and without it, and later transforms draw the same.
What differs is the resampling: n × n pixels are averaged by the JPEG decoder's own inverse transform before the resize does
the rest. Pictures whose crop is too small for it, other formats, and evaluation are decoded whole, to the same last bit.
"""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from hf_lskd.data.pictures import Choose, as_rgb

Read = Callable[[Choose | None], Image.Image]
DIVISORS = (8, 4, 2)  # what libjpeg can decode at, and Pillow asks it for


class DraftedCrop:
    """torchvision's `v2.RandomResizedCrop` of a picture that has not been decoded yet."""

    def __init__(self, crop: Any) -> None:
        self.crop = crop
        self.height, self.width = crop.size

    def __call__(self, read: Read) -> Image.Image:
        """The crop, RGB, of the target's size; `read(choose)` opens the picture as `open_picture` does."""
        drawn: dict[str, int] = {}
        divisor = 1

        def choose(width: int, height: int) -> int:
            nonlocal divisor
            drawn.update(self.draw(width, height))
            divisor = largest_divisor(drawn["width"], drawn["height"], self.width, self.height)
            return divisor

        picture = as_rgb(read(choose))
        if not drawn:  # nobody asked: the picture is whole
            drawn.update(self.draw(*picture.size))
        if divisor == 1:
            return self.crop.transform(picture, drawn)
        left, top = drawn["left"] / divisor, drawn["top"] / divisor
        box = (left, top, left + drawn["width"] / divisor, top + drawn["height"] / divisor)
        return picture.resize((self.width, self.height), resample_of(self.crop), box=box)

    def draw(self, width: int, height: int) -> dict[str, int]:
        """top, left, height and width of the crop in a whole picture; it draws from torch's generator as the crop does."""
        return self.crop.make_params([torch.empty((3, height, width), device="meta")])


def largest_divisor(width: int, height: int, target_width: int, target_height: int) -> int:
    """The most by which a crop of `width` × `height` can be divided and still be at least the target; 1, 2, 4 or 8."""
    fits = (n for n in DIVISORS if width >= n * target_width and height >= n * target_height)
    return next(fits, 1)


def resample_of(crop: Any) -> Image.Resampling:
    """Pillow's filter for the crop's interpolation."""
    from torchvision.transforms.functional import pil_modes_mapping

    return Image.Resampling(pil_modes_mapping[crop.interpolation])

"""JPEGs decoded at a reduced scale: the same part of the picture, nearly the same pixels, and only where it is allowed."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_lskd.data import ImageDataset
from hf_lskd.data.draft import largest_divisor
from hf_lskd.data.image_files import FolderImages, as_names
from hf_lskd.data.pictures import open_picture
from tests.imagenet_files import jpeg, picture

CONFIG: dict[str, Any] = {
    "input_size": (3, 32, 32), "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear", "crop_pct": 0.875,
}  # fmt: skip
EVERYTHING = {"random_resized_crop": {"scale": (0.3, 1.0)}, "horizontal_flip": 0.5, "rotation": 20, "grayscale": 0.3}
Make = Callable[..., ImageDataset]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A data set of the files given by name, with and without `draft`."""

    def made(
        contents: dict[str, bytes], *, draft: bool, augmentation: Any = EVERYTHING, train: bool = True
    ) -> ImageDataset:
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
        images = FolderImages(tmp_path, as_names(list(contents)), np.zeros(len(contents), np.int64), draft)
        return ImageDataset(images, CONFIG, augmentation=augmentation, train=train, num_classes=2)

    return made


def tensors(dataset: ImageDataset, epochs: int = 4) -> torch.Tensor:
    keys = [(epoch, index) for epoch in range(epochs) for index in range(len(dataset))]
    return torch.stack([item["pixel_values"] for item in dataset.__getitems__(keys)])


LARGE = {f"{k}.jpg": jpeg(k, width=301, height=203) for k in range(3)} | {
    "grey.jpg": jpeg(7, "L", width=260, height=260),
    "cmyk.jpg": jpeg(8, "CMYK", width=280, height=200),
}


def test_the_same_part_is_shown_and_the_same_is_done_to_it(make: Make) -> None:
    """Nearly equal pixels under a crop, a flip, a rotation and a grey conversion: all of them were drawn alike."""
    whole, drafted = tensors(make(LARGE, draft=False)), tensors(make(LARGE, draft=True))
    assert not torch.equal(whole, drafted)
    gap = 255 * (whole - drafted).abs().mean(dim=(1, 2, 3))
    assert float(gap.max()) < 3
    other = 255 * (whole - whole.roll(len(LARGE), 0)).abs().mean(dim=(1, 2, 3))  # the same pictures, of other epochs
    assert float(other.min()) > 3 * float(gap.max())


def test_it_is_a_pure_function_of_epoch_and_index(make: Make) -> None:
    dataset = make(LARGE, draft=True)
    first = tensors(dataset)
    torch.rand(5)
    alone = torch.stack(
        [dataset[(epoch, index)]["pixel_values"] for epoch in range(4) for index in range(len(dataset))]
    )
    assert torch.equal(first, alone)


def test_it_leaves_the_callers_chance_alone(make: Make) -> None:
    state = torch.get_rng_state()
    tensors(make(LARGE, draft=True), epochs=1)
    assert torch.equal(state, torch.get_rng_state())


def test_pictures_that_are_not_decoded_smaller_are_equal_to_the_last_bit(make: Make) -> None:
    """Crops under twice the target, other formats, and JPEGs that a tag turns: those are decoded whole."""
    png, turned = io.BytesIO(), io.BytesIO()
    Image.fromarray(picture(1, 300, 200)).save(png, "png")
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.fromarray(picture(2, 300, 200)).save(turned, "jpeg", exif=tag)
    files = {"small.jpg": jpeg(3, width=63, height=63), "a.png": png.getvalue(), "turned.jpg": turned.getvalue()}
    assert torch.equal(tensors(make(files, draft=False)), tensors(make(files, draft=True)))


def test_evaluation_and_training_without_a_random_crop_decode_the_whole_picture(make: Make) -> None:
    for options in ({"train": False}, {"augmentation": "none"}, {"augmentation": {"horizontal_flip": 0.5}}):
        assert torch.equal(tensors(make(LARGE, draft=False, **options)), tensors(make(LARGE, draft=True, **options)))


@pytest.mark.parametrize("target", [(16, 16), (20, 33)])
def test_the_crop_stays_at_least_the_target_and_no_larger_divisor_would_do(target: tuple[int, int]) -> None:
    for width in range(1, 300, 7):
        for height in range(1, 300, 11):
            found = largest_divisor(width, height, *target)
            able = [n for n in (1, 2, 4, 8) if n == 1 or (width / n >= target[0] and height / n >= target[1])]
            assert found == max(able)


@pytest.mark.parametrize("size", [(301, 203), (16, 17), (9, 8), (255, 257)])
@pytest.mark.parametrize("divisor", [1, 2, 4, 8])
def test_a_picture_has_the_size_that_was_chosen_and_each_pixel_is_the_mean_of_a_square(
    size: tuple[int, int], divisor: int
) -> None:
    width, height = size
    asked: list[tuple[int, int]] = []

    def choose(*of: int) -> int:
        asked.append(of)
        return divisor

    content = jpeg(5, width=width, height=height)
    small = open_picture(content, "x", choose)
    assert asked == [size]
    assert small.size == (-(-width // divisor), -(-height // divisor))
    if min(size) < 100:  # a tiny picture changes too much from pixel to pixel, and colour is kept for every second only
        return
    whole = np.asarray(open_picture(content, "x"), float)
    rows, columns = height // divisor * divisor, width // divisor * divisor
    means = whole[:rows, :columns].reshape(rows // divisor, divisor, columns // divisor, divisor, 3).mean((1, 3))
    ours = np.asarray(small, float)[: rows // divisor, : columns // divisor]
    assert np.abs(ours - means).mean() < 4

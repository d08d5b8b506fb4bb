"""Transforms: the model's own preparation, augmentation by name, and chance as a function of a key."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_lskd.data.transforms import (
    augmentation_of,
    evaluation_transform,
    pure_random,
    training_transform,
)
from hf_lskd.errors import InputError

CONFIG: dict[str, Any] = {
    "input_size": (3, 32, 32),
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.25, 0.3),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}


def picture(height: int = 50, width: int = 70, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def generator_states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(3, 32, 32), (3, 24, 40)])
def test_evaluation_is_timms_own_transform(crop_mode: str, size: tuple[int, int, int]) -> None:
    from timm.data import create_transform

    config = {**CONFIG, "crop_mode": crop_mode, "input_size": size}
    expected = create_transform(**{k: v for k, v in config.items() if k != "crop_mode"}, crop_mode=crop_mode)
    assert torch.equal(evaluation_transform(config)(picture()), expected(picture()))


def test_a_grey_picture_is_repeated_over_the_three_channels() -> None:
    config = {**CONFIG, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    shown = evaluation_transform(config)(picture().convert("L"))
    assert shown.shape == (3, 32, 32)
    assert shown.dtype == torch.float32
    assert torch.equal(shown[0], shown[1])
    assert torch.equal(shown[0], shown[2])


def test_standard_augmentation_is_a_resized_crop_and_a_flip_at_the_models_size() -> None:
    written_out = {"random_resized_crop": {"scale": [0.08, 1.0], "ratio": [3 / 4, 4 / 3]}, "horizontal_flip": 0.5}
    standard, same = training_transform(CONFIG, "standard"), training_transform(CONFIG, written_out)
    for key in range(5):
        with pure_random(key):
            first = standard(picture())
        with pure_random(key):
            second = same(picture())
        assert first.shape == (3, 32, 32)
        assert torch.equal(first, second)


def test_a_horizontal_flip_of_probability_one_mirrors_the_evaluation_image() -> None:
    flipped = training_transform(CONFIG, {"horizontal_flip": 1.0})(picture())
    assert torch.equal(flipped, evaluation_transform(CONFIG)(picture()).flip(2))


def test_shift_moves_by_at_most_its_pixels_and_fills_with_black() -> None:
    config = {**CONFIG, "input_size": (3, 9, 9), "crop_pct": 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    dot = np.zeros((9, 9, 3), np.uint8)
    dot[4, 4] = 255
    seen = set()
    for key in range(60):
        with pure_random(key):
            shifted = training_transform(config, {"shift": 1})(Image.fromarray(dot))
        assert shifted.sum() == 3
        seen.add(tuple(torch.nonzero(shifted[0])[0].tolist()))
    assert seen == {(y, x) for y in (3, 4, 5) for x in (3, 4, 5)}


def test_grayscale_of_probability_one_leaves_no_colour() -> None:
    config = {**CONFIG, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    grey = training_transform(config, {"grayscale": 1.0})(picture())
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])


@pytest.mark.parametrize(
    "augmentation",
    ["standard", {"rotation": 20}, {"shift": 3}, {"color_jitter": {"brightness": 0.4, "hue": 0.1}}, {"grayscale": 0.5}],
)
def test_augmentation_depends_on_the_key_alone(augmentation: Any) -> None:
    transform = training_transform(CONFIG, augmentation)
    drawn = []
    for key in [(0, 0, i) for i in range(8)] + [(0, 1, 0), (1, 0, 0)]:
        with pure_random(*key):
            first = transform(picture())
        random.seed(99), np.random.seed(99), torch.manual_seed(99)
        with pure_random(*key):
            again = transform(picture())
        assert torch.equal(first, again)
        drawn.append(first)
    assert len({image.numpy().tobytes() for image in drawn}) > 1


def test_trap_28_pure_random_leaves_the_global_generators_as_they_were() -> None:
    before = generator_states()
    with pure_random(1, 2, 3):
        random.random(), np.random.rand(), torch.rand(3)
        torch.randn(1)
    assert generator_states() == before
    with pytest.raises(InputError), pure_random(4):
        augmentation_of(str(random.random()))
    assert generator_states() == before


def test_each_generator_gets_its_own_stream_and_keys_are_not_joined() -> None:
    with pure_random(1, 23):
        first = random.random(), float(np.random.rand()), float(torch.rand(1))
    with pure_random(12, 3):
        second = random.random(), float(np.random.rand()), float(torch.rand(1))
    assert len({*first, *second}) == 6


@pytest.mark.parametrize(
    ("augmentation", "match"),
    [
        ("standart", "standart.*Did you mean 'standard'"),
        (3, "augmentation: 3.*none, standard, or a mapping"),
        ({"horizontal_flp": 0.5}, "horizontal_flp.*Did you mean 'horizontal_flip'"),
        ({"horizontal_flip": 1.5}, r"horizontal_flip: 1\.5.*0 to 1"),
        ({"horizontal_flip": float("nan")}, "horizontal_flip: nan"),
        ({"rotation": "a lot"}, "rotation: 'a lot'.*number from 0 to 180"),
        ({"shift": -1}, "shift: -1.*whole number of pixels"),
        ({"random_resized_crop": {"scales": [0.1, 1]}}, "scales.*Did you mean 'scale'"),
        ({"random_resized_crop": {"scale": [0.5]}}, r"scale: \[0\.5\].*two numbers"),
        ({"random_resized_crop": {"scale": [0.9, 0.5]}}, "lower one first"),
        ({"random_resized_crop": 0.5}, r"random_resized_crop: 0\.5.*mapping with scale and ratio"),
        ({"color_jitter": {"hue": 0.7}}, r"hue: 0\.7.*0 to 0\.5"),
        ({"color_jitter": {"colour": 0.7}}, "colour.*brightness, contrast, saturation, hue"),
        ({"color_jitter": 0.4}, "color_jitter: 0.4.*mapping"),
    ],
)
def test_a_wrong_augmentation_is_refused_with_what_is_allowed(augmentation: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        training_transform(CONFIG, augmentation)


def test_none_is_no_augmentation() -> None:
    assert augmentation_of("none") == {}
    assert augmentation_of({"rotation": None, "horizontal_flip": False}) == {}
    assert torch.equal(training_transform(CONFIG, "none")(picture()), evaluation_transform(CONFIG)(picture()))


@pytest.mark.parametrize(
    "change", [{"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,)}, {"std": (0.2, 0.0, 0.2)}, {"mean": (0.5, 0.5)}]
)
def test_other_than_three_channels_or_a_zero_std_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"three channels"):
        evaluation_transform({**CONFIG, **change})

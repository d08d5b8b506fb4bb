"""The one door to all sources, the digits, and pictures of every kind."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from hf_lskd.data import load_images
from hf_lskd.data.images import ArrayImages, ImageSource, fingerprint_of
from hf_lskd.data.pictures import PictureError, grey_or_rgb, open_picture
from hf_lskd.errors import InputError

CHANCE = np.random.default_rng(0)
GREY = CHANCE.integers(0, 256, (6, 9), dtype=np.uint8)
COLOUR = CHANCE.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encoded(picture: Image.Image, kind: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_an_unknown_source_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'glyph'.*glyphs, digits, idx, dataset.*Did you mean 'glyphs'"):
        load_images({"source": "glyph"})
    with pytest.raises(InputError, match=r"None.*glyphs, digits"):
        load_images({})


def test_an_unknown_key_names_the_nearest_and_common_keys_are_known() -> None:
    common = {
        "image_size": 16,
        "mean": None,
        "std": None,
        "augmentation": "none",
        "mixup": 0,
        "cutmix": 0,
        "crop_pct": 1,
    }
    assert len(load_images({"source": "digits", **common}).class_names) == 10
    with pytest.raises(InputError, match=r"data.validaton .*Did you mean 'validation'"):
        load_images({"source": "digits", "validaton": 0.1})


def test_digits_hold_out_a_share_of_every_class() -> None:
    source = load_images({"source": "digits", "validation": 0.25, "seed": 1})
    counts = np.bincount(load_digits().target)
    assert np.bincount(source.validation.labels).tolist() == [round(0.25 * n) for n in counts]
    assert len(source.train) + len(source.validation) == 1797
    assert source.train.pixels is not None
    assert source.train.pixels.shape[1:] == (8, 8)
    assert (source.train.pixels.min(), source.train.pixels.max()) == (0, 255)


def test_digits_are_split_by_the_seed_alone_and_never_share_an_example() -> None:
    first, again, other = (load_images({"source": "digits", "seed": seed}) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    everything = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    both = np.concatenate([first.train.pixels, first.validation.pixels])
    assert sorted(x.tobytes() for x in both) == sorted(x.tobytes() for x in everything)


@pytest.mark.parametrize("share", [0, 1, -0.2, "half", True])
def test_a_share_outside_is_refused(share: Any) -> None:
    with pytest.raises(InputError, match=r"data\.validation.*\(0, 1\)"):
        load_images({"source": "digits", "validation": share})


def test_a_source_checks_its_labels_and_classes() -> None:
    def source(train: list[int], names: tuple[str, ...] = ("a", "b"), groups: Any = None) -> ImageSource:
        splits = [
            ArrayImages(np.zeros((len(labels), 2, 2), np.uint8), np.array(labels, int)) for labels in (train, [0, 1])
        ]
        return ImageSource(splits[0], splits[1], names, groups, "", "")

    assert len(source([0, 1]).train) == 2
    with pytest.raises(InputError, match=r"train split: 1 labels out of range, the first is -1 of example 1.*0 to 1"):
        source([0, -1, 1])
    with pytest.raises(InputError, match=r"train split: 1 of 2 classes have no example: 'b'"):
        source([0, 0])
    with pytest.raises(InputError, match=r"train split is empty"):
        source([])
    with pytest.raises(InputError, match=r"1 classes.*at least 2"):
        source([0], ("a",))
    with pytest.raises(InputError, match=r"given twice: a"):
        source([0, 1], ("a", "a"))
    with pytest.raises(InputError, match=r"1 entries.*one a class: 2"):
        source([0, 1], groups=("x",))


def test_arrays_of_another_type_or_length_are_refused() -> None:
    with pytest.raises(InputError, match=r"float64\[2, 3, 3\].*uint8"):
        ArrayImages(np.zeros((2, 3, 3)), np.zeros(2))
    with pytest.raises(InputError, match=r"2 images with 3 labels"):
        ArrayImages(np.zeros((2, 3, 3), np.uint8), np.zeros(3))


def test_fingerprints_do_not_collide_by_joining() -> None:
    assert fingerprint_of(["ab", "c"]) != fingerprint_of(["a", "bc"])


def test_grey_and_colour_stay_what_they_are() -> None:
    assert np.array_equal(np.asarray(open_picture(encoded(Image.fromarray(GREY)), "x")), GREY)
    assert np.array_equal(np.asarray(open_picture(encoded(Image.fromarray(COLOUR)), "x")), COLOUR)


def test_a_palette_becomes_its_colours() -> None:
    palette = Image.fromarray(COLOUR).quantize(8)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(np.asarray(open_picture({"bytes": encoded(palette), "path": None}, "x")), expected)


def test_transparent_pixels_are_white() -> None:
    layers = np.dstack([COLOUR, np.zeros((6, 9), np.uint8)])
    layers[:, :4, 3] = 255
    shown = np.asarray(open_picture(encoded(Image.fromarray(layers, "RGBA")), "x"))
    assert np.array_equal(shown[:, :4], COLOUR[:, :4])
    assert (shown[:, 4:] == 255).all()
    grey = Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (9, 6), 255)])
    assert np.array_equal(np.asarray(open_picture(encoded(grey), "x")), GREY)


def test_a_transparent_palette_colour_is_white() -> None:
    palette = Image.new("P", (4, 2))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    shown = np.asarray(open_picture(encoded(palette, transparency=0), "x"))
    assert shown[0, 1].tolist() == [200, 100, 50]
    assert shown[0, 0].tolist() == [255, 255, 255]


def test_cmyk_becomes_rgb() -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    shown = open_picture(encoded(ink, "jpeg", quality=100), "x")
    assert shown.mode == "RGB"
    np.testing.assert_allclose(np.asarray(shown)[8, 8], [255, 0, 0], atol=4)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    wide = Image.fromarray(GREY.astype(np.uint16) * 256 + 77)
    shown = open_picture(encoded(wide), "x")
    assert shown.mode == "L"
    assert np.array_equal(np.asarray(shown), GREY)


def test_one_bit_pictures_are_black_and_white() -> None:
    bits = Image.fromarray(GREY > 127)
    assert np.array_equal(np.asarray(open_picture(encoded(bits), "x")), np.where(GREY > 127, 255, 0))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (6, lambda x: np.rot90(x, -1)),
        (8, lambda x: np.rot90(x)),
    ],
)
def test_a_turned_picture_is_set_upright(orientation: int, upright: Any) -> None:
    picture = Image.fromarray(COLOUR)
    exif = picture.getexif()
    exif[0x0112] = orientation
    shown = np.asarray(open_picture(encoded(picture, exif=exif), "x"))
    assert np.array_equal(shown, upright(COLOUR))


def test_a_damaged_picture_is_named_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    noise = Image.fromarray(CHANCE.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(encoded(noise)[:3000])
    with pytest.raises(PictureError, match=r"broken\.png \(example 3\) cannot be read.*Remove or replace"):
        open_picture({"bytes": None, "path": str(path)}, "example 3")
    path.write_bytes(b"no picture at all")
    with pytest.raises(PictureError, match=r"broken\.png"):
        open_picture(str(path), "example 3")
    with pytest.raises(PictureError, match=r"gone\.png.*cannot be read"):
        open_picture(str(tmp_path / "gone.png"), "example 3")
    with pytest.raises(PictureError, match=r"example 3 cannot be read"):
        open_picture(b"\x89PNG\r\n\x1a\n1234", "example 3")
    with pytest.raises(PictureError, match=r"example 3 has no picture"):
        open_picture({"bytes": None, "path": None}, "example 3")


def test_pictures_of_unknown_range_are_refused() -> None:
    with pytest.raises(PictureError, match=r"mode F.*save it as 8-bit grey"):
        open_picture(encoded(Image.fromarray(GREY.astype(np.float32)), "tiff"), "example 0")


def test_a_picture_error_keeps_its_message_between_processes() -> None:
    error = PictureError("a.png cannot be read", "whole files", "Replace it.")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_grey_or_rgb_accepts_what_is_right_already() -> None:
    assert grey_or_rgb(Image.fromarray(GREY)).mode == "L"
    assert grey_or_rgb(Image.fromarray(COLOUR).convert("YCbCr")).mode == "RGB"

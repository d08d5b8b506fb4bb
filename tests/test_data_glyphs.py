"""Glyphs: the demo's data, drawn the same everywhere, kept safely, split by font."""

import logging
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from hf_lskd.data import ImageSource, glyph_drawing, load_images
from hf_lskd.data.fonts import FontFace, font_files
from hf_lskd.data.glyph_drawing import Variant, draw_face, variants_of
from hf_lskd.data.glyphs import MATPLOTLIB_HELD_OUT, base_letter, letters_of
from hf_lskd.errors import InputError

TTF = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FEW = "AÀaàĄą"
Load = Callable[..., ImageSource]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    return load_images({"source": "glyphs"}, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def loaded(**options: Any) -> ImageSource:
        return load_images({"source": "glyphs", "letters": FEW, **options}, cache_dir=tmp_path / "cache")

    return loaded


class Watched:
    """Stands for a mask and remembers the map that is asked of it."""

    map: tuple[float, ...]

    def __init__(self, mask: Image.Image) -> None:
        self.mask = mask

    def transform(self, size: Any, method: Any, data: tuple[float, ...], resample: Any) -> Image.Image:
        self.map = data
        return self.mask.transform(size, method, data, resample)


def font_folder(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        shutil.copy(TTF / f"{name}.ttf", folder)
    return folder


def test_the_demo_has_141_letters_of_12_and_4_fonts_in_8_variants(demo: ImageSource) -> None:
    assert len(demo.class_names) == 141
    assert (len(demo.train), len(demo.validation)) == (12 * 8 * 141, 4 * 8 * 141) == (13536, 4512)
    for split, count in ((demo.train, 12 * 8), (demo.validation, 4 * 8)):
        assert split.pixels is not None
        assert split.pixels.shape[1:] == (20, 20)
        assert split.pixels.dtype == np.uint8
        assert np.bincount(split.labels).tolist() == [count] * 141
    for name in MATPLOTLIB_HELD_OUT:
        assert name in demo.description


def test_the_groups_are_base_letters_with_at_least_five_members(demo: ImageSource) -> None:
    assert demo.groups is not None
    for letter, group in zip(demo.class_names, demo.groups):
        assert unicodedata.normalize("NFD", letter).startswith(group)
    sizes = {group: demo.groups.count(group) for group in demo.groups}
    assert min(sizes.values()) == 5
    assert sizes["a"] == 10
    assert (base_letter("Ǻ"), base_letter("z")) == ("A", "z")


def test_no_image_is_in_both_splits_and_none_is_empty(demo: ImageSource) -> None:
    assert demo.train.pixels is not None
    assert demo.validation.pixels is not None
    seen = {image.tobytes() for image in demo.train.pixels}
    assert not any(image.tobytes() in seen for image in demo.validation.pixels)
    assert demo.train.pixels.any(axis=(1, 2)).all()


def test_letters_keep_one_baseline_and_scale(demo: ImageSource) -> None:
    """The plain variant of the first font: a capital reaches higher than a small letter, a mark higher than both."""
    assert demo.train.pixels is not None
    rows = {name: np.flatnonzero(demo.train.pixels[k].max(1) > 60) for k, name in enumerate(demo.class_names)}
    assert rows["Á"].min() < rows["A"].min() < rows["a"].min()
    assert abs(rows["A"].max() - rows["a"].max()) <= 1
    assert rows["ą"].max() > rows["a"].max()


def test_two_processes_draw_the_same_bytes(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hf_lskd.data import load_images;"
        f"print(load_images({{'source': 'glyphs', 'letters': {FEW!r}}}, cache_dir=Path(sys.argv[1])).fingerprint)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", code, str(tmp_path / "there")]
    there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    here = load_images({"source": "glyphs", "letters": FEW}, cache_dir=tmp_path / "here").fingerprint
    assert len(here) == 64
    assert there == here


def test_the_affine_map_is_exact_so_no_processor_can_differ() -> None:
    """Pillow's interpolation in floating point against the same in fractions, for a slanted and scaled letter."""
    face = FontFace(TTF / "DejaVuSerif.ttf", 0, "DejaVuSerif", "DejaVu Serif")
    variant = variants_of(face, 1, 0)[1]
    assert variant.slant
    mask = Image.fromarray(np.random.default_rng(0).integers(0, 256, (52, 47), dtype=np.uint8))
    watched = Watched(mask)
    placed = glyph_drawing._place(watched, (-1, -38, 34, 2), variant, 20)  # type: ignore[arg-type]
    source, (a, b, c, d, e, f) = np.asarray(mask).astype(int), watched.map
    assert all(float(1024 * part).is_integer() for part in watched.map)  # else float64 would have to round

    def pixel(x: int, y: int) -> int:
        height, width = source.shape
        return int(source[min(max(y, 0), height - 1), min(max(x, 0), width - 1)])

    def interpolated(u: int, v: int) -> int:
        centre = Fraction(u) + Fraction(1, 2), Fraction(v) + Fraction(1, 2)
        x = Fraction(a) * centre[0] + Fraction(b) * centre[1] + Fraction(c)
        y = Fraction(d) * centre[0] + Fraction(e) * centre[1] + Fraction(f)
        if not (0 <= x < source.shape[1] and 0 <= y < source.shape[0]):
            return 0
        x, y = x - Fraction(1, 2), y - Fraction(1, 2)
        left, top = floor(x), floor(y)
        rows = [pixel(left, row) * (1 - x + left) + pixel(left + 1, row) * (x - left) for row in (top, top + 1)]
        return floor(rows[0] * (1 - y + top) + rows[1] * (y - top))

    full = np.array([[interpolated(u, v) for u in range(80)] for v in range(80)])
    sums = full.reshape(20, 4, 20, 4).sum(axis=(1, 3))
    np.testing.assert_array_equal(placed, (sums + 8) // 16)


def test_variants_are_drawn_once_a_font_and_the_first_is_the_font_itself() -> None:
    face = FontFace(TTF / "DejaVuSans.ttf", 0, "DejaVuSans", "DejaVu Sans")
    assert variants_of(face, 7, 0)[0] == Variant()
    assert len(set(variants_of(face, 7, 0))) == 8
    assert variants_of(face, 7, 0) == variants_of(face, 7, 0) != variants_of(face, 7, 1)
    both = draw_face(face, "AO", size=20, variants=2, seed=0)
    np.testing.assert_array_equal(draw_face(face, "O", size=20, variants=2, seed=0)[:, 0], both[:, 1])


@pytest.mark.parametrize("size", [8, 20, 32])
def test_nothing_is_cut_at_any_size(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An affine map multiplies the ink by its determinant; where ink is cut, some is missing. W is wide, Ő and Ų are tall."""
    place, shares = glyph_drawing._place, []

    def weighed(mask: Image.Image, box: Any, variant: Variant, size: int) -> np.ndarray:
        watched = Watched(mask)
        placed = place(watched, box, variant, size)  # type: ignore[arg-type]
        ink = np.asarray(mask).astype(float)
        assert not ink[[0, -1]].any()
        assert not ink[:, [0, -1]].any()
        shares.append(16 * placed.sum(dtype=float) * watched.map[0] * watched.map[4] / ink.sum())
        return placed

    monkeypatch.setattr(glyph_drawing, "_place", weighed)
    for name in ("STIXGeneralBol", "DejaVuSerif-BoldItalic"):
        draw_face(FontFace(TTF / f"{name}.ttf", 0, name, ""), "WÆŐŮŲĢ", size=size, variants=20, seed=0)
    np.testing.assert_allclose(shares, 1, atol=0.03)


def test_the_second_time_comes_from_the_cache(tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load()
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.suffix == ".npz"
    monkeypatch.setattr("hf_lskd.data.glyphs.draw_face", None)
    assert load().fingerprint == first.fingerprint


def test_each_setting_that_changes_the_pictures_has_its_own_cache_entry(tmp_path: Path, load: Load) -> None:
    prints = {
        load(**change).fingerprint for change in ({}, {"size": 16}, {"variants": 2}, {"seed": 1}, {"letters": "Aa"})
    }
    assert len(prints) == 5
    assert len(list((tmp_path / "cache").iterdir())) == 5
    other_split = load(held_out=["DejaVuSans"])
    assert other_split.fingerprint not in prints
    assert len(list((tmp_path / "cache").iterdir())) == 5


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-400] + bytes(400)])
def test_a_damaged_cache_is_drawn_again(
    tmp_path: Path, load: Load, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    first = load()
    (kept,) = (tmp_path / "cache").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING, "hf_lskd.data.cache"):
        assert load().fingerprint == first.fingerprint
    assert "made again" in caplog.text
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [kept.name]
    assert np.load(kept)["pixels"].shape[0] == 16


def test_flipped_pixels_in_the_cache_are_noticed(tmp_path: Path, load: Load) -> None:
    first = load()
    (kept,) = (tmp_path / "cache").iterdir()
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 255
    kept.write_bytes(bytes(content))
    assert load().fingerprint == first.fingerprint


def test_without_a_place_to_keep_it_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("")
    with caplog.at_level(logging.WARNING, "hf_lskd.data.cache"):
        source = load_images({"source": "glyphs", "letters": FEW, "variants": 0}, cache_dir=blocked / "cache")
    assert len(source.train) == 12 * len(FEW)
    assert "HF_LSKD_CACHE" in caplog.text


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_LSKD_CACHE", str(tmp_path / "elsewhere"))
    load_images({"source": "glyphs", "letters": FEW, "variants": 0})
    assert len(list((tmp_path / "elsewhere").glob("glyphs-*.npz"))) == 1


def test_a_folder_gives_the_same_pictures_as_matplotlib(tmp_path: Path, load: Load) -> None:
    names = [file.path.stem for file in font_files("matplotlib")]
    folder = font_folder(tmp_path / "fonts", *names)
    assert load(fonts=str(folder), held_out=list(MATPLOTLIB_HELD_OUT)).fingerprint == load().fingerprint


def test_a_folder_holds_out_whole_families(tmp_path: Path, load: Load) -> None:
    names = ["DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "STIXGeneral", "STIXGeneralBol"]
    folder = str(font_folder(tmp_path / "fonts", *names))
    for options in ({}, {"held_out": 0.2}, {"held_out": 0.2, "seed": 3}):
        source = load(fonts=folder, **options)
        assert len(source.validation) == 2 * 8 * len(FEW)
        held = source.description.split("(")[1].split(")")[0].split(", ")
        assert len({name.split("-")[0].removesuffix("Bol") for name in held}) == 1
    assert len(load(fonts=folder, held_out=0.5).validation) == 4 * 8 * len(FEW)
    assert "(DejaVuSerif-Bold, DejaVuSerif)" in load(fonts=folder, held_out=["DejaVu Serif"]).description


def test_the_faces_of_a_collection_are_fonts_of_their_own(tmp_path: Path, load: Load) -> None:
    from fontTools.ttLib import TTCollection, TTFont

    names = ["DejaVuSans", "cmr10", "STIXGeneral"]
    both = TTCollection()
    both.fonts = [TTFont(TTF / f"{name}.ttf") for name in names]
    (tmp_path / "fonts").mkdir()
    both.save(tmp_path / "fonts" / "both.ttc")
    both.close()
    source = load(fonts=str(tmp_path / "fonts"), held_out=["STIXGeneral"])
    assert "(both#2)" in source.description
    alone = load(fonts=str(font_folder(tmp_path / "alone", "DejaVuSans", "STIXGeneral")), held_out=["STIXGeneral"])
    assert source.train.pixels is not None
    assert alone.train.pixels is not None
    plain = slice(0, len(FEW))  # the random variants differ, since they hang on the font's name
    np.testing.assert_array_equal(source.train.pixels[plain], alone.train.pixels[plain])


def test_unfit_fonts_are_left_out_with_the_reason(tmp_path: Path, load: Load, caplog: pytest.LogCaptureFixture) -> None:
    folder = font_folder(tmp_path / "fonts", "DejaVuSans", "STIXGeneral", "cmr10", "LastResortHE-Regular")
    shutil.copy(TTF / "DejaVuSans.ttf", folder / "same-file.ttf")
    (folder / "same-drawing.ttf").write_bytes((TTF / "STIXGeneral.ttf").read_bytes() + b"\0")
    (folder / "broken.ttf").write_bytes((TTF / "DejaVuSerif.ttf").read_bytes()[:5000])
    (folder / "notes.txt").write_text("no font")
    with caplog.at_level(logging.INFO, "hf_lskd.data.glyphs"):
        source = load(fonts=str(folder), held_out=0.5)
    assert (len(source.train), len(source.validation)) == (8 * len(FEW),) * 2
    for reason in ("cmr10 lacks à", "LastResortHE-Regular draws boxes", "draws the same as STIXGeneral", "broken"):
        assert reason in caplog.text


def test_no_usable_font_says_why_and_what_to_do(tmp_path: Path, load: Load) -> None:
    folder = font_folder(tmp_path / "fonts", "cmr10", "LastResortHE-Regular")
    with pytest.raises(
        InputError, match=r"0 usable fonts \(LastResort.*boxes.*cmr10 lacks.*at least 2 fonts.*matplotlib"
    ):
        load(fonts=str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no font file in .*empty.*matplotlib. always works"):
        load(fonts=str(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"'nowhere' is not a folder.*matplotlib, system"):
        load(fonts="nowhere")
    one = font_folder(tmp_path / "one", "DejaVuSans", "DejaVuSans-Bold")
    with pytest.raises(InputError, match=r"holds out 0 of 2 fonts in 1 families.*another family"):
        load(fonts=str(one))


def test_system_fonts_are_those_of_the_usual_folders(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of folders is matplotlib's; here it is a home of our own, so that the machine's fonts do not matter."""
    home = font_folder(tmp_path / "fonts", "DejaVuSans", "DejaVuSerif")
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [str(path) for path in home.iterdir()])
    assert len(load(fonts="system").train) == 8 * len(FEW)
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", list)
    with pytest.raises(InputError, match=r"no font file in the system's font folders"):
        load(fonts="system")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"letters": "A"}, "1 letters.*at least 2"),
        ({"letters": "AbA"}, r"\['A'\] twice"),
        ({"letters": "A b"}, r"\[' '\] are no letters"),
        ({"letters": None, "min_group": 0}, "min_group: 0.*at least 1"),
        ({"letters": None, "min_group": 99}, "min_group: 99.*1 to "),
        ({"size": 4}, "size: 4.*at least 8"),
        ({"variants": -1}, "variants: -1"),
        ({"seed": 1.5}, r"seed: 1\.5.*whole number"),
        ({"held_out": ["DejaVuSanz"]}, "'DejaVuSanz'.*Did you mean 'DejaVuSans'"),
        ({"held_out": []}, r"held_out: \[\].*fraction in \(0, 1\)"),
        ({"held_out": 1.0}, r"held_out: 1\.0"),
        ({"held_out": "DejaVuSans"}, "held_out: 'DejaVuSans'.*a list"),
        ({"held_out": ["DejaVu Sans", "DejaVu Sans Mono", "DejaVu Serif", "STIXGeneral"]}, "holds out 16 of 16"),
        ({"font": "system"}, "data.font .*Did you mean 'fonts'"),
    ],
)
def test_wrong_options_are_refused(load: Load, options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        load(**options)


def test_letters_that_no_font_has_are_a_clear_error(load: Load) -> None:
    with pytest.raises(InputError, match=r"0 usable fonts .*lacks 漢.*fewer `letters`"):
        load(letters="漢字")


def test_the_letters_given_are_the_classes_in_their_order(load: Load) -> None:
    source = load(letters="zaÀ")
    assert (source.class_names, source.groups) == (("z", "a", "À"), ("z", "a", "A"))
    decomposed = unicodedata.normalize("NFD", "zaÀ")
    assert letters_of(decomposed) == ["z", "a", "À"]


def test_a_smaller_group_size_brings_more_letters() -> None:
    accented = [chr(point) for point in range(0xC0, 0x17F) if unicodedata.category(chr(point)).startswith("L")]
    assert [len(letters_of(None, minimum)) for minimum in (5, 1)] == [141, 26 + 26 + len(accented)]

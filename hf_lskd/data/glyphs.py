"""Letters of the fonts that are at hand: a fine-grained image task that any machine can make.

Letters with the same base letter after canonical decomposition (a á à â …) are a semantic group. Fonts are split, images
never are. The drawing itself is `glyph_drawing.py`; here is what is drawn, how it is kept, and how it is split.
"""

import hashlib
import json
import logging
import math
import random
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_lskd.data.cache import default_cache_dir, read_arrays, write_arrays
from hf_lskd.data.fonts import FontFace, FontFile, faces_with, font_files
from hf_lskd.data.glyph_drawing import draw_face, drawing_versions
from hf_lskd.data.images import ArrayImages, ImageSource, fingerprint_of, source_options, whole_number
from hf_lskd.errors import InputError, nearest

logger = logging.getLogger(__name__)

DEFAULTS: dict[str, Any] = {
    "fonts": "matplotlib",
    "letters": None,
    "size": 20,
    "variants": 7,
    "held_out": None,
    "seed": 0,
    "min_group": 5,
}
MATPLOTLIB_HELD_OUT = ("DejaVuSansMono-Bold", "DejaVuSansMono-BoldOblique", "STIXGeneralBol", "STIXGeneralBolIta")
DEFAULT_HELD_OUT_FRACTION = 0.2


@dataclass(frozen=True)
class Rendering:
    """Every usable face drawn: pixels uint8 [faces, 1 + variants, letters, size, size]; `skipped` says why others are not."""

    names: tuple[str, ...]
    families: tuple[str, ...]
    skipped: tuple[str, ...]
    pixels: np.ndarray


def load_glyphs(data: Mapping[str, Any], *, cache_dir: Path | None = None) -> ImageSource:
    """Letters as classes, base letters as groups, whole fonts held out for validation.

    `letters` null takes the letters of A–Z, a–z and U+00C0–017E whose base letter has at least `min_group` of them
    (141 by default); a string takes just its letters. `held_out` is a list of font names (file stems) or families, or
    the fraction of fonts to hold out in whole families; by default four named fonts of matplotlib's 16, else a fifth.
    Raises InputError when letters, fonts or held-out fonts cannot be used.
    """
    options = source_options(data, DEFAULTS)
    letters = letters_of(options["letters"], options["min_group"])
    size, variants = whole_number(options, "size", 8), whole_number(options, "variants", 0)
    seed = whole_number(options, "seed", 0)
    fonts = str(options["fonts"])
    rendering = _rendered(font_files(fonts), letters, size, variants, seed, cache_dir or default_cache_dir())
    for reason in rendering.skipped:
        logger.info("glyphs: font left out: %s", reason)
    if len(rendering.names) < 2:
        reasons = "; ".join(rendering.skipped[:4]) + ("; …" if len(rendering.skipped) > 4 else "")
        raise InputError(
            f"data.fonts: {fonts!r} has {len(rendering.names)} usable fonts ({reasons or 'no other was found'})",
            f"at least 2 fonts that draw all {len(letters)} letters differently",
            "Use `fonts: matplotlib`, another folder, or fewer `letters`.",
        )
    held_out = _held_out(options["held_out"], fonts, rendering, seed)
    splits = [_split(rendering, [index not in held_out for index in range(len(rendering.names))])]
    splits += [_split(rendering, [index in held_out for index in range(len(rendering.names))])]
    names = [rendering.names[index] for index in held_out]
    return ImageSource(
        train=splits[0],
        validation=splits[1],
        class_names=tuple(letters),
        groups=tuple(base_letter(letter) for letter in letters),
        fingerprint=fingerprint_of(["glyphs", "".join(letters), splits[0].digest(), splits[1].digest()]),
        description=f"glyphs: {len(letters)} letters, {len(rendering.names) - len(names)} fonts for training, "
        f"{len(names)} held out ({', '.join(names[:6])}{', …' if len(names) > 6 else ''}), "
        f"{1 + variants} variants a font, {size}×{size} grey",
    )


def base_letter(letter: str) -> str:
    """The letter without its marks: the first code point of its canonical decomposition (NFD)."""
    return unicodedata.normalize("NFD", letter)[0]


def letters_of(letters: str | None, min_group: Any = 5) -> list[str]:
    """The letters to draw, in code-point order when they are chosen here, else in the order given.

    Raises InputError for characters that are no letters, letters given twice, or fewer than two.
    """
    if letters is None:
        minimum = whole_number({"min_group": min_group}, "min_group", 1)
        points = [*range(ord("A"), ord("Z") + 1), *range(ord("a"), ord("z") + 1), *range(0xC0, 0x17F)]
        pool = [chr(point) for point in points if chr(point).isalpha()]
        members = Counter(base_letter(letter) for letter in pool)
        chosen = [letter for letter in pool if members[base_letter(letter)] >= minimum]
        if not chosen:
            largest = max(members.values())
            raise InputError(f"data.min_group: {min_group}", f"1 to {largest}, the size of the largest group")
        return chosen
    given = list(unicodedata.normalize("NFC", str(letters)))
    wrong = [character for character in given if not character.isalnum()]
    twice = sorted(character for character, count in Counter(given).items() if count > 1)
    if wrong or twice or len(given) < 2:
        problem = f"{wrong[:5]} are no letters" if wrong else f"{twice[:5]} twice" if twice else f"{len(given)} letters"
        raise InputError(f"data.letters: {problem}", "a string of at least 2 different letters or digits, no spaces")
    return given


def _held_out(held_out: Any, fonts: str, rendering: Rendering, seed: int) -> list[int]:
    """Indices of the held-out faces: some, not all."""
    if held_out is None:
        held_out = list(MATPLOTLIB_HELD_OUT) if fonts == "matplotlib" else DEFAULT_HELD_OUT_FRACTION
    if isinstance(held_out, float) and 0 < held_out < 1:
        chosen = _whole_families(rendering.families, held_out, seed)
    elif isinstance(held_out, Sequence) and not isinstance(held_out, str) and held_out:
        chosen = _named(rendering, [str(name) for name in held_out])
    else:
        raise InputError(f"data.held_out: {held_out!r}", "a list of font names or families, or a fraction in (0, 1)")
    if not 0 < len(chosen) < len(rendering.names):
        raise InputError(
            f"data.held_out: {held_out!r} holds out {len(chosen)} of {len(rendering.names)} fonts in "
            f"{len(set(rendering.families))} families",
            "at least one font to train with and one held out",
            "Add fonts of another family, or name the fonts to hold out.",
        )
    return chosen


def _whole_families(families: Sequence[str], fraction: float, seed: int) -> list[int]:
    """Faces of randomly chosen families, the fewest that reach `fraction` of all faces; one family always stays."""
    order = sorted(set(families))
    random.Random(f"held out/{seed}").shuffle(order)
    wanted, chosen = math.ceil(fraction * len(families)), set[str]()
    for family in order[:-1]:
        if sum(families.count(name) for name in chosen) >= wanted:
            break
        chosen.add(family)
    return [index for index, family in enumerate(families) if family in chosen]


def _named(rendering: Rendering, wanted: Sequence[str]) -> list[int]:
    known = [*rendering.names, *dict.fromkeys(rendering.families)]
    for name in wanted:
        if name not in known:
            reason = next((reason for reason in rendering.skipped if reason.startswith(name)), "")
            hint = f"Left out: {reason}." if reason else nearest(name, known)
            raise InputError(
                f"data.held_out: {name!r}", ", ".join(known[:40]) + (", …" if len(known) > 40 else ""), hint
            )
    pairs = enumerate(zip(rendering.names, rendering.families))
    return [index for index, (name, family) in pairs if name in wanted or family in wanted]


def _split(rendering: Rendering, taken: Sequence[bool]) -> ArrayImages:
    """The images of the faces that are taken, in the order face, variant, letter."""
    pixels = rendering.pixels[np.asarray(taken)]
    faces, variants, letters, size, _ = pixels.shape
    return ArrayImages(pixels.reshape(-1, size, size), np.tile(np.arange(letters), faces * variants))


def _rendered(
    files: Sequence[FontFile], letters: Sequence[str], size: int, variants: int, seed: int, cache_dir: Path
) -> Rendering:
    """The rendering from the cache, else a new one that is then kept there."""
    what = {
        "fonts": [[file.path.name, file.sha256] for file in files],
        "letters": "".join(letters),
        "size": size,
        "variants": variants,
        "seed": seed,
        **drawing_versions(),
    }
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    path = cache_dir / f"glyphs-{key[:32]}.npz"
    kept = _read_cache(path)
    if kept is None:
        kept = _render(files, letters, size, variants, seed)
        _write_cache(path, kept)
    return kept


def _render(files: Sequence[FontFile], letters: Sequence[str], size: int, variants: int, seed: int) -> Rendering:
    drawn: dict[FontFace, np.ndarray] = {}
    seen: dict[bytes, str] = {}
    skipped: list[str] = []
    for file in files:
        faces, reasons = faces_with(file, letters)
        skipped += reasons
        for face in faces:
            try:
                pixels = draw_face(face, letters, size=size, variants=variants, seed=seed)
            except OSError as error:
                skipped.append(f"{face.name} cannot be drawn ({error})")
                continue
            reason = _unfit(pixels[0], seen)
            if reason:
                skipped.append(f"{face.name} {reason}")
                continue
            seen[pixels[0].tobytes()] = face.name
            drawn[face] = pixels
    nothing = np.zeros((0, 1 + variants, len(letters), size, size), np.uint8)
    return Rendering(
        names=tuple(face.name for face in drawn),
        families=tuple(face.family for face in drawn),
        skipped=tuple(skipped),
        pixels=np.stack(list(drawn.values())) if drawn else nothing,
    )


def _unfit(plain: np.ndarray, seen: Mapping[bytes, str]) -> str:
    """Why the letters [letters, size, size] of a face cannot be classes; empty when they can."""
    if not plain.any(axis=(1, 2)).all():
        return "draws nothing for some letters"
    different = len({image.tobytes() for image in plain})
    if different < len(plain):
        return f"draws boxes, or the same for several letters ({different} pictures for {len(plain)} letters)"
    if plain.tobytes() in seen:
        return f"draws the same as {seen[plain.tobytes()]}"
    return ""


def _read_cache(path: Path) -> Rendering | None:
    """What was kept at `path`; None when there is nothing of use."""
    kept = read_arrays(path)
    if kept is None or not {"names", "families", "skipped", "pixels"} <= kept.keys():
        return None
    names, families, skipped = (tuple(str(x) for x in kept[key]) for key in ("names", "families", "skipped"))
    return Rendering(names, families, skipped, kept["pixels"])


def _write_cache(path: Path, rendering: Rendering) -> None:
    texts = {key: np.array(getattr(rendering, key), dtype=str) for key in ("names", "families", "skipped")}
    write_arrays(path, {"pixels": rendering.pixels, **texts})

"""Which font files there are, and which of their faces hold given letters."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_lskd.errors import InputError

SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
# Of the fonts that matplotlib brings, these families hold Latin letters with accents; the others are symbols or boxes.
MATPLOTLIB_PATTERNS = ("DejaVuSans*.ttf", "DejaVuSerif*.ttf", "STIXGeneral*.ttf")


@dataclass(frozen=True)
class FontFile:
    """A font file and the SHA-256 (hex) of its bytes."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class FontFace:
    """One face of a font file: `name` is the file's stem (with #index for later faces of a collection)."""

    path: Path
    index: int
    name: str
    family: str


def font_files(fonts: str) -> list[FontFile]:
    """The font files of `matplotlib`, of the `system`, or of a folder (searched deeply); equal files count once.

    The order depends on the files' names and contents only, never on where they lie.
    Raises InputError for a folder that is missing or holds no font file.
    """
    if fonts == "matplotlib":
        import matplotlib

        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        paths = [path for pattern in MATPLOTLIB_PATTERNS for path in folder.glob(pattern)]
    elif fonts == "system":
        from matplotlib.font_manager import findSystemFonts

        paths = [Path(path) for path in findSystemFonts() if path.lower().endswith(SUFFIXES)]
    else:
        folder = Path(fonts).expanduser()
        if not folder.is_dir():
            raise InputError(f"data.fonts: {fonts!r} is not a folder", "matplotlib, system, or a folder of fonts")
        paths = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not paths:
        where = "the system's font folders" if fonts == "system" else str(fonts)
        raise InputError(
            f"data.fonts: no font file in {where}",
            f"files ending in {', '.join(SUFFIXES)}",
            "`fonts: matplotlib` always works.",
        )
    readable = [path for path in paths if os.access(path, os.R_OK)]
    found = sorted((path.name, hashlib.sha256(path.read_bytes()).hexdigest(), path) for path in readable)
    by_content: dict[str, FontFile] = {}
    for _, sha256, path in found:
        by_content.setdefault(sha256, FontFile(path, sha256))
    return list(by_content.values())


def faces_with(file: FontFile, letters: Sequence[str]) -> tuple[list[FontFace], list[str]]:
    """The faces of `file` that map every letter to a glyph, and one reason for each face that does not."""
    from fontTools.ttLib import TTCollection, TTFont

    collection = file.path.suffix.lower() in (".ttc", ".otc")
    try:
        with (TTCollection if collection else TTFont)(str(file.path), lazy=True) as opened:
            faces, reasons = [], []
            for index, font in enumerate(opened.fonts if collection else [opened]):
                name = file.path.stem + (f"#{index}" if index else "")
                characters = font.getBestCmap() or {}
                lacking = [letter for letter in letters if ord(letter) not in characters]
                if lacking:
                    reasons.append(f"{name} lacks {''.join(lacking[:5])}{'…' if len(lacking) > 5 else ''}")
                    continue
                family = font["name"].getDebugName(16) or font["name"].getDebugName(1) or name
                faces.append(FontFace(file.path, index, name, str(family)))
            return faces, reasons
    # fontTools raises whatever its table readers meet in a damaged file, from struct.error to KeyError.
    except Exception as error:
        return [], [f"{file.path.name} cannot be read ({type(error).__name__}: {error})"]

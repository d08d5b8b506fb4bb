"""Parallel text on disk: TSV, JSONL or two text files, plain or gzip; every mistake named with file and line."""

import gzip
import json
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_lskd.data.pairs import Pairs, ParallelSource
from hf_lskd.errors import InputError

logger = logging.getLogger(__name__)

LONGEST = 10_000  # words of a line: more is no sentence
UMLAUTS = frozenset("äöüßÄÖÜ")
CYRILLIC = frozenset(("ru", "uk", "bg", "be", "mk"))


def load_text(data: Mapping[str, Any]) -> ParallelSource:
    """The splits that `data` names: train, and validation and test where given.

    Without `validation`, `validation_pairs` sentences are drawn from training by a hash of (seed, source), and whatever shares
    their source or target leaves training. Warns when the sides look swapped. Raises InputError with file and line.
    """
    source, target = data["source_lang"], data["target_lang"]
    train = read_pairs(data["train"], source, target)
    warn_if_swapped(train, source, target)
    test = None if data.get("test") is None else read_pairs(data["test"], source, target)
    if data.get("validation") is not None:
        validation = read_pairs(data["validation"], source, target)
    else:
        train, validation = held_out(train, data["validation_pairs"], data["seed"])
    counts = {"train": len(train), "validation": len(validation), "test": 0 if test is None else len(test)}
    return ParallelSource(train, validation, source, target, test, {"corpus": "text", "pairs": counts})


def read_pairs(place: str | Sequence[str], source: str, target: str) -> Pairs:
    """The pairs of one file (TSV, or JSONL by its name), or of two text files line by line."""
    if isinstance(place, str):
        path = Path(place)
        as_json = path.name.removesuffix(".gz").endswith((".jsonl", ".json"))
        rows = [
            json_pair(line, f"{path}:{number}", source, target) if as_json else tab_pair(line, f"{path}:{number}")
            for number, line in lines_of(path)
        ]
        return Pairs([row[0] for row in rows], [row[1] for row in rows])
    sides = [[checked(line, f"{path}:{number}") for number, line in lines_of(Path(path))] for path in place]
    if len(sides[0]) != len(sides[1]):
        shorter = min(range(2), key=lambda i: len(sides[i]))
        raise InputError(
            f"{place[0]} with {len(sides[0])} lines and {place[1]} with {len(sides[1])}",
            "as many lines in both",
            f"{place[shorter]} ends at line {len(sides[shorter])}.",
        )
    return Pairs(*sides)


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of each line of a UTF-8 file, gzip or plain. Lines end with \\n or \\r\\n and with nothing else."""
    content = read_bytes(path)
    if not content.strip():
        raise InputError(f"{path} is empty", "parallel text, a pair a line")
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
        try:
            text = line.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            byte = f"0x{line[error.start]:02x}"
            raise InputError(
                f"{path}:{number}: byte {byte} is not UTF-8", "UTF-8 text", "Convert it: iconv -t UTF-8."
            ) from error
        if "\0" in text:
            raise InputError(f"{path}:{number}: a NUL byte", "UTF-8 text")
        yield number, text


def read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is damaged or cut off ({error})", "a whole gzip file") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", "a file of parallel text") from error


def tab_pair(line: str, where: str) -> tuple[str, str]:
    parts = line.split("\t")
    if len(parts) != 2:
        raise InputError(f"{where}: {len(parts) - 1} tabs", "source, one tab, target")
    return checked(parts[0], where, "source"), checked(parts[1], where, "target")


def json_pair(line: str, where: str, source: str, target: str) -> tuple[str, str]:
    """{"source", "target"}, {"en", "de"}, or either under "translation"."""
    allowed = f'{{"source": "…", "target": "…"}} or {{"{source}": "…", "{target}": "…"}}'
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: no JSON ({error})", allowed) from error
    row = row.get("translation", row) if isinstance(row, dict) else row
    for names in (("source", "target"), (source, target)):
        if isinstance(row, dict) and all(isinstance(row.get(name), str) for name in names):
            return checked(row[names[0]], where, names[0]), checked(row[names[1]], where, names[1])
    raise InputError(f"{where}: no pair of texts", allowed)


def checked(text: str, where: str, side: str = "line") -> str:
    if not text.strip():
        raise InputError(f"{where}: an empty {side}", "text on both sides", "Take the pair out on both sides.")
    words = text.count(" ") + 1
    if words > LONGEST:
        raise InputError(
            f"{where}: a {side} of {words} words", f"at most {LONGEST}", "Is the file split into sentences?"
        )
    return text


def held_out(pairs: Pairs, count: int, seed: int) -> tuple[Pairs, Pairs]:
    """(training, validation): `count` pairs of different sources, chosen by a hash, and what training keeps without them."""
    places: dict[str, int] = {}
    for i, source in enumerate(pairs.sources):
        places.setdefault(source, i)
    order = sorted(places, key=lambda source: (zlib.crc32(f"{seed}|{source}".encode()), source))
    chosen = sorted(places[source] for source in order[:count])
    sources, targets = ({side[i] for i in chosen} for side in (pairs.sources, pairs.targets))
    left = [i for i in range(len(pairs)) if pairs.sources[i] not in sources and pairs.targets[i] not in targets]
    if len(chosen) < count or not left:
        raise InputError(
            f"validation_pairs: {count} of {len(places)} different sentences", "fewer, so that training keeps some"
        )
    return picked(pairs, left), picked(pairs, chosen)


def picked(pairs: Pairs, indices: Sequence[int]) -> Pairs:
    return Pairs([pairs.sources[i] for i in indices], [pairs.targets[i] for i in indices])


def warn_if_swapped(pairs: Pairs, source: str, target: str) -> None:
    """Warn when the letters of one language stand on the side of the other."""
    if is_cyrillic_language(source) and is_cyrillic_language(target):
        return  # nothing to tell them apart by
    for language in (source, target):
        if language != "de" and not is_cyrillic_language(language):
            continue
        sign = is_cyrillic if is_cyrillic_language(language) else is_umlaut
        sides = [share(texts[:2000], sign) for texts in (pairs.sources, pairs.targets)]
        own, other = sides if language == source else sides[::-1]
        if other > 5 * own + 0.002:
            logger.warning(
                "The two sides look swapped: letters of %r are %.1f %% of the other side and %.1f %% of its own. "
                "Is source_lang %s and target_lang %s?",
                *(language, 100 * other, 100 * own, source, target),
            )
            return


def is_cyrillic_language(code: str) -> bool:
    return code.split("_")[0] in CYRILLIC


def is_umlaut(character: str) -> bool:
    return character in UMLAUTS


def is_cyrillic(character: str) -> bool:
    return "\u0400" <= character <= "\u04ff"


def share(texts: Sequence[str], sign: Any) -> float:
    letters = [character for text in texts for character in text if character.isalpha()]
    return sum(map(sign, letters)) / max(len(letters), 1)

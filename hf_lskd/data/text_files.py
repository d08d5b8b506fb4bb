"""Text on disk: TSV, JSONL or two text files, plain or gzip; every mistake named with its place."""

import codecs
import gzip
import hashlib
import json
import logging
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_lskd.data.pairs import Pairs, ParallelSource
from hf_lskd.errors import InputError

logger = logging.getLogger(__name__)

LONGEST = 10_000  # words of a line: more is no sentence
UNWRITABLE = re.compile("[\ud800-\udfff]")  # a JSON escape alone


def load_text(data: Mapping[str, Any]) -> ParallelSource:
    """The splits that `data` names: train, and validation and test where given.

    Without `validation`, `validation_pairs` sentences are drawn from training by a hash of (seed, source), and whatever shares
    their source or target leaves training. Raises InputError with file and line.
    """
    source, target = data["source_lang"], data["target_lang"]
    train = read_pairs(data["train"], source, target)
    test = None if data["test"] is None else read_pairs(data["test"], source, target)
    given = None if data["validation"] is None else read_pairs(data["validation"], source, target)
    read = len(train) + len(given or ()) + len(test or ())
    if given is None:
        train, validation = held_out(train, data["validation_pairs"], data["seed"])
    else:
        validation = given
    facts = {"corpus": "text", **counted(read, train, validation, test, {}), **shared_sources(train, validation, test)}
    return ParallelSource(train, validation, source, target, test, facts)


def shared_sources(train: Pairs, validation: Pairs, test: Pairs | None) -> dict[str, int]:
    """How many held-out sentences stand in training too, where there are some: warned of, and said in the report."""
    held = {"validation": validation, "test": test}
    trained = set(train.sources)
    found = {name: sum(text in trained for text in pairs.sources) for name, pairs in held.items() if pairs is not None}
    for name, count in found.items():
        if count:
            logger.warning(
                "%d of %d sentences of %s are in the training text too: scores on them tell what was remembered.",
                *(count, len(held[name] or ()), name),
            )
    return {f"{name} sentences in training": count for name, count in found.items() if count}


def counted(
    read: int, train: Pairs, validation: Pairs, test: Pairs | None, left_out: Mapping[str, int]
) -> dict[str, Any]:
    """What a report says of counts: pairs of each split, pairs read, and pairs left out by reason.

    What neither a split nor `left_out` has was taken out of training since it shared a sentence with validation.
    """
    pairs = {"train": len(train), "validation": len(validation), "test": 0 if test is None else len(test)}
    shared = read - sum(pairs.values()) - sum(left_out.values())
    reasons = {**left_out, "shares a sentence with validation": shared}
    return {"pairs": pairs, "read": read, "left_out": {reason: count for reason, count in reasons.items() if count}}


def read_pairs(place: str | Sequence[str], source: str, target: str) -> Pairs:
    """The pairs of one file (TSV, or JSONL by its name), or of two text files line by line."""
    if isinstance(place, str):
        path = Path(place).expanduser()
        as_json = path.name.removesuffix(".gz").endswith((".jsonl", ".json"))
        rows = [
            json_pair(line, f"{path}:{number}", source, target) if as_json else tab_pair(line, f"{path}:{number}")
            for number, line in lines_of(path)
        ]
        return Pairs([row[0] for row in rows], [row[1] for row in rows])
    sides = [
        [checked(line, f"{path}:{number}") for number, line in lines_of(Path(path).expanduser())] for path in place
    ]
    if len(sides[0]) != len(sides[1]):
        shorter = min(range(2), key=lambda i: len(sides[i]))
        raise InputError(
            f"{place[0]} with {len(sides[0])} lines and {place[1]} with {len(sides[1])}",
            "as many lines in both",
            f"{place[shorter]} ends at line {len(sides[shorter])}.",
        )
    return Pairs(*sides)


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of each line of a UTF-8 file, gzip or plain, as `lines_in` gives them."""
    return lines_in(read_bytes(path), str(path))


def lines_in(content: bytes, name: str) -> Iterator[tuple[int, str]]:
    """(number, text) of each line of UTF-8 bytes. Lines end with \\n or \\r\\n and with nothing else; `name` is for messages.

    Raises InputError for an empty file, bytes that are not UTF-8, and NUL.
    """
    content = content.removeprefix(codecs.BOM_UTF8)
    if not content.strip():
        raise InputError(f"{name} is empty", "parallel text, a pair a line")
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
        try:
            text = line.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            byte = f"0x{line[error.start]:02x}"
            raise InputError(
                f"{name}:{number}: byte {byte} is not UTF-8", "UTF-8 text", "Convert it: iconv -t UTF-8."
            ) from error
        if "\0" in text:
            raise InputError(f"{name}:{number}: a NUL byte", "UTF-8 text")
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
    if not line.strip():
        raise InputError(f"{where}: an empty line", "source, one tab, target", "Take the line out.")
    parts = line.split("\t")
    if len(parts) != 2:
        raise InputError(f"{where}: {len(parts) - 1} tabs", "source, one tab, target")
    return checked(parts[0], where, "source"), checked(parts[1], where, "target")


def json_pair(line: str, where: str, source: str, target: str) -> tuple[str, str]:
    """{"source", "target"}, {"en", "de"}, or either under "translation"."""
    allowed = f'{{"source": "…", "target": "…"}} or {{"{source}": "…", "{target}": "…"}}'
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: no JSON ({error})", allowed) from error
    row = row.get("translation", row) if isinstance(row, dict) else row
    for names in (("source", "target"), (source, target)):
        if isinstance(row, dict) and all(isinstance(row.get(name), str) for name in names):
            return checked(row[names[0]], where, names[0]), checked(row[names[1]], where, names[1])
    raise InputError(f"{where}: no pair of texts", allowed)


def checked(text: str, where: str, side: str = "line") -> str:
    """The text as it is. Raises InputError when it is empty, longer than any sentence, or cannot be written as UTF-8."""
    if not text.strip():
        raise InputError(f"{where}: an empty {side}", "text on both sides", "Take the pair out on both sides.")
    words = len(text.split())
    if words > LONGEST:
        raise InputError(
            f"{where}: a {side} of {words} words", f"at most {LONGEST}", "Is the file split into sentences?"
        )
    if "\0" in text or UNWRITABLE.search(text):
        raise InputError(f"{where}: a {side} with NUL or half a surrogate pair", "text that UTF-8 can hold")
    return text


def held_out(pairs: Pairs, count: int, seed: int) -> tuple[Pairs, Pairs]:
    """(training, validation): `count` pairs of different sources, chosen by a hash, and what training keeps without them."""
    places: dict[str, int] = {}
    for i, source in enumerate(pairs.sources):
        places.setdefault(source, i)
    order = sorted(places, key=lambda source: hashlib.sha256(f"{seed}|{source}".encode()).digest())
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

"""Messages of programs and their translations, from gettext catalogues: .po and .mo files, folders, installed packages."""

import re
import struct
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_lskd.data.pairs import Pairs, ParallelSource
from hf_lskd.data.text_files import LONGEST, counted, held_out
from hf_lskd.errors import InputError

KINDS = (".po", ".mo")
CODE = r"[a-z]{2}(?:[_-](?:[A-Z]{2}|[A-Z][a-z]{3}))?(?:@\w+)?"
SHARES = (Path(sys.prefix) / "share" / "locale", Path("/usr/local/share/locale"), Path("/usr/share/locale"))
SOURCE_HEADERS = ("X-Source-Language", "Source-Language")


def load_gettext(data: Mapping[str, Any]) -> ParallelSource:
    """msgid and msgstr of the target language's catalogues among `paths`; the text stays as it is, with accelerator marks.

    A path is a .po or .mo file, a folder, a Python package, or a domain of /usr/share/locale. Left out and counted: fuzzy,
    obsolete, untranslated, plural, and repeated entries. Where a folder has both forms of a catalogue, the .po is read.
    Validation is drawn by a hash of (seed, source), as from text files. Raises InputError when nothing is found, for a
    catalogue that cannot be read or is of another language, and for a source language that its header does not name.
    """
    source, target = data["source_lang"], data["target_lang"]
    files = dict(file for place in data["paths"] for file in catalogues(str(place), target))
    left_out = Counter[str]()
    pairs: dict[tuple[str, str], None] = {}  # in order, each once
    foreign = 0
    for file, is_named in files.items():
        found = messages(file, is_named, source, target, left_out)
        foreign += found is None
        for pair in found or ():
            left_out["repeated"] += pair in pairs
            pairs[pair] = None
    if not pairs:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in left_out.items() if count)
        raise InputError(
            f"data.paths: {len(files)} catalogues, {foreign} of other languages, "
            f"with no message from {source} to {target} (left out: {reasons or 'none'})",
            "catalogues with translated messages",
        )
    read = len(pairs) + left_out.total()
    every = Pairs([s for s, _ in pairs], [t for _, t in pairs])
    train, validation = held_out(every, data["validation_pairs"], data["seed"])
    facts = {
        "corpus": "gettext",
        "catalogues": len(files) - foreign,
        **counted(read, train, validation, None, left_out),
    }
    return ParallelSource(train, validation, source, target, None, facts)


# ---- Which files


def catalogues(place: str, target: str) -> Iterator[tuple[Path, bool]]:
    """(file, whether it was named itself) for a path, a package or a domain. Raises InputError when there is none."""
    path = Path(place).expanduser()
    if path.is_file():
        if path.suffix not in KINDS:
            raise InputError(f"data.paths: {place}", f"a file ending in {' or '.join(KINDS)}, a folder, or a domain")
        yield path, True
        return
    installed = [] if path.is_dir() or not re.fullmatch(r"[\w.+-]+", place) else installed_places(place, target)
    folders = [path] if path.is_dir() else [found for found in installed if found.is_dir()]
    files = [(file, True) for file in installed if file.is_file()]
    files += [(file, False) for folder in folders for file in catalogues_below(folder, target)]
    if not files:
        where = "has no .po or .mo file of" if folders else "is no file, folder, package or installed domain with"
        raise InputError(
            f"data.paths: {place} {where} {target}", ".po or .mo files, such as locale/de/LC_MESSAGES/x.mo"
        )
    yield from files


def installed_places(name: str, target: str) -> list[Path]:
    """The first catalogue of a domain, else the folder of a Python package, which is not imported for it."""
    from importlib.util import find_spec

    for share in SHARES:
        file = share / target.replace("-", "_") / "LC_MESSAGES" / f"{name}.mo"
        if file.is_file():
            return [file]
    try:
        found = find_spec(name) if name.isidentifier() else None
    except (ImportError, ValueError):  # a module that is half made, such as __main__
        found = None
    return [Path(place) for place in (found.submodule_search_locations or ())] if found is not None else []


def catalogues_below(folder: Path, target: str) -> Iterator[Path]:
    """Files below a folder that are of the target language by their names, or whose names speak of none."""
    files = sorted(file for kind in KINDS for file in folder.rglob(f"*{kind}") if file.is_file())
    for file in files:
        compiled_from = file.with_suffix(".po")
        if file.suffix == ".mo" and compiled_from in files:
            continue
        named = language_by_name(file)
        if named is None or same_language(named, target):
            yield file


def language_by_name(path: Path) -> str | None:
    """The language in de/LC_MESSAGES/x.mo, de.po, x.de.po or x-de.po; None when the name speaks of none."""
    if path.parent.name.startswith("LC_"):  # LC_MESSAGES, or LC_TIME, in which coreutils is found once more
        return path.parent.parent.name
    found = re.fullmatch(rf"(?:.*[.-])?({CODE})", path.stem)
    return found[1] if found else None


def same_language(one: str, other: str) -> bool:
    """de, de_DE and de-DE are one; pt and pt_BR are two."""
    short = [re.sub(r"^([a-z]+)_\1$", r"\1", name.replace("-", "_").split(".")[0].lower()) for name in (one, other)]
    return short[0] == short[1]


# ---- What is in them


def messages(
    file: Path, is_named: bool, source: str, target: str, left_out: Counter[str]
) -> list[tuple[str, str]] | None:
    """Pairs of one catalogue, what is left out being counted; None for one in a folder that is not known to be of `target`.

    Raises InputError when a file that was named itself is of another language, and for messages that are not in `source`.
    """
    catalogue = opened(file)
    language = catalogue.metadata.get("Language", "").strip()
    language = language if re.fullmatch(r"[a-z]{2,3}([_@-].*)?", language) else language_by_name(file) or ""
    if language and not same_language(language, target):
        if is_named:
            raise InputError(f"{file} is a catalogue of {language}", f"one of {target}")
        return None
    if not language and not is_named:
        return None
    said = next((catalogue.metadata[key].strip() for key in SOURCE_HEADERS if catalogue.metadata.get(key)), "en")
    if not same_language(said.split("_")[0] if source == "en" else said, source):
        raise InputError(
            f"{file} has messages in {said}, and source_lang is {source}",
            f"source_lang {said}, or a header X-Source-Language: {source}",
        )
    pairs = []
    for entry in catalogue:
        reason = unfit(entry)
        if reason:
            left_out[reason] += 1
        else:
            pairs.append((entry.msgid, entry.msgstr))
    return pairs


def opened(file: Path) -> Any:
    """The catalogue as polib reads it. Raises InputError for a damaged one, with the line where polib says it."""
    try:
        import polib
    except ImportError as error:
        raise InputError("source: gettext without polib", "polib", "pip install polib") from error
    try:
        if file.suffix == ".po":
            return polib.pofile(str(file))
        check_whole(file)
        return polib.mofile(str(file))
    except InputError:
        raise
    except (OSError, ValueError, LookupError, struct.error) as error:
        raise InputError(f"{file} cannot be read ({error})", "a whole gettext catalogue") from error


def check_whole(file: Path) -> None:
    """Raise InputError when a .mo file ends before its texts do: polib would cut them."""
    content = file.read_bytes()
    order = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}.get(content[:4])
    if order is None:
        raise InputError(
            f"{file} begins with {content[:4].hex(' ') or 'nothing'}", "a .mo file, which begins with its magic"
        )
    count, *tables = struct.unpack_from(f"{order}3I", content, 8)
    for table in tables:
        for index in range(count):
            length, start = struct.unpack_from(f"{order}2I", content, table + 8 * index)
            if start + length > len(content):
                raise InputError(f"{file} is cut off after {len(content)} bytes", f"{start + length} bytes at least")


def unfit(entry: Any) -> str:
    """Why a message is no pair of sentences; empty when it is one."""
    if entry.obsolete:
        return "obsolete"
    if "fuzzy" in entry.flags:
        return "fuzzy"
    if entry.msgid_plural:
        return "plural"
    if not entry.msgid.strip() or not entry.msgstr.strip():
        return "untranslated"
    texts = (entry.msgid, entry.msgstr)
    if any(len(text.split()) > LONGEST for text in texts):
        return f"over {LONGEST} words"
    return "NUL" if any("\0" in text for text in texts) else ""

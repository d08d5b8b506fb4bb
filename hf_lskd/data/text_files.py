"""Text on disk: TSV, JSONL or two text files, plain or gzip, and members of archives; every mistake named with its place."""

import codecs
import gzip
import hashlib
import json
import logging
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from hf_lskd.data.pairs import Pairs, ParallelSource
from hf_lskd.errors import InputError

logger = logging.getLogger(__name__)

LONGEST = 10_000  # words of a line: more is no sentence
LARGEST = 256 << 20  # bytes of a member that is read: the text of a pair is tens of megabytes
HARMLESS, PACKING = 64 << 20, 100  # unpacked bytes that need no excuse; more may be this many times the packed ones
BLOCK = 1 << 20
LONGEST_HEADER = 1 << 20  # bytes of a member's name and attributes
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


# ---- Members of a folder or an archive

Member = tuple[str, bytes | None]  # a name, and the content of those that are wanted


def folder_members(folder: Path, wanted: Callable[[str], bool]) -> Iterator[Member]:
    """The files below a folder, sorted. Raises OSError for one that cannot be read."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(root, name)
            yield str(path.relative_to(folder)), path.read_bytes() if wanted(name) else None


def archive_members(packed: BinaryIO, size: int, name: str, wanted: Callable[[str], bool]) -> Iterator[Member]:
    """The files of a .tgz of `size` bytes, in its order, read from front to end without writing anything.

    Raises InputError for an archive that is cut off or damaged, for members that would leave a folder on unpacking, links,
    devices, and for what unpacks to far more than text does.
    """
    try:
        stream = Unpacked(packed, size, name)
        with tarfile.open(fileobj=stream, mode="r|", bufsize=BLOCK, tarinfo=ShortHeader) as archive:  # type: ignore[call-overload]
            for member in archive:
                refuse_hostile(member, name)
                if member.isfile():
                    yield member.name, member_content(archive, member, name) if wanted(member.name) else None
        while stream.read(BLOCK):  # to the end, where gzip has its checksum
            pass
    except (EOFError, zlib.error, tarfile.TarError, gzip.BadGzipFile) as error:
        raise InputError(
            f"{name} is damaged, cut off or no .tgz ({error})", "a whole .tgz", "Fetch it again."
        ) from error


class ShortHeader(tarfile.TarInfo):
    """A member whose long names and attributes, which tarfile reads whole into memory, are of a sane size."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if not (self.isreg() or self.isdir()) and self.size > LONGEST_HEADER:
            raise InputError(
                f"a header of {self.size} bytes in an archive",
                f"at most {LONGEST_HEADER}",
                "Do not unpack this archive.",
            )
        return super()._proc_member(archive)  # type: ignore[misc]


class Unpacked:
    """A gzip stream that stops when it unpacks to more than text can be packed from."""

    def __init__(self, packed: BinaryIO, size: int, name: str) -> None:
        self.stream, self.name, self.taken = gzip.GzipFile(fileobj=packed), name, 0
        self.most = max(HARMLESS, PACKING * size)

    def read(self, count: int) -> bytes:
        data = self.stream.read(min(count, BLOCK))
        self.taken += len(data)
        if self.taken > self.most:
            raise InputError(f"{self.name} unpacks to over {self.most >> 20} MiB", f"at most {PACKING} times its size")
        return data


def member_content(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> bytes:
    if member.size > LARGEST:
        raise InputError(f"{name}: {member.name} of {member.size} bytes", f"at most {LARGEST >> 20} MiB")
    stream = archive.extractfile(member)
    return stream.read() if stream is not None else b""


def refuse_hostile(member: tarfile.TarInfo, name: str) -> None:
    """Raise InputError for a member that no archive of texts has."""
    path = PurePosixPath(member.name.replace("\\", "/"))
    problems = (
        (path.is_absolute() or re.match("[A-Za-z]:", member.name), "has an absolute name"),
        (".." in path.parts, "has a name that leads out of the folder"),
        (member.issym() or member.islnk(), f"is a link to {member.linkname!r}"),
        (member.issparse() or not (member.isfile() or member.isdir()), "is neither a file nor a folder"),
        (member.size < 0, f"has a size of {member.size}"),
    )
    for wrong, what in problems:
        if wrong:
            raise InputError(
                f"{name}: member {member.name!r} {what}", "files and folders", "Do not unpack this archive."
            )


def keep_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Write into a temporary folder beside it and rename that, so that a half-written one is never read.

    Warns when the place cannot be written: what was read is still of use.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as temporary:
            whole = Path(temporary) / "files"
            whole.mkdir()
            for name, content in files.items():
                (whole / name).write_bytes(content)
            os.replace(whole, folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was first
            logger.warning("Not kept in %s (%s); set HF_LSKD_CACHE to a folder that can be written.", folder, error)

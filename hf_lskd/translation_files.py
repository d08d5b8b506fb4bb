"""Files of `generation`: sentences in, translations out, and the partial file that a killed run leaves."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hf_lskd.errors import InputError

logger = logging.getLogger(__name__)

SUFFIXES = (".tsv", ".txt", ".jsonl")
BREAKS = {ord(character): " " for character in "\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"}


@dataclass(frozen=True)
class Translation:
    """One sentence's translation; `score` is its log-probability (nats) divided by its length in tokens**length_penalty."""

    text: str
    score: float
    cut: bool = field(default=False, compare=False)  # stopped at its largest length, before its end


@dataclass(frozen=True)
class Row:
    """A translation in the partial file: the sentence's index, and `cut` where it had to be stopped."""

    id: int
    text: str
    score: float
    cut: bool


def read_sources(path: Path) -> list[str]:
    """The sentences of a file: .txt one a line, .tsv the first column, .jsonl the key "source".

    Raises InputError, with file and line, for invalid UTF-8, an empty sentence or JSON that has none; and for an empty file.
    """
    check_suffix(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", "a file of sentences") from error
    lines = content.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").split(b"\n") if content else []
    sources = [_source_of(line, path.suffix, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
    if not sources:
        raise InputError(f"{path} is empty", "at least one sentence")
    return sources


def _source_of(line: bytes, suffix: str, where: str) -> str:
    try:
        text = line.decode("utf-8").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: byte {error.start + 1} is not UTF-8", "UTF-8 text") from error
    if "\0" in text:
        raise InputError(f"{where}: a NUL byte", "UTF-8 text")
    if suffix == ".tsv":
        text = text.split("\t")[0]
    if suffix == ".jsonl" and text.strip():
        text = _json_source(text, where)
    if not text.strip():
        raise InputError(f"{where} is empty", "a sentence in each line")
    return text


def _json_source(text: str, where: str) -> str:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error})", 'one JSON object a line, with "source"') from error
    source = row.get("source") if isinstance(row, dict) else None
    if not isinstance(source, str):
        raise InputError(f'{where} has no text "source"', 'one JSON object a line, with "source"')
    return source


def check_suffix(path: Path) -> None:
    """Raise InputError for a file of another kind than those read and written here."""
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"{path} as input or output", f"a file ending in {', '.join(SUFFIXES)}", "Unpack .gz files first."
        )


def write_translations(output: Path, sources: Sequence[str], translations: Sequence[Translation]) -> None:
    """The finished file, whole or not at all; in .tsv and .txt, tabs and line breaks within a text become spaces."""
    lines = []
    for source, made in zip(sources, translations, strict=True):
        if output.suffix == ".jsonl":
            row = {"source": source, "target": made.text, "score": made.score}
            lines.append(json.dumps(row, ensure_ascii=False))
        else:
            columns = [source, made.text] if output.suffix == ".tsv" else [made.text]
            lines.append("\t".join(column.translate(BREAKS) for column in columns))
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    temporary.write_bytes("".join(line + "\n" for line in lines).encode())
    os.replace(temporary, output)


class PartialFile:
    """`.NAME.partial` beside an output: a header with a fingerprint, then a JSON line for each sentence, batch by batch.

    `rows` are those of the whole batches, `done` of them, that a run of the same fingerprint left; a batch that was broken
    off is dropped, since its sentences are decoded together. A file of another fingerprint is begun anew.
    """

    def __init__(self, output: Path, fingerprint: str, batches: Sequence[Sequence[int]]) -> None:
        self.path = output.with_name(f".{output.name}.partial")
        self.rows: list[Row] = []
        self.done = 0
        header = json.dumps({"fingerprint": fingerprint}).encode() + b"\n"
        content = self.path.read_bytes() if self.path.is_file() else b""
        if not content.startswith(header):
            content = header
            self.path.write_bytes(header)
        size = len(header) + self._read(content[len(header) :], batches)
        self._file = self.path.open("r+b")
        self._file.truncate(size)
        self._file.seek(size)
        if self.done:
            logger.info("%s: going on after %d of %d batches.", output, self.done, len(batches))

    def _read(self, content: bytes, batches: Sequence[Sequence[int]]) -> int:
        """Take in the whole batches at the beginning of `content`; returns their size in bytes."""
        lines = iter(content.splitlines(keepends=True))
        size = 0
        for batch in batches:
            taken = [next(lines, b"") for _ in batch]
            rows = [row for line, index in zip(taken, batch) if (row := _parsed(line, index)) is not None]
            if len(rows) < len(batch):
                break
            self.rows += rows
            self.done += 1
            size += sum(map(len, taken))
        return size

    def add(self, rows: Sequence[Row]) -> None:
        """Append a finished batch."""
        self._file.write("".join(json.dumps(asdict(row)) + "\n" for row in rows).encode())
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """Once the output is written."""
        self.path.unlink()


def _parsed(line: bytes, index: int) -> Row | None:
    """A row of the partial file; None when it is broken or another sentence's."""
    try:
        row = Row(**json.loads(line)) if line.endswith(b"\n") else None
    except (ValueError, TypeError):
        return None
    return row if row is not None and row.id == index else None

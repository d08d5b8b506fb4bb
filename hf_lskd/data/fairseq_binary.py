"""fairseq's binarised parallel text (`fairseq-preprocess`): token ids in `.bin` beside `.idx`, and its dictionaries."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_lskd.data.fairseq_dictionary import EOS, UNKNOWN, joined, pieces_of, read_dictionary
from hf_lskd.data.pairs import Pairs, ParallelSource
from hf_lskd.data.text_files import checked, counted, shared_sources
from hf_lskd.errors import InputError

MMAP, CACHED = b"MMIDIDX\x00\x00", b"TNTIDX\x00\x00"  # --dataset-impl mmap, which is the default, and lazy or cached
TYPES = {
    1: "u1",
    2: "i1",
    3: "i2",
    4: "i4",
    5: "i8",
    8: "u2",
    9: "u4",
    10: "u8",
}  # of fairseq's integers, little-endian


@dataclass(frozen=True)
class Side:
    """One language of one split: all tokens one after another, and where each sentence ends."""

    tokens: np.ndarray
    ends: np.ndarray

    def rows(self) -> list[list[int]]:
        """Token ids of each sentence, its end token included."""
        return [part.tolist() for part in np.split(self.tokens, self.ends[:-1])]


def load_fairseq(data: Mapping[str, Any]) -> ParallelSource:
    """The splits train, valid and (where it is there) test of a folder that fairseq-preprocess wrote.

    `subwords`: `subword_nmt` joins the pieces marked by `@@`, `sentencepiece` those without `▁`; `kept` leaves tokens with
    spaces between them, as the tokenizer of a model converted without codes takes them. `tokenised` says that the words are
    Moses tokens in lower case. Raises InputError for files that are missing, cut off or do not fit each other.
    """
    folder = Path(data["path"]).expanduser()
    languages = (data["source_lang"], data["target_lang"])
    tokens = [read_dictionary(folder / f"dict.{language}.txt") for language in languages]
    unknown = dict.fromkeys(languages, 0)

    def pairs(split: str) -> Pairs:
        sides: list[list[str]] = []
        for language, known in zip(languages, tokens):
            prefix = prefix_of(folder, split, languages, language)
            rows = read_rows(prefix, len(known))
            unknown[language] += sum(row.count(UNKNOWN) for row in rows)
            sides.append(
                [text_of(row, known, data["subwords"], f"{prefix}.bin, row {i}") for i, row in enumerate(rows)]
            )
        if len(sides[0]) != len(sides[1]):
            raise InputError(f"{folder}: {split} has {len(sides[0])} and {len(sides[1])} sentences", "as many in both")
        return Pairs(*sides)

    train, validation = pairs("train"), pairs("valid")
    test = pairs("test") if is_there(folder, "test", languages) else None
    pieces = pieces_of(tokens[1]) if data["subwords"] == "kept" else ""
    read = len(train) + len(validation) + len(test or ())
    facts = {
        "corpus": "fairseq's binarised text",
        "subwords": data["subwords"],
        **{f"unknown tokens, {language}": count for language, count in unknown.items() if count},
        **counted(read, train, validation, test, {}),
        **shared_sources(train, validation, test),
    }
    return ParallelSource(train, validation, *languages, test, facts, tokenised=data["tokenised"], pieces=pieces)


def is_there(folder: Path, split: str, languages: Sequence[str]) -> bool:
    return any(folder.glob(f"{split}.{languages[0]}-{languages[1]}.*.idx")) or any(
        folder.glob(f"{split}.{languages[1]}-{languages[0]}.*.idx")
    )


def prefix_of(folder: Path, split: str, languages: Sequence[str], language: str) -> Path:
    """The files of one side without `.bin` or `.idx`; the pair may be named either way round."""
    names = [f"{split}.{one}-{other}.{language}" for one, other in (languages, languages[::-1])]
    found = [folder / name for name in names if (folder / f"{name}.idx").is_file()]
    if not found:
        raise InputError(f"{folder / names[0]}.idx is not there", "a folder that fairseq-preprocess wrote")
    more = sorted(folder.glob(f"{split}[1-9]*.{found[0].name.split('.')[1]}.{language}.idx"))
    if more:
        raise InputError(
            f"{more[0]}: {split} in several parts", f"one part, {found[0].name}", "Binarise it in one part."
        )
    return found[0]


def read_rows(prefix: Path, vocabulary: int) -> list[list[int]]:
    """Token ids of each sentence, without its end token. Raises InputError for ids that the dictionary has not."""
    side = read_side(prefix)
    if len(side.tokens) and not 0 <= int(side.tokens.min()) <= int(side.tokens.max()) < vocabulary:
        raise InputError(
            f"{prefix}.bin has token {int(side.tokens.max())} for a dictionary of {vocabulary}",
            "the dictionary that the text was binarised with",
        )
    rows = side.rows()
    for index, row in enumerate(rows):
        if not row or row.pop() != EOS:
            raise InputError(
                f"{prefix}.bin: row {index} does not end with </s>", "text as fairseq-preprocess writes it"
            )
    return rows


def read_side(prefix: Path) -> Side:
    """What `prefix.idx` and `prefix.bin` hold (fairseq's indexed_dataset, 0.12). Raises InputError for damaged files."""
    index, data = (read(prefix.with_name(f"{prefix.name}.{kind}")) for kind in ("idx", "bin"))
    for magic, parse in ((MMAP, read_mmap), (CACHED, read_cached)):
        if index.startswith(magic):
            try:
                return parse(index[len(magic) :], data)
            except (struct.error, ValueError, KeyError, IndexError) as error:
                raise InputError(
                    f"{prefix}.idx and .bin are damaged or cut off ({error})", "both files whole", "Copy them again."
                ) from error
    raise InputError(
        f"{prefix}.idx begins with {index[:8]!r}",
        "--dataset-impl mmap (the default), lazy or cached of fairseq-preprocess",
    )


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", "a file that fairseq-preprocess wrote") from error


def read_mmap(index: bytes, data: bytes) -> Side:
    """version u64, type u8, sentences u64, then sizes i32 in tokens and pointers i64 in bytes."""
    version, kind, count = struct.unpack_from("<QBQ", index)
    width = checked_type(version, kind)
    sizes = np.frombuffer(index, "<i4", count, 17)
    pointers = np.frombuffer(index, "<i8", count, 17 + 4 * count)
    return packed(data, width, sizes.astype(np.int64), pointers, 0)


def read_cached(index: bytes, data: bytes) -> Side:
    """version, type, bytes a token, sentences, sizes, all u64; then two tables of offsets and the sizes, i64.

    Its ids are one higher than the dictionary's.
    """
    version, kind, size, count, dimensions = struct.unpack_from("<QQQQQ", index)
    width = checked_type(version, kind)
    if size != width.itemsize or dimensions != count:
        raise ValueError(f"{size} bytes a token, {dimensions} sizes of {count} sentences")
    offsets = np.frombuffer(index, "<i8", count + 1, 40 + 8 * (count + 1))
    sizes = np.frombuffer(index, "<i8", count, 40 + 16 * (count + 1))
    return packed(data, width, sizes, offsets[:-1] * size, 1)


def checked_type(version: int, kind: int) -> np.dtype:
    if version != 1 or kind not in TYPES:
        raise ValueError(f"version {version}, type {kind}")
    return np.dtype(f"<{TYPES[kind]}")


def packed(data: bytes, width: np.dtype, sizes: np.ndarray, pointers: np.ndarray, base: int) -> Side:
    """The tokens, after a check that the sentences lie one behind the other and fill the file."""
    ends = np.cumsum(sizes)
    if (sizes < 0).any() or not np.array_equal(pointers, (ends - sizes) * width.itemsize):
        raise ValueError("sentences that do not lie one behind the other")
    if len(data) != (int(ends[-1]) if len(ends) else 0) * width.itemsize:
        raise ValueError(f"{len(data)} bytes of tokens")
    return Side(np.frombuffer(data, width).astype(np.int64) - base, ends)


def text_of(row: Sequence[int], known: Sequence[str], subwords: str, where: str) -> str:
    """The sentence of token ids, its pieces joined as `subwords` says."""
    return checked(joined(" ".join(known[token] for token in row), subwords), where)

"""fairseq's dictionary, `dict.LANG.txt`: a token and its count a line, behind four tokens that are always there."""

import codecs
from collections.abc import Sequence
from pathlib import Path

from hf_lskd.data.text_files import read_bytes
from hf_lskd.errors import InputError

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # fairseq's ids 0 to 3
BOS, PAD, EOS, UNKNOWN = range(4)
JOINER = "@@"  # what subword-nmt and fastBPE write behind a piece that the word goes on after


def read_dictionary(path: Path) -> list[str]:
    """The tokens of a dictionary file by id (fairseq's `Dictionary.load`, 0.12).

    Raises InputError with the line for what is no dictionary, and for a token that is there twice, also where fairseq's
    `#fairseq:overwrite` allows it: a tokenizer has one id a token.
    """
    if not path.is_file():
        raise InputError(f"{path} is not there", "fairseq's dict.LANG.txt of both languages in one folder")
    try:
        lines = codecs.decode(read_bytes(path).removeprefix(codecs.BOM_UTF8), "utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: no UTF-8 ({error.reason} at byte {error.start})", "fairseq's dict.LANG.txt"
        ) from error
    tokens = set(SPECIAL)
    found = list(SPECIAL)
    for number, line in enumerate(lines, start=1):
        if not line.strip() and number == len(lines):
            break
        token = token_of(line, f"{path}:{number}")
        if token in tokens:
            raise InputError(f"{path}:{number}: the token {token!r} a second time", "each token once")
        tokens.add(token)
        found.append(token)
    return found


def token_of(line: str, where: str) -> str:
    """The token in a line of a dictionary."""
    token, _, count = line.rstrip().rpartition(" ")
    if count == "#fairseq:overwrite":
        token, _, count = token.rpartition(" ")
    if not token or not count.removeprefix("-").isdecimal():
        raise InputError(f"{where}: {line[:60]!r}", "a token, a space and its count")
    return token


def joined(text: str, pieces: str) -> str:
    """A text whose pieces stand apart as words: marked by `@@` for `subword_nmt`, by what lacks `▁` for `sentencepiece`."""
    if pieces == "subword_nmt":
        return f"{text} ".replace(f"{JOINER} ", "").rstrip()
    return text.replace(" ", "").replace("▁", " ").strip() if pieces == "sentencepiece" else text


def pieces_of(tokens: Sequence[str]) -> str:
    """How the words of a dictionary are cut, by its tokens: `subword_nmt`, `sentencepiece`, or empty for whole words."""
    if any(token.endswith(JOINER) for token in tokens):
        return "subword_nmt"
    return "sentencepiece" if any("▁" in token for token in tokens) else ""

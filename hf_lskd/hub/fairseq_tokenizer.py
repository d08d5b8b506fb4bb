"""fairseq's dictionaries and byte-pair codes as tokenizers that transformers loads on its own and that give fairseq's ids."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_lskd.data.fairseq_dictionary import EOS, JOINER, SPECIAL, pieces_of
from hf_lskd.data.text_files import lines_of
from hf_lskd.errors import InputError

WORD_END = "</w>"
VERSION = re.compile(r"#version: (\S+)\s*")


@dataclass(frozen=True)
class Text:
    """How a model's text was made: its languages and dictionaries, and the codes that cut it (None: it comes cut)."""

    languages: tuple[str, str]
    sources: Sequence[str]
    targets: Sequence[str]
    codes: Path | None = None
    lower_case: bool = False


def build_tokenizer(text: Text, positions: int, folder: Path) -> tuple[Any, str]:
    """A tokenizer, saved into `folder` too, and in words what text it takes.

    With codes it is FSMTTokenizer: raw text, by sacremoses and the codes. Without, the text has to be cut already, tokens
    between spaces, and both sides share a dictionary. Raises InputError for codes of another kind.
    """
    if text.codes is not None:
        tokenizer = raw_text_tokenizer(text, read_codes(text.codes), positions, folder)
        return tokenizer, "raw text: Moses tokens by sacremoses, then the codes"
    if list(text.sources) != list(text.targets):
        raise InputError(
            "two dictionaries and no codes",
            "--bpe-codes with the file that cut the text",
            "Without codes a tokenizer has one dictionary for both languages.",
        )
    tokenizer = cut_text_tokenizer(text.sources, positions)
    tokenizer.save_pretrained(folder)
    return tokenizer, "text that is cut already, tokens between spaces (as fairseq's own input)"


def read_codes(path: Path) -> list[tuple[str, str]]:
    """The merges in a file of subword-nmt (version 0.2) or fastBPE (with counts), the first of equal ones kept.

    Raises InputError for version 0.1, where a word's end is a symbol of its own, for a sentencepiece model, and for any line
    that is no merge.
    """
    if path.suffix == ".model":
        raise InputError(
            f"{path} is a sentencepiece model",
            "codes of subword-nmt 0.2 or of fastBPE",
            "Leave the codes out, and give text that sentencepiece has cut.",
        )
    merges: dict[tuple[str, str], None] = {}
    for number, line in lines_of(path):
        version = VERSION.fullmatch(line) if number == 1 else None
        if version is not None:
            if version[1] != "0.2":
                raise old_version(path, f"version {version[1]}")
            continue
        parts = line.split(" ")
        counted = len(parts) == 3 and parts[2].isdecimal()
        if not (len(parts) == 2 or counted) or not all(parts[:2]):
            raise InputError(f"{path}:{number}: {line[:60]!r}", "two symbols, and in fastBPE's file a count")
        if WORD_END in parts[:2]:
            raise old_version(path, f"line {number} has {WORD_END!r} on its own, so version 0.1")
        merges.setdefault((parts[0], parts[1]))
    return list(merges)


def old_version(path: Path, what: str) -> InputError:
    return InputError(
        f"{path}: codes of subword-nmt, {what}", "version 0.2, where the end belongs to a word's last letter"
    )


def piece(token: str) -> str:
    """A token of fairseq's dictionary as FSMTTokenizer writes it: `foo@@` is `foo`, and `foo` is `foo</w>`."""
    if token in SPECIAL:
        return token
    return token.removesuffix(JOINER) if token.endswith(JOINER) and token != JOINER else token + WORD_END


def raw_text_tokenizer(text: Text, merges: Sequence[tuple[str, str]], positions: int, folder: Path) -> Any:
    from transformers import FSMTTokenizer

    files = FSMTTokenizer.vocab_files_names
    for key, tokens in (("src_vocab_file", text.sources), ("tgt_vocab_file", text.targets)):
        ids = {piece(token): index for index, token in enumerate(tokens)}
        if len(ids) < len(tokens):
            raise InputError(
                f"a dictionary of {len(tokens)} tokens with {len(ids)} different pieces", "each piece once"
            )
        (folder / files[key]).write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    lines = "".join(f"{one} {other}\n" for one, other in merges)
    (folder / files["merges_file"]).write_text(lines, encoding="utf-8")
    tokenizer = FSMTTokenizer(
        langs=list(text.languages),
        **{key: str(folder / name) for key, name in files.items()},
        do_lower_case=text.lower_case,
        eos_token=SPECIAL[EOS],
        model_max_length=positions,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def cut_text_tokenizer(tokens: Sequence[str], positions: int) -> Any:
    """Tokens between white space; what it decodes has the pieces of a word joined again."""
    from tokenizers import Regex, Tokenizer, decoders
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    bos, pad, eos, unknown = SPECIAL
    backend = Tokenizer(WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=unknown))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single=f"$A {eos}", special_tokens=[(eos, EOS)])
    if pieces_of(tokens) == "sentencepiece":
        backend.decoder = decoders.Metaspace()  # sentencepiece's mark of a word's beginning
    else:
        ends = decoders.Replace(Regex(rf"(?<!{JOINER})\z"), " ")
        joins = decoders.Replace(Regex(rf"{JOINER}\z"), "")
        backend.decoder = decoders.Sequence([ends, joins, decoders.Fuse(), decoders.Strip(" ", 0, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        pad_token=pad,
        eos_token=eos,
        unk_token=unknown,
        model_max_length=positions,
        clean_up_tokenization_spaces=False,
    )

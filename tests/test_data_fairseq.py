"""fairseq's binarised text, from bytes made by hand after its format; that it is what fairseq reads is the slow test's matter."""

import struct
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from hf_lskd.data.fairseq_binary import read_side
from hf_lskd.data.fairseq_dictionary import joined
from hf_lskd.data.parallel import load_parallel
from hf_lskd.data.tokenizer import set_languages
from hf_lskd.data.translation import TranslationDataset
from hf_lskd.errors import InputError
from hf_lskd.hub.from_fairseq import convert_fairseq
from hf_lskd.metrics import score_translations
from hf_lskd.models.sequence import begin_in_language, load_trained_seq2seq
from hf_lskd.recipe import parse_recipe
from hf_lskd.recipe_data import read_data
from hf_lskd.recipe_yaml import Document, Problems
from hf_lskd.study.grid import cells
from hf_lskd.tasks.translation import Translation
from tests.tiny_fairseq import CODES, TOKENS, checkpoint, dictionaries

END = 2
RECIPE = """
name: kept
task: translation
data: {{source: fairseq, path: {source}, source_lang: en, target_lang: de, subwords: kept, tokenizer: {model}, max_length: 9}}
training: {{max_tokens: 99, max_steps: 1}}
teacher: {{model: {model}, pretrained: true}}
students: [{{name: student, model: {model}}}]
grid: {{label_smoothing: [0], temperature: [1], seed: [0]}}
"""
ROWS = {
    "en": [[4, 6, 7, END], [11, END], [3, 4, 5, END]],
    "de": [[14, 15, END], [4, 8, 11, 10, END], [6, END]],
}


def mmap(rows: list[list[int]], code: int = 8, letter: str = "H") -> tuple[bytes, bytes]:
    """(idx, bin) of --dataset-impl mmap: 16-bit numbers for small dictionaries."""
    width, sizes = struct.calcsize(letter), [len(row) for row in rows]
    pointers = [width * sum(sizes[:i]) for i in range(len(rows))]
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQ", 1, code, len(rows))
    index += struct.pack(f"<{len(rows)}i", *sizes) + struct.pack(f"<{len(rows)}q", *pointers)
    return index, b"".join(struct.pack(f"<{len(row)}{letter}", *row) for row in rows)


def cached(rows: list[list[int]]) -> tuple[bytes, bytes]:
    """(idx, bin) of --dataset-impl cached: 32-bit numbers, each one higher."""
    sizes = [len(row) for row in rows]
    offsets = [sum(sizes[:i]) for i in range(len(rows) + 1)]
    index = b"TNTIDX\x00\x00" + struct.pack("<QQQQQ", 1, 4, 4, len(rows), len(rows))
    index += struct.pack(f"<{len(offsets)}q", *range(len(offsets))) + struct.pack(f"<{len(offsets)}q", *offsets)
    index += struct.pack(f"<{len(sizes)}q", *sizes)
    return index, b"".join(struct.pack("<i", token + 1) for row in rows for token in row)


def written(folder: Path, name: str, files: tuple[bytes, bytes]) -> None:
    for kind, content in zip(("idx", "bin"), files):
        (folder / f"{name}.{kind}").write_bytes(content)


def data_bin(folder: Path, form: Any = mmap, pair: str = "en-de", splits: tuple[str, ...] = ("train", "valid")) -> Path:
    dictionaries(folder)
    for split in splits:
        for language, rows in ROWS.items():
            written(folder, f"{split}.{pair}.{language}", form(rows))
    return folder


def block(folder: Path, **other: Any) -> dict[str, Any]:
    given = {"source": "fairseq", "path": str(folder), "source_lang": "en", "target_lang": "de", **other}
    problems = Problems(Document("recipe", {"data": given}))
    found = read_data(problems, given, "translation")
    problems.raise_if_any()
    return found


@pytest.mark.parametrize("form", [mmap, cached, lambda rows: mmap(rows, 4, "i"), lambda rows: mmap(rows, 5, "q")])
def test_the_rows_are_those_that_were_written(form: Any, tmp_path: Path) -> None:
    data_bin(tmp_path, form)
    for language, rows in ROWS.items():
        assert read_side(tmp_path / f"train.en-de.{language}").rows() == rows


def test_a_recipe_gets_the_text_with_its_pieces_joined(tmp_path: Path) -> None:
    found = load_parallel(block(data_bin(tmp_path, pair="de-en", splits=("train", "valid", "test"))))
    assert list(found.train.sources) == ["lowe r", ",", "<unk> low"]
    assert list(found.train.targets) == ["widest", "loer , lower", "we"]
    assert found.test is not None
    assert found.facts["unknown tokens, en"] == 3
    assert "unknown tokens, de" not in found.facts
    assert found.facts["pairs"] == {"train": 3, "validation": 3, "test": 3}
    assert not found.tokenised
    assert load_parallel(block(tmp_path, tokenised=True)).tokenised


def test_sentencepiece_is_joined_by_its_own_mark(tmp_path: Path) -> None:
    data_bin(tmp_path)
    tokens = ("▁lo", "w", "er", "▁we", *(f"t{i}" for i in range(8)))
    dictionaries(tmp_path, tokens, tokens)
    found = load_parallel(block(tmp_path, subwords="sentencepiece"))
    assert found.train.sources[0] == "loer we"


def test_kept_pieces_and_a_converted_tokenizer_give_the_very_ids(tmp_path: Path) -> None:
    source = data_bin(tmp_path / "bin")
    convert_fairseq(checkpoint(source), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    found = load_parallel(block(source, subwords="kept"))
    rows = TranslationDataset(found.train, tokenizer, max_length=9).rows
    assert rows == list(zip(ROWS["en"], ROWS["de"]))


def test_scores_of_kept_pieces_are_of_whole_words(tmp_path: Path) -> None:
    """What a model says has its words joined: beside references in pieces a perfect translation would score as a bad one."""
    source = data_bin(tmp_path / "bin")
    convert_fairseq(checkpoint(source), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    found = load_parallel(block(source, subwords="kept"))
    said = tokenizer.batch_decode(ROWS["de"], skip_special_tokens=True)
    assert said == [joined(text, found.pieces) for text in found.train.targets] == ["widest", "loer , lower", "we"]
    assert said != list(found.train.targets)
    assert load_parallel(block(source)).pieces == ""
    recipe = parse_recipe(RECIPE.format(source=source, model=tmp_path / "model"))
    task = Translation(recipe)
    cell = cells(recipe)[0]
    copy = task.output(task.reader(cell, tmp_path / "model"), tmp_path)["translation"]["copy"]
    sides = [[joined(text, "subword_nmt") for text in side] for side in (found.train.sources, found.train.targets)]
    assert copy["chrf"] == score_translations(*sides, target_lang="de").chrf
    assert copy["chrf"] != score_translations(found.train.sources, found.train.targets, target_lang="de").chrf


def test_a_converted_tokenizer_is_of_one_pair_and_forces_no_language(tmp_path: Path) -> None:
    """Its vocabulary may have "de" as a piece of words, which is no language."""
    tokens = (*TOKENS[:-1], "de@@")
    dictionaries(tmp_path, tokens, tokens)
    (tmp_path / "codes").write_text(CODES)
    convert_fairseq(checkpoint(tmp_path), tmp_path / "model", bpe_codes=tmp_path / "codes")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert "de" in tokenizer.get_vocab()
    set_languages(tokenizer, "en", "de")
    with pytest.raises(InputError, match="en to de"):
        set_languages(tokenizer, "de", "en")
    model = load_trained_seq2seq(str(tmp_path / "model"))
    begin_in_language(model, tokenizer)
    assert model.generation_config.forced_bos_token_id is None


def refusal(folder: Path, **other: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_parallel(block(folder, **other))
    return str(caught.value)


def test_damage_is_named(tmp_path: Path) -> None:
    name, good = "train.en-de.en", mmap(ROWS["en"])

    def of(index: bytes, data: bytes) -> str:
        written(tmp_path, name, (index, data))
        return refusal(tmp_path)

    data_bin(tmp_path)
    for cut in (12, 24, 40, len(good[0]) - 1):
        assert "damaged or cut off" in of(good[0][:cut], good[1])
    assert "damaged or cut off" in of(good[0], good[1][:-2])
    assert "damaged or cut off" in of(good[0], good[1] + b"\0\0")
    assert "version 2" in of(good[0].replace(b"\x01", b"\x02", 1), good[1])
    assert "damaged or cut off" in of(cached(ROWS["en"])[0][:60], cached(ROWS["en"])[1])
    assert "begins with b'HUFFIDX" in of(b"HUFFIDX\x00\x00" + good[0][9:], good[1])
    assert "begins with b''" in of(b"", b"")
    assert "does not end with </s>" in of(*mmap([[4, 5], *ROWS["en"][1:]]))
    assert "token 99 for a dictionary of 16" in of(*mmap([[99, END], *ROWS["en"][1:]]))
    assert "3 sentences" in of(*mmap(ROWS["en"][:2]))
    assert "an empty line" in of(*mmap([[END], *ROWS["en"][1:]]))
    written(tmp_path, name, good)
    written(tmp_path, "train1.en-de.en", good)
    assert "in several parts" in refusal(tmp_path)
    (tmp_path / "train1.en-de.en.idx").unlink()
    (tmp_path / f"{name}.bin").unlink()
    assert "cannot be read" in refusal(tmp_path)
    (tmp_path / f"{name}.idx").unlink()
    assert "train.en-de.en.idx is not there" in refusal(tmp_path)

"""The joint byte-pair tokenizer: what it keeps, where its special tokens stand, and that others can load it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_lskd.data.tokenizer import language_code, load_tokenizer, set_languages, train_bpe
from hf_lskd.errors import InputError
from hf_lskd.models.sequence import begin_in_language
from tests.tiny_seq2seq import tiny_seq2seq

TEXTS = [
    "the green house, 25 km",
    "das grüne Haus, 25 km",
    "a house (green)",
    "ein Haus (grün)",
    "зелёный дом",
    "two houses",
] * 3


def test_pad_is_the_last_id_and_every_sequence_ends() -> None:
    tokenizer = train_bpe(TEXTS, 120)
    vocabulary = tokenizer.get_vocab()
    assert tokenizer.pad_token_id == len(vocabulary) - 1 == max(vocabulary.values())
    assert len(vocabulary) <= 120
    ids = tokenizer("the green house")["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.pad_token_id not in ids


@pytest.mark.parametrize("text", sorted(set(TEXTS)))
def test_text_comes_back_as_it_was(text: str) -> None:
    tokenizer = train_bpe(TEXTS, 120)
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_digits_and_punctuation_stand_alone() -> None:
    tokens = train_bpe(TEXTS, 200).tokenize("house, 25 km")
    assert {"2", "5", ","} <= set(tokens)


def test_autotokenizer_loads_it_without_us(tmp_path: Path) -> None:
    tokenizer = train_bpe(TEXTS, 120)
    tokenizer.save_pretrained(tmp_path)
    code = (
        "import sys; from transformers import AutoTokenizer; t = AutoTokenizer.from_pretrained(sys.argv[1]); "
        "print(t('das grüne Haus')['input_ids'], t.pad_token_id); assert 'hf_lskd' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == f"{tokenizer('das grüne Haus')['input_ids']} {tokenizer.pad_token_id}", done.stderr
    assert load_tokenizer(str(tmp_path)).get_vocab() == tokenizer.get_vocab()


def test_the_same_texts_give_the_same_tokens_in_another_process() -> None:
    code = (
        "from hf_lskd.data.tokenizer import train_bpe; from tests.test_data_tokenizer import TEXTS; "
        "print(sorted(train_bpe(TEXTS, 120).get_vocab().items()))"
    )
    root = Path(__file__).parents[1]
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(root)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env=environment)
        assert done.stdout.strip() == str(sorted(train_bpe(TEXTS, 120).get_vocab().items())), done.stderr


def test_a_vocabulary_without_room_for_the_characters_is_refused() -> None:
    with pytest.raises(InputError, match=r"vocab_size: 16 .* different characters.*at least"):
        train_bpe(TEXTS, 16)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.tokenizer"):
        load_tokenizer(str(tmp_path))


# ---- Multilingual tokenizers


def nllb() -> Any:
    from transformers import NllbTokenizer

    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁a", "▁b", "▁", "a", "b"]
    return NllbTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[("▁", "a"), ("▁", "b")])


def test_a_multilingual_tokenizer_is_told_its_languages_and_decoding_begins_in_the_target() -> None:
    tokenizer = nllb()
    set_languages(tokenizer, "deu_Latn", "eng_Latn")
    rows = [tokenizer(text="a b").input_ids, tokenizer(text_target="a b").input_ids]
    assert [tokenizer.convert_ids_to_tokens(row) for row in rows] == [
        ["deu_Latn", "▁a", "▁b", "</s>"],
        ["eng_Latn", "▁a", "▁b", "</s>"],
    ]
    model = tiny_seq2seq("m2m100")
    begin_in_language(model, tokenizer)
    assert model.generation_config.forced_bos_token_id == tokenizer.get_vocab()["eng_Latn"]


def test_a_language_is_found_by_the_one_code_that_begins_with_it_or_refused() -> None:
    tokenizer = nllb()
    assert language_code(tokenizer, "deu") == "deu_Latn"
    for language, message in (
        ("de", "one of its own codes: ace_Arab, ace_Latn"),
        ("zho", "Which of zho_Hans, zho_Hant"),
        ("deu_Latm", "deu_Latn"),
    ):
        with pytest.raises(InputError, match=message):
            language_code(tokenizer, language)


def test_a_tokenizer_without_languages_and_its_model_are_left_alone() -> None:
    tokenizer = train_bpe(["a house"], 30)
    before = tokenizer("a house").input_ids
    set_languages(tokenizer, "en", "de")
    assert tokenizer("a house").input_ids == before
    model = tiny_seq2seq()
    begin_in_language(model, tokenizer)
    assert model.generation_config.forced_bos_token_id is None

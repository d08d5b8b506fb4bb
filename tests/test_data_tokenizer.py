"""The joint byte-pair tokenizer: what it keeps, where its special tokens stand, and that others can load it."""

import subprocess
import sys
from pathlib import Path

import pytest

from hf_lskd.data.tokenizer import load_tokenizer, train_bpe
from hf_lskd.errors import InputError

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

"""Phrases composed by CLDR's patterns: correct, deterministic, and split without a leak."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_lskd.data.cldr import load_cldr, masked
from hf_lskd.data.pairs import ParallelSource
from hf_lskd.errors import InputError

OPTIONS: dict[str, Any] = {"source_lang": "en", "target_lang": "de", "scope": "everyday", "pairs": 1500,
                           "validation_pairs": 40, "test_pairs": 80, "seed": 0}  # fmt: skip


@pytest.fixture(scope="module", params=["de", "ru"])
def source(request: pytest.FixtureRequest) -> ParallelSource:
    return load_cldr({**OPTIONS, "target_lang": request.param})


def test_splits_have_the_sizes_asked_for(source: ParallelSource) -> None:
    assert source.test is not None
    assert len(source.validation) == 40
    assert len(source.test) == 80
    assert len(source.train) >= 1500
    assert source.facts["babel"]


def test_no_phrase_and_no_wording_is_in_two_splits(source: ParallelSource) -> None:
    held = [pair for pairs in (source.validation, source.test) for pair in zip(pairs.sources, pairs.targets)]  # type: ignore[union-attr]
    assert not {masked(text) for text, _ in held} & {masked(text) for text in source.train.sources[:1500]}
    assert not {text for text, _ in held} & set(source.train.sources)
    assert not {text for _, text in held} & set(source.train.targets)
    wordings = [masked(text) for text in source.test.sources]  # type: ignore[union-attr]
    assert max(wordings.count(text) for text in wordings) <= 4


def test_a_source_has_one_target_and_no_odd_spaces(source: ParallelSource) -> None:
    assert len(set(source.train.sources)) == len(source.train)
    for text in (*source.train.sources, *source.train.targets):
        assert text == " ".join(text.split())
        assert not {"\u00a0", "\u202f", "\u2009"} & set(text)


def test_unseen_words_are_rare_in_the_test_split() -> None:
    found = load_cldr({**OPTIONS, "pairs": 8000})
    known = {word for text in found.train.sources for word in text.split()}
    words = [word for text in found.test.sources for word in text.split() if not word[0].isdigit()]  # type: ignore[union-attr]
    assert sum(word not in known for word in words) / len(words) < 0.01


def test_plurals_are_cldrs() -> None:
    import random

    from babel import Locale

    from hf_lskd.data import cldr_phrases as phrases

    both = (Locale("en"), Locale("ru"))
    atoms = phrases.atoms(*both, everyday=True)
    only = phrases.Atoms(
        {}, {}, {"USD": atoms.currencies["USD"]}, {"length-kilometer": ("kilometers", "километры")}, {}
    )
    draw = random.Random(0)
    units = dict(phrases.units(draw, both, only) or ("", "") for _ in range(300))
    assert units["2 kilometers"] == "2 километра"
    assert units["5 kilometers"] == "5 километров"
    assert units["21 kilometers"] == "21 километр"
    money = dict(phrases.money(draw, both, only) or ("", "") for _ in range(300))
    assert money["1 US dollar"] == "1 доллар США"
    assert money["3 US dollars"] == "3 доллара США"
    assert money["11 US dollars"] == "11 долларов США"


def test_the_same_options_give_the_same_text_in_another_process() -> None:
    code = (
        "from hf_lskd.data.cldr import load_cldr; from tests.test_data_cldr import OPTIONS; "
        "print(load_cldr(OPTIONS).fingerprint)"
    )
    root = Path(__file__).parents[1]
    environment = {"PYTHONHASHSEED": "7", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env=environment)
    assert done.stdout.strip() == load_cldr(OPTIONS).fingerprint, done.stderr
    assert load_cldr({**OPTIONS, "seed": 1}).fingerprint != load_cldr(OPTIONS).fingerprint


def test_full_scope_has_more_words() -> None:
    few, many = (load_cldr({**OPTIONS, "scope": scope}) for scope in ("everyday", "full"))
    words = [{word for text in found.train.sources for word in text.split()} for found in (few, many)]
    assert len(words[1]) > 1.5 * len(words[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_lang": "xx"}, "language 'xx'"),
        ({"target_lang": "en"}, "two different languages"),
        ({"pairs": 10**7, "test_pairs": 1}, "fewer pairs"),
    ],
)
def test_what_cldr_cannot_give_is_refused(
    change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_lskd.data.cldr.TRIES", 0)
    with pytest.raises(InputError, match=message):
        load_cldr({**OPTIONS, **change})

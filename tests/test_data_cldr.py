"""Phrases composed by CLDR's patterns: correct, deterministic, and split without a leak."""

import datetime
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from babel import Locale, dates, numbers, units

from hf_lskd.data import cldr
from hf_lskd.data.cldr import load_cldr, locale, masked
from hf_lskd.data.cldr_phrases import Atoms, Pair, Phrases, atoms
from hf_lskd.data.pairs import ParallelSource
from hf_lskd.errors import InputError

OPTIONS: dict[str, Any] = {"source_lang": "en", "target_lang": "de", "scope": "everyday", "pairs": 1500,
                           "validation_pairs": 40, "test_pairs": 80, "seed": 0}  # fmt: skip


WORDS = [f"word{chr(97 + i)}{chr(97 + j)}" for i in range(10) for j in range(20)]


@pytest.fixture(scope="module", params=["de", "ru"])
def source(request: pytest.FixtureRequest) -> ParallelSource:
    return load_cldr({**OPTIONS, "target_lang": request.param})


def all_pairs(source: ParallelSource) -> list[Pair]:
    assert source.test is not None
    splits = (source.train, source.validation, source.test)
    return [pair for split in splits for pair in zip(split.sources, split.targets)]


def both(target: str, source: str = "en") -> tuple[Locale, Locale]:
    return Locale(source), Locale(target)


def everyday(target: str) -> Atoms:
    return atoms(both(target), cldr.SCOPES["everyday"])


def family(target: str, name: str, count: int = 3000) -> dict[str, str]:
    """What `count` draws of one family say."""
    phrases = Phrases(both(target), everyday(target), random.Random(0))
    made = [phrases.makers[name][1]() for _ in range(count)]
    return dict(pair for pair in made if pair is not None)


# ---- Splits


def test_splits_have_the_sizes_asked_for_and_the_facts_count_them(source: ParallelSource) -> None:
    assert source.test is not None
    assert len(source.validation) == 40
    assert len(source.test) == 80
    families = source.facts["families"]
    assert len(source.train) == 1500 + families["glossary"]
    assert sum(families.values()) == len(source.train) + 40 + 80
    assert len(families) == 12
    assert re.fullmatch(r"\d+\.\d+.*", source.facts["babel"])
    assert source.facts["scope"] == "everyday"


def test_left_out_options_have_the_documented_defaults() -> None:
    found = load_cldr({"source_lang": "en", "target_lang": "de"})
    assert found.test is not None
    assert (len(found.validation), len(found.test)) == (200, 400)
    assert len(found.train) == 20000 + found.facts["families"]["glossary"]


@pytest.mark.parametrize("scope", ["everyday", "full"])
def test_no_phrase_and_no_wording_is_in_two_splits(scope: str) -> None:
    found = load_cldr({**OPTIONS, "scope": scope, "pairs": 4000})
    assert found.test is not None
    splits = (found.train, found.validation, found.test)
    for i, one in enumerate(splits):
        for other in splits[i + 1 :]:
            assert not set(map(masked, one.sources)) & set(map(masked, other.sources))
            assert not set(one.targets) & set(other.targets)
    for held in splits[1:]:
        assert max(Counter(map(masked, held.sources)).values()) <= 4


def test_a_source_has_one_target_and_plain_single_spaces(source: ParallelSource) -> None:
    pairs = all_pairs(source)
    assert len({text for text, _ in pairs}) == len(pairs)
    for text in (text for pair in pairs for text in pair):
        assert text
        assert not re.search(r"[^\S ]|  |^ | $|[\u200b\u2060\ufeff]", text)


@pytest.mark.parametrize("target", ["de", "ru"])
def test_training_names_every_atom_and_the_test_split_has_hardly_a_new_word(target: str) -> None:
    found = load_cldr({**OPTIONS, "target_lang": target, "pairs": 8000, "test_pairs": 400})
    assert found.test is not None
    named = {pair[0] for pair in everyday(target).glossary()}
    assert len(named) > 200
    assert named <= set(found.train.sources)
    known = {word for text in found.train.sources for word in re.findall(r"[^\W\d]+", text)}
    words = [word for text in found.test.sources for word in re.findall(r"[^\W\d]+", text)]
    assert sum(word not in known for word in words) / len(words) <= 0.005


def test_what_the_glossary_teaches_is_not_held_out_and_targets_stay_in_their_split() -> None:
    wanted = {"train": 1, "validation": 1, "test": 1}
    of = {
        split: [f"{w} 1" for w in map(str.upper, WORDS) if cldr.split_of(masked(f"{w} 1")) == split] for split in wanted
    }
    stream = [
        ("a", (of["test"][0], "taught")),
        ("a", (of["train"][0], "eins")),
        ("a", (of["test"][1], "eins")),  # training's target
        ("a", None),
        ("a", (of["validation"][0], of["validation"][0])),  # nothing translated
        ("a", (of["validation"][1], "zwei")),
        ("a", (of["test"][2], "drei")),
    ]
    found, families = cldr.drawn(stream, wanted, [(of["test"][0].replace("1", "7"), "sieben")])
    assert found == {
        "train": [(of["test"][0], "taught")],
        "validation": [(of["validation"][1], "zwei")],
        "test": [(of["test"][1], "eins")],
    }
    assert families == {"a": 3}
    wanted["train"] = 2
    found, _ = cldr.drawn(stream, wanted, [(of["test"][0].replace("1", "7"), "sieben")])
    assert found["test"] == [(of["test"][2], "drei")]


# ---- Determinism


@pytest.mark.parametrize("target", ["de", "ru"])
def test_the_same_options_give_the_same_text_in_another_process(target: str) -> None:
    """Also whatever was loaded before: reading Babel's root data in place would change languages loaded later."""
    code = (
        "from hf_lskd.data.cldr import load_cldr; from tests.test_data_cldr import OPTIONS; "
        f"print(load_cldr({{**OPTIONS, 'target_lang': {target!r}}}).fingerprint)"
    )
    root = Path(__file__).parents[1]
    environment = {"PYTHONHASHSEED": "7", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env=environment)
    here = load_cldr({**OPTIONS, "target_lang": target}).fingerprint
    assert done.stdout.strip() == here, done.stderr
    assert load_cldr({**OPTIONS, "target_lang": target, "seed": 1}).fingerprint != here


def test_a_language_is_the_same_whatever_was_loaded_before_it() -> None:
    """A sparse language reads the root's months, which Babel then hands to others in place of their own."""
    code = (
        "import sys; from hf_lskd.data.cldr import load_cldr, locale; from tests.test_data_cldr import OPTIONS; "
        "[dict(locale(t).months['format']['abbreviated']) for t in sys.argv[1:]]; "
        "print(*(load_cldr({**OPTIONS, 'pairs': 600, 'target_lang': t}).fingerprint for t in ('ru', 'ur', 'ko')))"
    )
    root = Path(__file__).parents[1]
    said = [
        subprocess.check_output([sys.executable, "-c", code, *first], text=True, cwd=root)
        for first in ((), ("sms", "aa", "bgn"))
    ]
    assert said[0] == said[1]


# ---- What is said


def test_hand_checked_phrases() -> None:
    known = {
        "de": {
            "unit": {"2 kilograms": "2 Kilogramm", "1 week": "1 Woche", "12 weeks": "12 Wochen"},
            "relative": {"in 3 days": "in 3 Tagen", "1 month ago": "vor 1 Monat"},
            "rate": {"5 meters per hour": "5 Meter pro Stunde", "5 kilometers per hour": "5 Kilometer pro Stunde"},
            "money": {"1 Swedish krona": "1 Schwedische Krone", "2 Swedish kronor": "2 Schwedische Kronen"},
        },
        "ru": {
            "unit": {"1 kilogram": "1 килограмм", "2 weeks": "2 недели", "5 weeks": "5 недель", "21 weeks": "21 неделя"},
            "relative": {"in 3 days": "через 3 дня", "5 hours ago": "5 часов назад", "in 21 minutes": "через 21 минуту"},
            "rate": {"5 meters per hour": "5 метров в час", "2 bits per second": "2 бита в секунду"},
            "money": {"1 US dollar": "1 доллар США", "3 US dollars": "3 доллара США", "11 US dollars": "11 долларов США"},
        },
    }  # fmt: skip
    for target, families in known.items():
        for name, phrases in families.items():
            said = family(target, name, 12000)
            assert {text: said.get(text) for text in phrases} == phrases


def test_patterns_of_lists_durations_and_languages() -> None:
    german = Phrases(both("de"), everyday("de"), random.Random(0))
    names = [("Spain", "Spanien"), ("Italy", "Italien"), ("Peru", "Peru")]
    assert german.together(names, "or") == ("Spain, Italy, or Peru", "Spanien, Italien oder Peru")
    assert german.together(names[:2], "standard") == ("Spain and Italy", "Spanien und Italien")
    assert german.together([names[0], None], "or") is None
    russian = family("ru", "language", 30000)
    assert russian["Serbian (Latin, Austria)"] == "сербский (латиница, Австрия)"
    assert russian["German (Spain)"] == "немецкий (Испания)"
    assert any(re.fullmatch(r"\d+ дн\w+ \d+ час\w* \d+ минут\w*", text) for text in family("ru", "duration").values())


def test_amounts_agree_with_their_words_as_babel_says_them() -> None:
    for target in ("de", "ru"):
        one = Locale(target)
        phrases = Phrases(both(target), everyday(target), random.Random(0))
        for amount in (1, 2, 5, 11, 21, 101, 999):
            unit = units.format_unit(amount, "duration-week", "long", locale=one).replace("\u00a0", " ")
            assert phrases.unit_of(amount, "duration-week")[1] == unit
            money = numbers.format_currency(amount, "PLN", "#,##0", one, currency_digits=False, format_type="name")
            assert phrases.money_of(amount, "PLN")[1] == money.replace("\u00a0", " ")


def test_dates_are_babels() -> None:
    said = family("de", "date")
    days = {f"{day:%A, %B} {day.day}, {day.year}": day for day in map(datetime.date.fromordinal, range(711858, 748383))}
    full = [text for text in said if text in days]
    assert len(full) > 500
    for text in full:
        assert said[text] == dates.format_date(days[text], "full", Locale("de"))


@pytest.mark.parametrize(("target", "forms"), [("de", {"one", "other"}), ("ru", {"one", "few", "many"})])
@pytest.mark.parametrize("scope", ["everyday", "full"])
def test_only_what_has_all_plural_forms_is_counted(target: str, forms: set[str], scope: str) -> None:
    has, one = atoms(both(target), cldr.SCOPES[scope]), Locale(target)
    assert len(has.currencies) > 20
    assert len(has.units) >= 40
    for code in has.currencies:
        assert forms <= set(one._data["currency_names_plural"][code])
    for unit in has.units:
        assert forms <= set(one._data["unit_patterns"][unit]["long"])
    assert "EUR" in has.names["currencies"]
    assert "EUR" not in has.currencies  # neither language gives Babel its forms


def test_every_everyday_code_is_one_of_cldr() -> None:
    """A misspelt code would be left out without a word."""
    codes = cldr.SCOPES["everyday"]
    assert codes is not None
    known = everyday("ru")
    for kind in ("territories", "languages", "scripts", "currencies", "units"):
        assert set(known.names[kind]) == set(codes[kind].split())
    assert {name.split(" ")[0] for name in known.names["zones"]} == set(codes["zones"].split())


@pytest.mark.parametrize("scope", ["everyday", "full"])
def test_no_target_falls_back_to_english_or_to_a_code(scope: str) -> None:
    found = load_cldr({**OPTIONS, "target_lang": "ru", "scope": scope, "pairs": 6000})
    latin = {word for _, text in all_pairs(found) for word in re.findall(r"[A-Za-z]{2,}", text)}
    assert not latin & {"Mon", "Sun", "AM", "PM", "and", "or", "per", "ago", "in", "Bidi", "Accents"}
    assert len(latin) < 10  # brands and abbreviations only
    for target in ("rof", "ur", "ko"):  # Rombo has some of its months as M01
        said = load_cldr({**OPTIONS, "target_lang": target})
        assert not [text for _, text in all_pairs(said) if re.search(r"\bM\d", text)]


def test_a_word_that_two_styles_share_is_left_to_one() -> None:
    """ "May 3, 2020" is the long and the medium date; German writes the two differently."""
    mays = {text: said for text, said in family("de", "date").items() if text.startswith("May ")}
    assert len(mays) > 20
    assert all(re.fullmatch(r"\d+\. Mai \d{4}", said) for said in mays.values())


def test_full_scope_has_more_words() -> None:
    few, many = (load_cldr({**OPTIONS, "scope": scope}) for scope in ("everyday", "full"))
    words = [set(re.findall(r"[^\W\d]+", " ".join(found.train.sources))) for found in (few, many)]
    assert len(words[1]) > 3 * len(words[0])


def test_other_directions_and_regional_codes_work() -> None:
    for source, target in (("ru", "de"), ("de", "en"), ("en", "pt_BR"), ("en", "ja")):
        found = load_cldr({**OPTIONS, "source_lang": source, "target_lang": target, "pairs": 300})
        assert (found.source_lang, found.target_lang) == (source, target)


# ---- What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_lang": "xx"}, "language 'xx'"),
        ({"target_lang": "german"}, "language 'german'"),
        ({"source_lang": ""}, r"data\.source_lang: nothing"),
        ({"target_lang": "en"}, "two different languages"),
        ({"target_lang": "en_GB"}, "two different languages"),
        ({"target_lang": "sms"}, "no months"),
        ({"target_lang": "aa"}, "territories in both en and aa"),
        ({"scope": "everday"}, "Allowed: full or everyday. Did you mean 'everyday'"),
        ({"pairs": 0}, r"data\.pairs: 0"),
        ({"pairs": True}, r"data\.pairs: True"),
        ({"test_pairs": -1}, r"data\.test_pairs: -1"),
        ({"validation_pairs": 1.5}, r"data\.validation_pairs: 1\.5"),
    ],
)
def test_what_cldr_cannot_give_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_cldr({**OPTIONS, **change})


def test_more_pairs_than_there_are_is_refused_without_a_long_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cldr, "STALE", 50)
    with pytest.raises(InputError, match=r"data\.test_pairs 1000000.*Ask for fewer"):
        load_cldr({**OPTIONS, "pairs": 10, "validation_pairs": 1, "test_pairs": 10**6})


def test_without_babel_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "babel", None)
    with pytest.raises(InputError, match="pip install babel"):
        locale("de")

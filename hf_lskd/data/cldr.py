"""Parallel phrases composed by Unicode CLDR's own patterns, through Babel: correct text in two languages that any machine has."""

import copy
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from hf_lskd.data.cldr_phrases import Atoms, Both, Pair, Phrases, atoms, inherits
from hf_lskd.data.pairs import Pairs, ParallelSource
from hf_lskd.errors import InputError, nearest

DEFAULTS: dict[str, Any] = {"scope": "everyday", "pairs": 20000, "validation_pairs": 200, "test_pairs": 400, "seed": 0}
# The codes of the scopes, space between; None for all that both languages name
SCOPES: dict[str, dict[str, str] | None] = {
    "full": None,
    "everyday": {
        "territories": """
            AR AT AU BE BG BR CA CH CL CN CO CZ DE DK EG ES FI FR GB GE GR HR HU ID IE IL IN IR IS IT JP KE KR LT LV MA MX NG NL NO
            NZ PE PH PK PL PT RO RS RU SE SG SI SK TH TR UA US VN ZA
        """,
        "languages": """
            ar bg ca cs da de el en es et eu fa fi fr ga he hi hr hu id is it ja ka ko lt lv nl no pl pt ro ru sk sl sr sv th tr uk vi
            zh
        """,
        "scripts": "Latn Cyrl Arab Grek Hebr Armn Geor Deva Beng Hang",
        "currencies": """
            USD EUR GBP JPY CHF RUB SEK NOK DKK PLN CZK HUF CNY INR TRY AUD CAD BRL MXN ZAR ILS KRW THB UAH BGN RON ISK ARS EGP PHP
        """,
        "units": """
            length-kilometer length-meter length-centimeter length-millimeter length-mile length-foot length-inch
            mass-kilogram mass-gram mass-tonne mass-pound mass-ounce volume-liter volume-milliliter volume-gallon volume-cubic-meter
            area-square-kilometer area-square-meter area-hectare area-acre
            duration-year duration-month duration-week duration-day duration-hour duration-minute duration-second duration-millisecond
            digital-bit digital-byte digital-kilobyte digital-megabyte digital-gigabyte digital-terabyte
            temperature-celsius temperature-fahrenheit power-watt power-kilowatt electric-volt electric-ampere
        """,
        "zones": """
            Europe_Central Europe_Eastern Europe_Western GMT Moscow America_Eastern America_Central America_Mountain America_Pacific
            Brasilia Japan China India Gulf Korea Australia_Eastern
        """,
    },
}
COUNTS = {"train": "pairs", "validation": "validation_pairs", "test": "test_pairs"}
PER_GROUP = 4  # held-out pairs of one number-masked source at most
TEST_SHARE, HELD_OUT_SHARE = 8, 12  # percent of the number-masked sources: for test, for test and validation together
MOST = 2_000_000  # pairs: more than the phrases have to say
STALE = 20_000  # draws in a row without a new pair: the families have no more to say
FEWEST_NAMES = 20
COVERED = "languages that CLDR covers well, such as en, de or ru"


def load_cldr(data: Mapping[str, Any]) -> ParallelSource:
    """Dates, units, money, durations, lists, names of places and languages in `source_lang` and `target_lang`.

    `scope` everyday: common names and units only; full: all that CLDR names in both. Pure in the options and the Babel version.
    Phrases that differ in numbers only fall into the same split; training has one line for each name and unit besides.
    Raises InputError for a language that CLDR does not have or hardly has, equal languages, an unknown scope, and counts
    below 1 or more than the scope can fill.
    """
    options = {**DEFAULTS, **data}
    check(options)
    both = locale(options["source_lang"]), locale(options["target_lang"])
    if both[0].language == both[1].language:
        raise InputError(f"cldr from {options['source_lang']} to {options['target_lang']}", "two different languages")
    known = atoms(both, SCOPES[options["scope"]])
    check_coverage(both, known)
    draw = random.Random(f"{options['seed']}|{options['scope']}|{both[0]}|{both[1]}")
    glossary = list(dict(reversed(known.glossary())).items())[::-1]  # the first target of a source
    wanted = {split: options[key] for split, key in COUNTS.items()}
    found, families = drawn(Phrases(both, known, draw), wanted, glossary)
    found["train"] += glossary
    splits = {name: Pairs(*map(list, zip(*pairs))) for name, pairs in found.items()}
    return ParallelSource(
        splits["train"],
        splits["validation"],
        options["source_lang"],
        options["target_lang"],
        splits["test"],
        {
            "corpus": "Unicode CLDR",
            "babel": version(),
            "scope": options["scope"],
            "families": {**dict(sorted(families.items())), "glossary": len(glossary)},
        },
    )


def drawn(
    stream: Iterable[tuple[str, Pair | None]], wanted: Mapping[str, int], glossary: Iterable[Pair]
) -> tuple[dict[str, list[Pair]], Counter[str]]:
    """Pairs until each split has as many as wanted, and how many came from each family.

    No source or target is in two splits; the glossary's are training's. Raises InputError when nothing new comes any more.
    """
    found: dict[str, list[Pair]] = {name: [] for name in wanted}
    sources = {source for source, _ in glossary}
    taught = {masked(source) for source in sources}
    home = {target: "train" for _, target in glossary}  # the split of a target
    groups, families = Counter[str](), Counter[str]()
    missing, stale = sum(wanted.values()), 0
    for family, pair in stream:
        stale += 1
        if stale > STALE:
            break
        if pair is None or pair[0] == pair[1] or pair[0] in sources:
            continue
        group = masked(pair[0])
        name = "train" if group in taught else split_of(group)
        full = len(found[name]) >= wanted[name] or (name != "train" and groups[group] >= PER_GROUP)
        if full or home.setdefault(pair[1], name) != name:
            continue
        found[name].append(pair)
        sources.add(pair[0])
        groups[group] += 1
        families[family] += 1
        missing, stale = missing - 1, 0
        if not missing:
            return found, families
    short = ", ".join(
        f"{len(found[name])} for data.{COUNTS[name]} {wanted[name]}"
        for name in wanted
        if len(found[name]) < wanted[name]
    )
    raise InputError(f"CLDR composes too few pairs: {short}", "as many as it has", "Ask for fewer, or scope: full.")


def split_of(group: str) -> str:
    """The split of a number-masked source, by its words alone."""
    place = zlib.crc32(group.encode()) % 100
    return "test" if place < TEST_SHARE else "validation" if place < HELD_OUT_SHARE else "train"


def masked(source: str) -> str:
    """The phrase with each number as 0."""
    return re.sub(r"\d+", "0", source)


# ---- What is refused


def check(options: Mapping[str, Any]) -> None:
    """Raises InputError for an unknown scope, a count below 1 and a language that is not named."""
    for key in ("source_lang", "target_lang"):
        if not options.get(key):
            raise InputError(f"data.{key}: nothing", "a language of CLDR, such as en, de or ru")
    if options["scope"] not in SCOPES:
        raise InputError(
            f"data.scope: {options['scope']!r}", " or ".join(SCOPES), nearest(str(options["scope"]), list(SCOPES))
        )
    for key in COUNTS.values():
        count = options[key]
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"data.{key}: {count!r}", "a whole number, 1 or more")
        if count > MOST:
            raise InputError(f"data.{key}: {count!r}", f"at most {MOST}: CLDR has no more to say")


def locale(code: str) -> Any:
    """Babel's locale of a language. Raises InputError for an unknown one and without Babel.

    It has data of its own: Babel's locales share the root's tables and change them as they are read, each for the next.
    """
    try:
        from babel import Locale, UnknownLocaleError
        from babel.localedata import LocaleDataDict, load, locale_identifiers
    except ImportError as error:
        raise InputError("no package babel", "babel 2.18 or newer", "pip install babel") from error
    try:
        found = Locale.parse(code)
    except (UnknownLocaleError, ValueError, TypeError) as error:
        known = sorted(locale_identifiers())
        raise InputError(
            f"language {code!r}", "a language of CLDR, such as en, de, ru or pt_BR", nearest(str(code), known)
        ) from error
    inherited: Any = copy.deepcopy(load(str(found)))
    setattr(found, "_Locale__data", LocaleDataDict(inherited))  # noqa: B010 (where Locale keeps what it has loaded)
    return found


def check_coverage(both: Both, known: Atoms) -> None:
    """Raises InputError for a language that does not name months and days, and for two with hardly any names in common."""
    for one in both:
        lacks = [table for table in ("months", "days") if inherits(one, table, "wide")]
        if lacks:
            raise InputError(f"CLDR has no {' and no '.join(lacks)} in {one}", COVERED)
    for kind in ("territories", "languages"):
        if len(known.names[kind]) < FEWEST_NAMES:
            pair = " and ".join(map(str, both))
            raise InputError(f"CLDR names {len(known.names[kind])} {kind} in both {pair}", COVERED)


def version() -> str:
    import babel

    return str(babel.__version__)

"""Parallel phrases composed by Unicode CLDR's own patterns, through Babel: correct text in two languages that any machine has."""

import random
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hf_lskd.data.pairs import Pairs, ParallelSource
from hf_lskd.errors import InputError, nearest

Pair = tuple[str, str]
PER_GROUP = 4  # held-out pairs of one number-masked source at most
HELD_OUT_SHARE = 12  # percent of the number-masked sources, for validation and test together
TRIES = 40  # times the pairs wanted: then the families have no more to say


def load_cldr(data: Mapping[str, Any]) -> ParallelSource:
    """Dates, units, money, durations, lists, names of places and languages in `source_lang` and `target_lang`.

    `scope` everyday: common names and units only; full: all that CLDR names in both. Pure in the options and the Babel version.
    Phrases that differ in numbers only fall into the same split; training has one line for each name and unit besides.
    Raises InputError for a language that CLDR does not have, equal languages, and counts that the scope cannot fill.
    """
    from hf_lskd.data import cldr_phrases as phrases

    source, target = phrases.locale(data["source_lang"]), phrases.locale(data["target_lang"])
    if source.language == target.language:
        raise InputError(f"cldr from {data['source_lang']} to {data['target_lang']}", "two different languages")
    atoms = phrases.atoms(source, target, everyday=data["scope"] == "everyday")
    draw = random.Random(f"{data['seed']}|{data['scope']}|{source}|{target}")
    wanted = {"train": data["pairs"], "validation": data["validation_pairs"], "test": data["test_pairs"]}
    found, families = drawn(phrases.stream(atoms, source, target, draw), wanted)
    held = [set(side) for side in zip(*found["validation"], *found["test"])]
    glossary = [pair for pair in atoms.glossary() if pair[0] not in held[0] and pair[1] not in held[1]]
    train = one_target_a_source([*found["train"], *glossary])
    splits = {name: Pairs(*map(list, zip(*pairs))) for name, pairs in {**found, "train": train}.items()}
    return ParallelSource(
        splits["train"],
        splits["validation"],
        data["source_lang"],
        data["target_lang"],
        splits["test"],
        {
            "corpus": "Unicode CLDR",
            "babel": phrases.version(),
            "scope": data["scope"],
            "families": dict(sorted(families.items())),
        },
    )


def drawn(stream: Iterable[tuple[str, Pair]], wanted: Mapping[str, int]) -> tuple[dict[str, list[Pair]], Counter]:
    """Pairs until each split has as many as wanted, and how many came from each family. No source or target is in two splits."""
    found: dict[str, list[Pair]] = {name: [] for name in wanted}
    homes: dict[str, str] = {}
    groups, families = Counter[str](), Counter[str]()
    limit = TRIES * sum(wanted.values())
    for tries, (family, (source, target)) in enumerate(stream):
        name = split_of(source)
        group = masked(source)
        full = len(found[name]) >= wanted[name] or (name != "train" and groups[group] >= PER_GROUP)
        known = f"s {source}" in homes or homes.get(f"t {target}", name) != name
        if not full and not known:
            found[name].append((source, target))
            homes[f"s {source}"] = homes[f"t {target}"] = name
            groups[group] += 1
            families[family] += 1
        if all(len(found[key]) >= count for key, count in wanted.items()):
            return found, families
        if tries >= limit:
            break
    short = {name: len(found[name]) for name in wanted if len(found[name]) < wanted[name]}
    raise InputError(
        f"data.pairs: {dict(wanted)}, of which CLDR composes no more than {short}", "fewer pairs, or scope: full"
    )


def split_of(source: str) -> str:
    """The split of a phrase, by its words alone: numbers do not count."""
    place = zlib.crc32(masked(source).encode()) % 100
    return "test" if place < 2 * HELD_OUT_SHARE // 3 else "validation" if place < HELD_OUT_SHARE else "train"


def masked(source: str) -> str:
    return re.sub(r"\d+", "0", source)


def one_target_a_source(pairs: Iterable[Pair]) -> list[Pair]:
    return list(dict(reversed(list(pairs))).items())[::-1]


def check_language(code: str, known: Iterable[str]) -> None:
    if code not in set(known):
        raise InputError(f"language {code!r}", "a language of CLDR, such as en, de or ru", nearest(code, sorted(known)))


def alternating(
    parts: Mapping[str, Iterator[Pair | None]], draw: random.Random, weights: Mapping[str, int]
) -> Iterator[tuple[str, Pair]]:
    """Pairs of all families, as often as their weights say."""
    names = list(parts)
    while True:
        family = draw.choices(names, [weights[name] for name in names])[0]
        pair = next(parts[family])
        if pair is not None and pair[0] != pair[1]:
            yield family, pair

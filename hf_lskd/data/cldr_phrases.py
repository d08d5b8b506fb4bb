"""What CLDR can say: names, units and phrases, each in two languages by the same pattern of both."""

import copy
import datetime
import functools
import itertools
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Pair = tuple[str, str]
Both = tuple[Any, Any]  # Babel's locales of source and target

NOT_NAMES = {"XA", "XB", "ZZ", "und", "mul", "zxx", "mis", "root", "Zxxx", "Zzzz", "XTS", "XXX"}  # tests and unknowns
SECONDS = {"year": 31536000, "month": 2592000, "week": 604800, "day": 86400, "hour": 3600, "minute": 60, "second": 1}
DURATIONS = [f"duration-{time}" for time in SECONDS]
COMMON_AMOUNTS = (1, 2, 3, 4, 5, 7, 11, 12, 21, 25, 30, 48, 100)
MOST = 999  # the largest amount: no language groups its digits
ROOT_MONTH = re.compile(r"\bM\d\d?\b")
SIMPLE = ("unit", "money", "date", "rate")  # the families that lists of phrases are made of


@dataclass(frozen=True)
class Atoms:
    """Names that both languages have, by code; and the codes that both can count or set in a pattern."""

    names: dict[str, dict[str, Pair]]  # by kind: territories, languages, scripts, currencies, units, zones
    units: list[str]
    per: list[str]  # times that a unit can be divided by
    currencies: list[str]
    relative: list[str]
    styles: list[str]  # of lists

    def glossary(self) -> list[Pair]:
        """Each name once."""
        return [pair for kind in self.names.values() for pair in kind.values()]


def atoms(both: Both, codes: Mapping[str, str] | None = None) -> Atoms:
    """What both languages name: all, or the codes of each kind, space between.

    Units and currencies are counted only where both languages have each plural form of their amounts.
    """

    def chosen(kind: str, table: Iterable[str]) -> list[str]:
        return sorted(table) if codes is None else codes[kind].split()

    names: dict[str, dict[str, Pair]] = {}
    for kind in ("territories", "languages", "scripts", "currencies"):
        tables = [getattr(one, kind) for one in both]
        names[kind] = names_of(chosen(kind, tables[0]), *tables)
    names["zones"] = zones(both, chosen("zones", both[0].meta_zones))
    patterns = [one._data["unit_patterns"] for one in both]
    units = [unit for unit in chosen("units", patterns[0]) if counted(both, *patterns, unit, "long")]
    plurals = [one._data["currency_names_plural"] for one in both]
    titles = [{unit: unit_name(one, unit) for unit in units} for one in both]
    return Atoms(
        {**names, "units": names_of(units, *titles)},
        units,
        [unit for unit in DURATIONS if all("per" in table.get(unit, {}).get("long", {}) for table in patterns)],
        [code for code in names["currencies"] if counted(both, *plurals, code)],
        [time for time in SECONDS if all(relates(one, time) for one in both)],
        [style for style in ("standard", "or") if all(lists_by(one, style) for one in both)],
    )


def names_of(codes: Sequence[str], source: Mapping[str, Any], target: Mapping[str, Any]) -> dict[str, Pair]:
    """The codes that both tables name. A code in place of a name is none."""
    found = {code: pair(source.get(code) or code, target.get(code) or code) for code in codes if code not in NOT_NAMES}
    return {code: names for code, names in found.items() if code not in names}


def unit_name(language: Any, unit: str) -> str | None:
    """Its long name; where there is none CLDR inherits the short one, which Babel leaves to its callers."""
    names = language.unit_display_names.get(unit, {})
    return names.get("long") or names.get("short")


def zones(both: Both, codes: Sequence[str]) -> dict[str, Pair]:
    """Long names of zones by `zone variant`. From CLDR alone: Babel's formatters would ask the system's zone files."""
    tables: list[dict[str, Any]] = []
    for one in both:
        known = {zone: one.meta_zones[zone].get("long", {}) for zone in codes if zone in one.meta_zones}
        tables.append({f"{zone} {variant}": said for zone, names in known.items() for variant, said in names.items()})
    return names_of(list(tables[0]), *tables)


@functools.cache
def root() -> Any:
    """What a language that says nothing inherits: codes and a few English words.

    A copy: reading Babel's own resolves its aliases in place, and languages loaded later would say Mon for their Monday.
    """
    from babel import localedata

    inherited: Any = copy.deepcopy(localedata.load("root"))
    return localedata.LocaleDataDict(inherited)


def inherits(language: Any, table: str, width: str) -> bool:
    """Whether a language has no months or days of its own, but M08 and the like. The root's days are English."""
    own, inherited = (data[table]["format"][width] for data in (language._data, root()))
    return language.language != "en" and dict(own) == dict(inherited)


@functools.cache
def plural_forms(language: Any) -> frozenset[str]:
    return frozenset(language.plural_form(amount) for amount in range(1, MOST + 1))


def counted(both: Both, source: Any, target: Any, *path: str) -> bool:
    """Whether the tables of both languages have each plural form of the amounts at `path`.

    A language of one form needs only the currency's name. In others an absent form may be a gap, so it counts as one.
    """
    for one, table in zip(both, (source, target)):
        for key in path:
            table = table.get(key, {})
        if not plural_forms(one) <= set(table) and (path[-1] == "long" or len(plural_forms(one)) > 1):
            return False
    return True


def relates(language: Any, time: str) -> bool:
    """Whether a language has "in 3 …" and "3 … ago" of its own."""
    said, inherited = (table["date_fields"].get(time, {}) for table in (language._data, root()))
    return said != inherited and all(plural_forms(language) <= set(said.get(way, {})) for way in ("future", "past"))


def lists_by(language: Any, style: str) -> bool:
    """Whether a language has a list pattern of its own: not the root's, which has an English "or", nor English's."""
    from babel import Locale

    own = language.list_patterns.get(style)
    foreign = (dict(root()["list_patterns"][style]), dict(Locale("en").list_patterns[style]))
    return own is not None and (language.language == "en" or dict(own) not in foreign)


def pair(source: Any, target: Any) -> Pair:
    """Two texts with plain single spaces in place of no-break, thin and figure spaces."""
    return " ".join(str(source).split()), " ".join(str(target).split())


class Phrases:
    """Phrases of `both` locales without end. A family returns None where the draw has no phrase in both or an ambiguous one."""

    def __init__(self, both: Both, atoms: Atoms, draw: random.Random) -> None:
        self.both, self.atoms, self.draw = both, atoms, draw
        self.unit_of, self.money_of = functools.cache(self._unit_of), functools.cache(self._money_of)
        self.names = {kind: list(names.values()) for kind, names in atoms.names.items()}
        self.plain = {kind: [code for code in names if "_" not in code] for kind, names in atoms.names.items()}
        self.divided = [unit for unit in atoms.units if not unit.startswith("duration-") and "-per-" not in unit]
        self.times = [unit for unit in DURATIONS if unit in atoms.units]
        self.listed = [
            kind for kind in ("territories", "languages", "currencies", "zones") if len(self.names[kind]) > 3
        ]
        weekdays = not any(inherits(one, "days", "abbreviated") for one in both)
        self.skeletons = ("yMMMd", "yMMMEd", "MMMd", "yMMMM") if weekdays else ("yMMMd", "MMMd", "yMMMM")
        self.makers = self.families()

    def families(self) -> dict[str, tuple[int, Callable[[], Pair | None]]]:
        """How often each family that the languages have is drawn, and what makes one of its phrases."""
        has = self.atoms
        commas = all(one.list_patterns["standard"].get("middle") == "{0}, {1}" for one in self.both)
        families: dict[str, tuple[Any, int, Callable[[], Pair | None]]] = {
            "date": (True, 8, self.date),
            "time": (True, 8, self.time),
            "interval": (True, 8, self.interval),
            "unit": (has.units, 12, self.unit),
            "rate": (self.divided and has.per, 8, self.rate),
            "relative": (has.relative, 5, self.relative),
            "money": (has.currencies, 12, self.money),
            "list": (has.styles and self.listed, 14, self.list),
            "duration": (self.times[2:], 9, self.duration),
            # Babel joins the parts of a language's name with a Latin comma, whatever the language.
            "language": (commas and self.plain["languages"] and self.plain["territories"], 8, self.language),
            "phrases": (has.styles, 6, self.phrases),
        }
        return {name: (weight, make) for name, (usable, weight, make) in families.items() if usable}

    def __iter__(self) -> Iterator[tuple[str, Pair | None]]:
        names = list(self.makers)
        weights = list(itertools.accumulate(weight for weight, _ in self.makers.values()))
        while True:
            family = self.draw.choices(names, cum_weights=weights)[0]
            yield family, self.makers[family][1]()

    def said(self, formatter: Callable[..., Any], *args: Any, **options: Any) -> Pair:
        return pair(*(formatter(*args, **options, locale=one) for one in self.both))

    def dated(self, formatter: Callable[..., Any], *args: Any) -> Pair | None:
        """The same of a date; None where a language writes its months as codes."""
        said = self.said(formatter, *args)
        return None if any(ROOT_MONTH.search(side) for side in said) else said

    def together(self, parts: Sequence[Pair | None], style: str) -> Pair | None:
        """A list by CLDR's pattern; None without one: Babel has German's units for a list of two only."""
        from babel.lists import format_list

        said = [part for part in parts if part is not None]
        if len(said) < len(parts):
            return None
        styled: Any = style
        try:
            return pair(*(format_list(side, styled, one) for side, one in zip(zip(*said), self.both)))
        except KeyError:
            return None

    def amount(self) -> int:
        return self.draw.choice(COMMON_AMOUNTS) if self.draw.random() < 0.5 else self.draw.randint(2, MOST)

    def day(self) -> datetime.date:
        return datetime.date(self.draw.randint(1950, 2049), 1, 1) + datetime.timedelta(self.draw.randint(0, 364))

    def date(self) -> Pair | None:
        from babel.dates import format_date

        day, style = self.day(), self.draw.choice(("full", "long", "medium"))
        months = self.both[0].months["format"]
        if style == "medium" and months["wide"][day.month] == months["abbreviated"][day.month]:
            return None  # "May 3, 2020" is long and medium in English; German writes the two differently
        return self.dated(format_date, day, style)

    def time(self) -> Pair | None:
        from babel.dates import format_datetime

        clock = datetime.time(self.draw.randint(0, 23), self.draw.randint(0, 59))
        at = datetime.datetime.combine(self.day(), clock)
        return self.dated(format_datetime, at, self.draw.choice(("medium", "short")))

    def interval(self) -> Pair | None:
        from babel.dates import format_interval

        start = self.day()
        end = start + datetime.timedelta(self.draw.choice((1, 3, 12, 45, 200, 500)))
        return self.dated(format_interval, start, end, self.draw.choice(self.skeletons))

    def unit(self) -> Pair:
        return self.unit_of(self.amount(), self.draw.choice(self.atoms.units))

    def _unit_of(self, amount: int, unit: str) -> Pair:
        from babel.units import format_unit

        return self.said(format_unit, amount, unit, "long")

    def rate(self) -> Pair:
        """A unit per time. Babel gets the unit already worded: by its code it would find kilometers for meters per hour."""
        from babel.units import format_compound_unit

        worded, per = self.unit_of(self.amount(), self.draw.choice(self.divided)), self.draw.choice(self.atoms.per)
        return pair(
            *(format_compound_unit(side, denominator_unit=per, locale=one) for side, one in zip(worded, self.both))
        )

    def relative(self) -> Pair:
        from babel.dates import format_timedelta

        time, way = self.draw.choice(self.atoms.relative), self.draw.choice((-1, 1))
        span = datetime.timedelta(seconds=way * self.draw.randint(1, 99) * SECONDS[time])
        return self.said(format_timedelta, span, time, threshold=MOST, add_direction=True)

    def money(self) -> Pair:
        return self.money_of(self.amount(), self.draw.choice(self.atoms.currencies))

    def _money_of(self, amount: int, currency: str) -> Pair:
        from babel.numbers import format_currency

        return self.said(format_currency, amount, currency, "#,##0", format_type="name", currency_digits=False)

    def list(self) -> Pair | None:
        names = self.draw.sample(self.names[self.draw.choice(self.listed)], self.draw.choice((2, 3, 3, 4)))
        return self.together(names, self.draw.choice(self.atoms.styles))

    def duration(self) -> Pair | None:
        first = self.draw.randint(0, len(self.times) - 2)
        chosen = self.times[first : first + self.draw.choice((2, 2, 3))]
        return self.together([self.unit_of(self.amount(), time) for time in chosen], "unit")

    def language(self) -> Pair | None:
        """ "Serbian (Latin, Austria)"; Babel names any combination, though it constructs attested ones only."""
        one = copy.copy(self.both[0])
        one.variant = one.modifier = one.script = one.territory = None
        one.language = self.draw.choice(self.plain["languages"])
        parts = self.draw.choice(("territory", "territory", "script", "both")) if self.plain["scripts"] else "territory"
        if parts != "script":
            one.territory = self.draw.choice(self.plain["territories"])
        if parts != "territory":
            one.script = self.draw.choice(self.plain["scripts"])
        return self.said(one.get_display_name)

    def phrases(self) -> Pair | None:
        simple = [name for name in SIMPLE if name in self.makers]
        parts = [self.makers[self.draw.choice(simple)][1]() for _ in range(self.draw.choice((2, 2, 3)))]
        return self.together(parts, self.draw.choice(self.atoms.styles))

"""What CLDR can say: names, units and phrases, each in two languages by the same pattern of both."""

import datetime
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hf_lskd.data.cldr import Pair, alternating, check_language
from hf_lskd.errors import InputError


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TERRITORIES = words(
    """
    AR AT AU BE BG BR CA CH CL CN CO CZ DE DK EG ES FI FR GB GE GR HR HU ID IE IL IN IR IS IT JP KE KR LT LV MA MX
    NG NL NO NZ PE PH PK PL PT RO RS RU SE SG SI SK TH TR UA US VN ZA
    """
)
LANGUAGES = words(
    """
    ar bg ca cs da de el en es et eu fa fi fr ga he hi hr hu id is it ja ka ko lt lv nl no pl pt ro ru sk sl sr sv
    th tr uk vi zh
    """
)
CURRENCIES = words(
    """
    USD EUR GBP JPY CHF RUB SEK NOK DKK PLN CZK HUF CNY INR TRY AUD CAD BRL MXN ZAR ILS KRW THB UAH BGN RON ISK
    NZD SGD ARS
    """
)
UNITS = words(
    """
    length-kilometer length-meter length-centimeter length-millimeter length-mile length-foot length-inch mass-
    kilogram mass-gram mass-tonne mass-pound mass-ounce volume-liter volume-milliliter volume-gallon volume-cubic-
    meter area-square-kilometer area-square-meter area-hectare area-acre duration-year duration-month duration-
    week duration-day duration-hour duration-minute duration-second duration-millisecond digital-bit digital-byte
    digital-kilobyte digital-megabyte digital-gigabyte digital-terabyte temperature-celsius temperature-fahrenheit
    power-watt power-kilowatt electric-volt electric-ampere
    """
)
ZONES = words(
    """
    Europe/Berlin Europe/London Europe/Moscow America/New_York America/Chicago America/Denver America/Los_Angeles
    America/Sao_Paulo Asia/Tokyo Asia/Shanghai Asia/Kolkata Asia/Dubai Asia/Seoul Africa/Johannesburg Africa/Lagos
    Australia/Sydney
    """
)
DURATIONS = ("year", "month", "week", "day", "hour", "minute", "second")
WEIGHTS = {"date": 8, "time": 8, "interval": 8, "unit": 12, "rate": 8, "relative": 5, "money": 12, "list": 14, "duration": 9,
           "language": 8, "zone": 2, "phrases": 6}  # fmt: skip
SPACES = re.compile(r"[\u00a0\u202f\u2009\u2007]")


@dataclass(frozen=True)
class Atoms:
    """Names and units that both languages have, by code."""

    territories: dict[str, Pair]
    languages: dict[str, Pair]
    currencies: dict[str, Pair]
    units: dict[str, Pair]
    zones: dict[str, Pair]

    def glossary(self) -> list[Pair]:
        """Each of them once."""
        return [pair for kind in vars(self).values() for pair in kind.values()]


def locale(code: str) -> Any:
    """Babel's locale of a language. Raises InputError for an unknown one and without Babel."""
    try:
        from babel import Locale, UnknownLocaleError
        from babel.localedata import locale_identifiers
    except ImportError as error:
        raise InputError("no package babel", "babel 2.18 or newer", "pip install babel") from error
    check_language(code, (name for name in locale_identifiers() if len(name) <= 3 or "_" in name))
    try:
        return Locale.parse(code)
    except (UnknownLocaleError, ValueError) as error:
        raise InputError(f"language {code!r}", "a language of CLDR, such as en, de or ru") from error


def version() -> str:
    import babel

    return str(babel.__version__)


def atoms(source: Any, target: Any, *, everyday: bool) -> Atoms:
    """What both languages name. Units and currencies only where the target has each plural form that its numbers need."""
    both = (source, target)

    def named(kind: str, codes: Sequence[str], pattern: str) -> dict[str, Pair]:
        tables = [getattr(one, kind) for one in both]
        chosen = codes if everyday else sorted(code for code in tables[0] if re.fullmatch(pattern, str(code)))
        return {
            code: pair(tables[0][code], tables[1][code]) for code in chosen if all(code in table for table in tables)
        }

    zones = {name: zone_names(name, both) for name in ZONES}
    return Atoms(
        named("territories", TERRITORIES, "[A-Z]{2}"),
        named("languages", LANGUAGES, "[a-z]{2}"),
        {
            code: p
            for code, p in named("currencies", CURRENCIES, "[A-Z]{3}").items()
            if all(declines(one, code) for one in both)
        },
        unit_names(both, everyday),
        {name: names for name, names in zones.items() if names[0] != names[1]},
    )


def unit_names(both: tuple[Any, Any], everyday: bool) -> dict[str, Pair]:
    from babel.units import get_unit_name

    codes = UNITS if everyday else sorted(both[0]._data["unit_patterns"])
    both_have = [code for code in codes if all(counts(one, code) for one in both)]
    names = {code: [get_unit_name(code, "long", one) for one in both] for code in both_have}
    return {code: pair(*said) for code, said in names.items() if all(said)}


def forms(language: Any) -> set[str]:
    return {*language.plural_form.tags, "other"}


def counts(language: Any, unit: str) -> bool:
    """Whether a language has the unit in each plural form that whole numbers need."""
    patterns = language._data["unit_patterns"].get(unit, {}).get("long", {})
    needed = forms(language) - {"other"} if len(forms(language)) > 2 else forms(language)
    return all(form in patterns for form in needed)


def declines(language: Any, currency: str) -> bool:
    """The same of a currency. One that never changes has no forms in a language of two, such as German's US-Dollar."""
    names = language._data["currency_names_plural"].get(currency, {})
    if not names and len(forms(language)) <= 2:
        return True
    needed = forms(language) - {"other"} if len(forms(language)) > 2 else forms(language)
    return all(form in names for form in needed)


def zone_names(zone: str, both: tuple[Any, Any]) -> Pair:
    from babel.dates import get_timezone_name

    return pair(*(get_timezone_name(zone, width="long", zone_variant="standard", locale=one) for one in both))


def pair(source: Any, target: Any) -> Pair:
    """Two texts with plain spaces."""
    return plain(source), plain(target)


def plain(text: Any) -> str:
    return " ".join(SPACES.sub(" ", str(text)).split())


def stream(atoms: Atoms, source: Any, target: Any, draw: random.Random) -> Iterator[tuple[str, Pair]]:
    """Pairs without end, family by family."""
    both = (source, target)
    makers: dict[str, Callable[[], Any]] = {
        "date": lambda: dates(draw, both),
        "time": lambda: times(draw, both),
        "interval": lambda: intervals(draw, both),
        "unit": lambda: units(draw, both, atoms),
        "rate": lambda: rates(draw, both, atoms),
        "relative": lambda: relative(draw, both),
        "money": lambda: money(draw, both, atoms),
        "list": lambda: lists(draw, both, atoms),
        "duration": lambda: durations(draw, both),
        "language": lambda: languages(draw, both, atoms),
        "zone": lambda: zones(draw, both, atoms),
    }

    def forever(make: Callable[[], Any]) -> Iterator[Any]:
        while True:
            yield make()

    simple = ("unit", "money", "date", "rate")

    def joined() -> Pair | None:
        parts = [makers[draw.choice(simple)]() for _ in range(draw.choice((2, 2, 3)))]
        return together(both, parts, draw.choice(("standard", "or")))

    makers_and_joined = {**makers, "phrases": joined}
    return alternating({name: forever(make) for name, make in makers_and_joined.items()}, draw, WEIGHTS)


def together(both: tuple[Any, Any], parts: Sequence[Pair | None], style: Any) -> Pair | None:
    """A list of phrases by CLDR's list pattern; None where one could not be said."""
    from babel.lists import format_list

    if any(part is None for part in parts):
        return None
    sides = zip(*[part for part in parts if part is not None])
    try:
        return pair(*(format_list(list(side), style, one) for one, side in zip(both, sides)))
    except KeyError:  # some languages have such lists of two only
        return None


def amount(draw: random.Random) -> int:
    return draw.choice((1, 2, 3, 4, 5, 7, 11, 12, 21, 25, 30, 48, 100, draw.randint(2, 999)))


def day(draw: random.Random) -> datetime.date:
    return datetime.date(draw.randint(1950, 2049), 1, 1) + datetime.timedelta(days=draw.randint(0, 364))


def dates(draw: random.Random, both: tuple[Any, Any]) -> Pair:
    from babel.dates import format_date

    when, style = day(draw), draw.choice(("full", "long", "medium"))
    return pair(*(format_date(when, style, one) for one in both))


def times(draw: random.Random, both: tuple[Any, Any]) -> Pair:
    from babel.dates import format_datetime

    at = datetime.datetime.combine(day(draw), datetime.time(draw.randint(0, 23), draw.randint(0, 59)))
    skeleton = draw.choice(("medium", "short"))
    return pair(*(format_datetime(at, skeleton, locale=one) for one in both))


def intervals(draw: random.Random, both: tuple[Any, Any]) -> Pair:
    from babel.dates import format_interval

    start = day(draw)
    end = start + datetime.timedelta(days=draw.choice((1, 3, 12, 45, 200, 500)))
    skeleton = draw.choice(("yMMMd", "yMMMEd", "MMMd", "yMMMM"))
    return pair(*(format_interval(start, end, skeleton, locale=one) for one in both))


def units(draw: random.Random, both: tuple[Any, Any], atoms: Atoms) -> Pair | None:
    from babel.units import format_unit

    count, unit = amount(draw), draw.choice(list(atoms.units))
    return pair(*(format_unit(count, unit, "long", locale=one) for one in both))


def rates(draw: random.Random, both: tuple[Any, Any], atoms: Atoms) -> Pair | None:
    from babel.units import format_compound_unit

    per = f"duration-{draw.choice(('second', 'minute', 'hour', 'day', 'week', 'year'))}"
    unit = draw.choice([unit for unit in atoms.units if not unit.startswith("duration")])
    count = amount(draw)
    said = [format_compound_unit(count, unit, denominator_unit=per, length="long", locale=one) for one in both]
    return pair(*said) if all(said) else None


def relative(draw: random.Random, both: tuple[Any, Any]) -> Pair:
    from babel.dates import format_timedelta

    span = datetime.timedelta(
        **{draw.choice(("minutes", "hours", "days", "weeks")): draw.choice((-1, 1)) * amount(draw)}
    )
    return pair(*(format_timedelta(span, add_direction=True, locale=one) for one in both))


def money(draw: random.Random, both: tuple[Any, Any], atoms: Atoms) -> Pair | None:
    from babel.numbers import format_currency

    if not atoms.currencies:
        return None
    count, currency = amount(draw), draw.choice(list(atoms.currencies))
    return pair(
        *(
            format_currency(count, currency, "#,##0", locale=one, format_type="name", currency_digits=False)
            for one in both
        )
    )


def lists(draw: random.Random, both: tuple[Any, Any], atoms: Atoms) -> Pair | None:
    names = draw.choice((atoms.territories, atoms.languages, atoms.territories, atoms.currencies or atoms.languages))
    chosen = draw.sample(list(names.values()), draw.choice((2, 3, 3, 4)))
    return together(both, chosen, draw.choice(("standard", "or")))


def durations(draw: random.Random, both: tuple[Any, Any]) -> Pair | None:
    from babel.units import format_unit

    first = draw.randint(0, len(DURATIONS) - 2)
    chosen = DURATIONS[first : first + draw.choice((2, 2, 3))]
    parts = []
    for name in chosen:
        count = amount(draw)
        parts.append(pair(*(format_unit(count, f"duration-{name}", "long", locale=one) for one in both)))
    return together(both, parts, "unit")


def languages(draw: random.Random, both: tuple[Any, Any], atoms: Atoms) -> Pair | None:
    """ "German (Austria)", by CLDR's own pattern for a language of a place."""
    language, territory = draw.choice(list(atoms.languages)), draw.choice(list(atoms.territories))
    said = []
    for one, side in zip(both, (0, 1)):
        pattern = one._data.get("locale_display_pattern", "{0} ({1})")
        said.append(pattern.format(atoms.languages[language][side], atoms.territories[territory][side]))
    return pair(*said)


def zones(draw: random.Random, both: tuple[Any, Any], atoms: Atoms) -> Pair | None:
    from babel.dates import get_timezone_name

    zone = draw.choice(list(atoms.zones))
    variant: Any = draw.choice(("standard", "daylight", "generic"))
    said = [get_timezone_name(zone, width="long", zone_variant=variant, locale=one) for one in both]
    return pair(*said)

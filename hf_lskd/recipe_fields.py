"""What a recipe's values may be: small readers that turn a received value into a checked one or note a problem."""

import math
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

from hf_lskd.errors import nearest
from hf_lskd.recipe_yaml import KeyPath, Problems, describe, number_from

INVALID: Final = object()  # what a reader returns after it has noted a problem
NAME = re.compile(r"[a-z0-9_-]+")


@dataclass(frozen=True)
class Kind:
    """A kind of value. `allowed` says it in words; calling it gives the checked value, or notes a problem and gives INVALID."""

    allowed: str
    read: Callable[[Problems, Any, KeyPath, str], Any]

    def __call__(self, problems: Problems, value: Any, at: KeyPath, allowed: str = "") -> Any:
        return self.read(problems, value, at, allowed or self.allowed)


@dataclass(frozen=True)
class Field:
    """One key of a mapping."""

    kind: Kind
    default: Any = None
    required: bool = False


def scalar(allowed: str, convert: Callable[[Any], Any]) -> Kind:
    """A kind from a function that returns the value or raises ValueError, whose text is the hint."""

    def read(problems: Problems, value: Any, at: KeyPath, allowed: str) -> Any:
        try:
            return convert(value)
        except ValueError as error:
            hint = str(error)
            word = problems.document.words.get(at, "true")
            if isinstance(value, bool) and word.lower() not in ("true", "false"):
                hint = f"YAML reads an unquoted {word} as {describe(value)}. {hint}".strip()
            problems.add(at, describe(value), allowed, hint)
            return INVALID

    return Kind(allowed, read)


def to_number(value: Any) -> float | int:
    """A finite number; texts such as "0.1" or "1e-3" are the numbers that they spell, true and false are none."""
    found = number_from(value.strip()) if isinstance(value, str) else value
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise ValueError("")
    if (isinstance(found, int) and abs(found) >= 2**63) or not math.isfinite(found):
        raise ValueError("")
    return found


def number(
    low: float = -math.inf, high: float = math.inf, *, above: float | None = None, below: float | None = None
) -> Kind:
    """A float in [low, high]; `above` and `below` are open bounds."""

    def convert(value: Any) -> float:
        found = float(to_number(value))
        too_low = found < low or (above is not None and found <= above)
        if too_low or found > high or (below is not None and found >= below):
            raise ValueError("")
        return found + 0.0  # -0.0 becomes 0.0

    lower, upper = (low if above is None else above), (high if below is None else below)
    if math.isinf(lower) and math.isinf(upper):
        allowed = "a finite number"
    elif math.isinf(upper):
        allowed = f"a finite number {'>' if above is not None else '>='} {lower:g}"
    else:
        closing = ")" if below is not None else "]"
        allowed = f"a number in {'[' if above is None else '('}{lower:g}, {upper:g}{closing}"
    return scalar(allowed, convert)


def integer(low: int | None = None, high: int | None = None) -> Kind:
    """A whole number in [low, high]; 3.0 and 1e3 are whole."""

    def convert(value: Any) -> int:
        found = to_number(value)
        whole = int(found)
        if whole != found or (low is not None and whole < low) or (high is not None and whole > high):
            raise ValueError("")
        return whole

    bounds = f" >= {low}" if low is not None and high is None else f" in [{low}, {high}]" if low is not None else ""
    return scalar(f"a whole number{bounds}", convert)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("Write it without quotes." if str(value).lower() in ("true", "false") else "")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("Quote it if text is meant." if isinstance(value, (bool, int, float)) else "")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError("Quote it if text is meant." if isinstance(value, (bool, int, float)) else "")
    return value


def _null(value: Any) -> None:
    if value is not None:
        raise ValueError("")


null = scalar("null", _null)
boolean = scalar("true or false", _boolean)
text = scalar("text", _text)
name = scalar("a name of lower-case letters, digits, '_' and '-'", _name)


def choice(*names: str) -> Kind:
    """One of a few words. An unquoted no or off, which YAML reads as false, is the word where that word is allowed."""

    few = len(names) <= 16
    allowed = " | ".join(names if few else (*names[:4], "…"))

    def convert(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            hint = nearest(value, names) if isinstance(value, str) else ""
            raise ValueError(hint or ("" if few else f"All: {', '.join(names)}."))
        return value

    plain = scalar(allowed, convert)

    def read(problems: Problems, value: Any, at: KeyPath, allowed: str) -> Any:
        word = problems.document.words.get(at, "").lower()
        return word if isinstance(value, bool) and word in names else plain(problems, value, at, allowed)

    return Kind(plain.allowed, read)


def _class_name(problems: Problems, value: Any, at: KeyPath, allowed: str) -> Any:
    if isinstance(value, bool):
        value = problems.document.words.get(at, value)
    return text(problems, str(value) if type(value) is int else value, at, allowed)


label = Kind("a class name", _class_name)  # digits and words such as No are names here


def optional(kind: Kind, allowed: str = "") -> Kind:
    """The kind, or null; `allowed` words it where the parts together read badly."""

    def read(problems: Problems, value: Any, at: KeyPath, allowed: str) -> Any:
        return None if value is None else kind(problems, value, at, allowed)

    return Kind(allowed or f"{kind.allowed}, or null", read)


def either(*kinds: Kind) -> Kind:
    """The first kind that takes the value. A value that none takes is reported once, in the words of all."""

    def read(problems: Problems, value: Any, at: KeyPath, allowed: str) -> Any:
        attempts = [Problems(problems.document) for _ in kinds]
        for kind, attempt in zip(kinds, attempts):
            found = kind(attempt, value, at)
            if not len(attempt):
                return found
        # A list or mapping that one kind takes as a whole is wrong further in: say where.
        for attempt in attempts:
            if isinstance(value, (list, dict)) and not attempt.concerns(at):
                problems.include(attempt)
                return INVALID
        words = [word for kind in kinds for word in kind.allowed.split(" | ")]
        problems.add(at, describe(value), allowed, nearest(value, words) if isinstance(value, str) else "")
        return INVALID

    return Kind(", or ".join(kind.allowed for kind in kinds), read)


def listed(kind: Kind, *, length: int | None = None, unique: bool = False, single: bool = True) -> Kind:
    """A list of the kind, not empty; with `single` one value stands for a list of one. Gives a list."""
    words = f"a list of {length} values, each {kind.allowed}" if length else f"a list, each value {kind.allowed}"

    def read(problems: Problems, value: Any, at: KeyPath, allowed: str) -> Any:
        if not isinstance(value, list) and single and not isinstance(value, dict):
            found = kind(problems, value, at)
            return INVALID if found is INVALID else [found] * (length or 1)
        if not isinstance(value, list) or not value or (length and len(value) != length):
            what = "an empty list" if value == [] else describe(value)
            problems.add(at, what, allowed if value != [] else f"at least one value: {kind.allowed}")
            return INVALID
        items = [kind(problems, item, (*at, i)) for i, item in enumerate(value)]
        if unique:
            for i, item in enumerate(items):
                if item is not INVALID and item in items[:i]:
                    problems.add((*at, i), f"{describe(value[i])} twice", "each value once")
        return items

    return Kind(words, read)


def _free(problems: Problems, value: Any, at: KeyPath, allowed: str) -> Any:
    """Any JSON-like mapping with text keys and finite numbers."""
    if not isinstance(value, dict):
        problems.add(at, describe(value), allowed)
        return INVALID
    for key, item in value.items():
        if not isinstance(key, str):
            problems.add((*at, str(key)), f"the key {describe(key)}", "text as keys", key=True)
        elif isinstance(item, dict):
            _free(problems, item, (*at, key), allowed)
        elif any(isinstance(x, float) and not math.isfinite(x) for x in (item if isinstance(item, list) else [item])):
            problems.add((*at, key), describe(item), "finite numbers")
    return value


free_mapping = Kind("a mapping {key: value}", _free)


def block(fields: Mapping[str, Field], *, elsewhere: Mapping[str, str] | None = None) -> Kind:
    """A mapping with these keys, as a kind of its own."""

    def read(problems: Problems, value: Any, at: KeyPath, allowed: str) -> Any:
        if not isinstance(value, dict):
            problems.add(at, describe(value), allowed)
            return INVALID
        return read_mapping(problems, value, at, fields, elsewhere=elsewhere)

    return Kind(f"a mapping with {', '.join(fields)}", read)


def read_mapping(
    problems: Problems,
    given: Mapping[Any, Any],
    at: KeyPath,
    fields: Mapping[str, Field],
    *,
    elsewhere: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Check a mapping key by key. Gives every field, its default where the key is missing or its value wrong.

    `elsewhere` says for well-known keys that do not belong here what to write instead.
    """
    for key in given:
        if key not in fields:
            note_unknown(problems, (*at, str(key)), str(key), list(fields), (elsewhere or {}).get(str(key), ""))
    found = {}
    for key, field in fields.items():
        result = field.kind(problems, given[key], (*at, key)) if key in given else field.default
        if field.required and key not in given:
            problems.add((*at, key), "nothing", field.kind.allowed, "This key is required.")
        found[key] = deepcopy(field.default) if result is INVALID or result is field.default else result
    return found


def note_unknown(
    problems: Problems, at: KeyPath, key: str, known: list[str], instead: str = "", allowed: str = ""
) -> None:
    """An unknown key: what to write instead when that is known, else the nearest known key."""
    problems.add(at, "an unknown key", allowed or ", ".join(known), instead or nearest(key, known), key=True)

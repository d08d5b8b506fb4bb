"""What is laid over a recipe's page before it is read: one of its own named alternatives, and settings from the command line."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import yaml

from hf_lskd.errors import InputError, nearest
from hf_lskd.recipe_yaml import Document, KeyPath, describe

ALTERNATIVES = "alternatives"


def alternatives_of(document: Document) -> list[str]:
    """Names of the page's alternatives. Raises InputError for a block that is no mapping of mappings."""
    given = document.values.get(ALTERNATIVES) if isinstance(document.values, Mapping) else None
    if given is None:
        return []
    if not isinstance(given, Mapping) or not all(isinstance(one, Mapping) for one in given.values()):
        line = document.lines.get((ALTERNATIVES,), 0)
        place = f"{document.source}:{line}" if line else document.source
        raise InputError(f"{place}: {ALTERNATIVES}: {describe(given)}", "a mapping {name: {keys of the recipe}}")
    return [str(name) for name in given]


def with_changes(document: Document, alternative: str | None = None, settings: Sequence[str] = ()) -> Document:
    """The page with an alternative of its own, then `settings` ("teacher.pretrained=false"), laid over it.

    An alternative's mappings are merged key by key, anything else replaces what is there. What was changed stands in the
    document under `changes`, which the resolved recipe keeps. Raises InputError for an alternative that the page does not
    have, for a setting that is not key=value, and for a path that leads through something that has no keys.
    """
    names = alternatives_of(document)
    if alternative is not None and alternative not in names:
        raise InputError(
            f"alternative {alternative!r} of {document.source}",
            ", ".join(names) or "none: the recipe has no alternatives",
            nearest(alternative, names),
        )
    if not isinstance(document.values, Mapping) or (not names and not settings):
        return document
    values = deepcopy(dict(document.values))
    blocks = values.pop(ALTERNATIVES, {})
    touched: list[KeyPath] = []
    changes = list(values.pop("changes", []) or [])
    if alternative is not None:
        merge(values, blocks[alternative], (), touched)
        changes.append(f"alternative {alternative}")
    for setting in settings:
        touched.append(put(values, setting))
        changes.append(setting)
    if changes:
        values["changes"] = changes
    lines, key_lines, words = (
        {at: kept for at, kept in places.items() if not any(at[: len(path)] == path for path in touched)}
        for places in (document.lines, document.key_lines, document.words)
    )
    return Document(document.source, values, lines, key_lines, words)  # type: ignore[arg-type]


def merge(values: dict[Any, Any], over: Mapping[Any, Any], at: KeyPath, touched: list[KeyPath]) -> None:
    """Lay `over` on `values`, in place; `touched` gets the paths of what was replaced."""
    for key, new in over.items():
        place = (*at, str(key))
        if isinstance(new, Mapping) and isinstance(values.get(key), dict):
            merge(values[key], new, place, touched)
        else:
            values[key] = deepcopy(new)
            touched.append(place)


def put(values: dict[str, Any], setting: str) -> KeyPath:
    """Set one value by its path, such as `data.path=/data/cub` or `students.0.pretrained=false`. Returns the path."""
    name, equals, text = setting.partition("=")
    keys = [key for key in name.strip().split(".") if key]
    if not equals or not keys:
        raise InputError(f"--set {setting}", "--set KEY=VALUE, such as --set data.path=/data/cub")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    path: KeyPath = ()
    at: Any = values
    for key in keys[:-1]:
        step = entry(at, key, path, setting)
        if isinstance(at, dict):
            at.setdefault(step, {})
        path, at = (*path, step), at[step]
    last = entry(at, keys[-1], path, setting)
    at[last] = value
    return (*path, last)


def entry(at: Any, key: str, path: KeyPath, setting: str) -> str | int:
    """`key` as an index of a list or a key of a mapping. Raises InputError where there is neither, or no such item."""
    if isinstance(at, dict):
        return key
    if isinstance(at, list) and key.isdecimal() and int(key) < len(at):
        return int(key)
    where = ".".join(map(str, path)) or "the recipe"
    allowed = f"an index below {len(at)}" if isinstance(at, list) else "a key of a mapping"
    raise InputError(f"--set {setting}: {key!r} in {where}", allowed)

"""What is laid over a recipe's page before it is read: one of its own named alternatives, and settings from the command line."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

from hf_lskd.errors import InputError, RecipeErrors, nearest
from hf_lskd.recipe_yaml import Document, KeyPath, describe, read_document

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
    changes = list(values.pop("changes", []) or [])
    changed = replace(document, values=values)
    if alternative is not None:
        touched: list[KeyPath] = []
        merge(values, blocks[alternative], (), touched)
        changes.append(f"alternative {alternative}")
        changed = with_places(changed, touched, moved(document, (ALTERNATIVES, alternative)))
    for setting in settings:
        path, given = put(values, setting)
        changes.append(setting)
        changed = with_places(changed, [path], replace(given, settings={path: setting}))
    if changes:
        values["changes"] = changes
    return changed


PLACES = ("lines", "key_lines", "words", "settings")  # what a document knows of its values by their paths


def moved(document: Document, away: KeyPath) -> Document:
    """The places below `away`, under their paths from there."""
    found: dict[str, Any] = {}
    for kind in PLACES:
        places = getattr(document, kind).items()
        found[kind] = {at[len(away) :]: kept for at, kept in places if at[: len(away)] == away}
    return replace(document, **found)


def with_places(document: Document, touched: Sequence[KeyPath], new: Document) -> Document:
    """The document in which what is known of the values at and below `touched` is what `new` knows of them."""

    def inside(at: KeyPath) -> bool:
        return any(at[: len(path)] == path for path in touched)

    found: dict[str, Any] = {}
    for kind in PLACES:
        old = {at: kept for at, kept in getattr(document, kind).items() if not inside(at)}
        found[kind] = {**old, **{at: kept for at, kept in getattr(new, kind).items() if inside(at)}}
    return replace(document, **found)


def merge(values: dict[Any, Any], over: Mapping[Any, Any], at: KeyPath, touched: list[KeyPath]) -> None:
    """Lay `over` on `values`, in place; `touched` gets the paths of what was replaced."""
    for key, new in over.items():
        place = (*at, str(key))
        if isinstance(new, Mapping) and isinstance(values.get(key), dict):
            merge(values[key], new, place, touched)
        else:
            values[key] = deepcopy(new)
            touched.append(place)


def put(values: dict[str, Any], setting: str) -> tuple[KeyPath, Document]:
    """Set one value by its path, such as `data.path=/data/cub` or `students.0.pretrained=false`, the value read as a page is.

    Returns the path of what is new, the mapping above it where there was none, and the words of its value."""
    name, equals, text = setting.partition("=")
    keys = name.strip().split(".")
    if not equals or not any(keys):
        raise InputError(f"--set {setting}", "--set KEY=VALUE, such as --set data.path=/data/cub")
    if not all(keys):
        meant = ".".join(key for key in keys if key)
        raise InputError(
            f"--set {setting}: an empty key in {name.strip()!r}", "keys with one dot between", f"Write {meant}=…."
        )
    given = value_of(text, setting)
    path: KeyPath = ()
    new: KeyPath = ()
    at: Any = values
    for key in keys[:-1]:
        step = entry(at, key, path, setting)
        path = (*path, step)
        if isinstance(at, dict) and step not in at:
            at[step] = {}
            new = new or path
        at = at[step]
    last = entry(at, keys[-1], path, setting)
    at[last] = given.values
    path = (*path, last)
    return new or path, replace(given, lines={}, key_lines={}, words={(*path, *k): w for k, w in given.words.items()})


def value_of(text: str, setting: str) -> Document:
    """What stands behind the = of a setting; what is no YAML is text. Raises InputError for a key that is given twice."""
    if not text.strip():
        return Document("", None)
    try:
        return read_document(text, f"--set {setting}")
    except RecipeErrors:
        raise
    except InputError:
        return Document("", text)


def entry(at: Any, key: str, path: KeyPath, setting: str) -> str | int:
    """`key` as an index of a list or a key of a mapping. Raises InputError where there is neither, or no such item."""
    if isinstance(at, dict):
        return key
    if isinstance(at, list) and key.isdecimal() and int(key) < len(at):
        return int(key)
    where = ".".join(map(str, path)) or "the recipe"
    received = f"--set {setting}: {key!r} in {where}"
    if isinstance(at, list):
        last = f"the last is {where}.{len(at) - 1}" if at else "there is none yet"
        raise InputError(received, f"an index below {len(at)}", f"Items are counted from 0; {last}.")
    raise InputError(received, "a key of a mapping", f"Set {where} itself." if path else "")

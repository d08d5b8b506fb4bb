"""A YAML page -> plain values that remember their lines; and the list of problems found in them."""

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from hf_lskd.errors import InputError, RecipeErrors, nearest

KeyPath = tuple[str | int, ...]

# YAML 1.1 (PyYAML) reads 1e-3 as text, 010 as 8 and 1:30 as 90; a recipe means what YAML 1.2 and its reader mean.
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)")
FLOAT = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
SPECIAL = {".nan": float("nan"), ".inf": float("inf"), "+.inf": float("inf"), "-.inf": float("-inf")}
MAX_NODES = 100_000


@dataclass(frozen=True)
class Document:
    """What a page says. `lines` and `key_lines` give the 1-based line of a value and of its key; `words` keeps
    the text of plain scalars that YAML reads as true or false, so that `save_strategy: no` can mean "no". `settings` are what
    the command line has put over the page, each as it was given."""

    source: str
    values: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)
    key_lines: dict[KeyPath, int] = field(default_factory=dict)
    words: dict[KeyPath, str] = field(default_factory=dict)
    settings: dict[KeyPath, str] = field(default_factory=dict)


class Problems:
    """Collects what is wrong with a document; `raise_if_any` raises all of it at once."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._found: dict[tuple[int, str], KeyPath] = {}

    def add(self, at: KeyPath, received: str, allowed: str, hint: str = "", *, key: bool = False) -> None:
        """Note one problem at a key path; `key` points at the key itself and not at its value."""
        line = self._line(at, key)
        place = f"{self.document.source}:{line}" if line else self.document.source
        if setting := self._setting(at):
            line, place = 0, f"{self.document.source}, --set {setting}"
        where = f"{place}: {key_name(at)}" if at else place
        self._found[line, f"{where}: received {received}; allowed {allowed}. {hint}".rstrip()] = at

    def __len__(self) -> int:
        return len(self._found)

    def concerns(self, at: KeyPath) -> bool:
        """Whether a problem was noted at exactly this key path."""
        return at in self._found.values()

    def include(self, other: "Problems") -> None:
        """Take over the problems that another reading of the same document found."""
        self._found.update(other._found)

    def raise_if_any(self) -> None:
        """Raises RecipeErrors, its problems in the order of the page."""
        if self._found:
            raise RecipeErrors([text for _, text in sorted(self._found, key=lambda found: found[0])])

    def _setting(self, at: KeyPath) -> str | None:
        """The setting of the command line that a value comes from."""
        places = (at[:length] for length in range(len(at), 0, -1))
        return next((self.document.settings[place] for place in places if place in self.document.settings), None)

    def _line(self, at: KeyPath, key: bool) -> int:
        if key and at in self.document.key_lines:
            return self.document.key_lines[at]
        for length in range(len(at), -1, -1):
            if at[:length] in self.document.lines:
                inside = self.document.key_lines if length < len(at) else self.document.lines
                return inside.get(at[:length], self.document.lines[at[:length]])
        return 0


def key_name(at: KeyPath) -> str:
    """`("grid", "temperature", 1)` -> `grid.temperature[1]`."""
    name = ""
    for part in at:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name


def describe(value: Any) -> str:
    """A received value as a reader would write it, at most about 60 characters."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    text = json.dumps(value, ensure_ascii=False, default=str) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_page(path: str | Path) -> str:
    """The text of a recipe file; of a cell's record.json, the recipe that the record holds.

    Raises InputError when there is no such file, or it is a folder or not UTF-8.
    """
    file = Path(path)
    if file.is_dir():
        pages = sorted(p.name for p in file.glob("*.yaml"))
        raise InputError(f"{file} is a folder", "a recipe file", f"It holds {', '.join(pages[:8])}." if pages else "")
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        siblings = [str(p) for p in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
        raise InputError(f"recipe {file} does not exist", "a YAML file", nearest(str(file), siblings)) from None
    except OSError as error:
        raise InputError(f"recipe {file} cannot be read: {error.strerror}", "a readable YAML file") from None
    try:
        return recipe_in_record(raw.decode("utf-8-sig"), file)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        received = f"{file}:{line}: received byte 0x{raw[error.start]:02x}, which is not UTF-8"
        raise InputError(received, "text in UTF-8", "Save the file as UTF-8.") from None


def recipe_in_record(text: str, file: Path) -> str:
    """The recipe of a finished cell's record as a page of its own; any other file's text as it is."""
    if file.name != "record.json":
        return text
    try:
        return json.dumps(json.loads(text)["recipe"], indent=1, ensure_ascii=False)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} holds no recipe ({error})", "a record written by `hf-lskd study`") from error


def read_document(text: str, source: str) -> Document:
    """YAML text -> Document. Raises InputError for a syntax error, RecipeErrors for duplicate keys and the like."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        document = Document(source, values=None)
        builder = _Builder(Problems(document))
        values = builder.build(node, ()) if node is not None else None
    except yaml.YAMLError as error:
        raise _syntax_error(error, text, source) from None
    except RecursionError:
        raise InputError(f"{source}: received values nested too deeply to read", "a few levels") from None
    builder.problems.raise_if_any()
    if node is None:
        raise InputError(f"{source} is empty", "a mapping with name, task, data, teacher, students and grid")
    return replace(document, values=values)


class _Builder:
    """Nodes -> values. Own code and no yaml constructor: that one drops marks and lets a second key win silently."""

    def __init__(self, problems: Problems) -> None:
        self.problems, self.document = problems, problems.document
        self._inside: list[int] = []
        self._nodes = 0

    def build(self, node: yaml.Node, at: KeyPath) -> Any:
        self.document.lines[at] = node.start_mark.line + 1
        self._nodes += 1
        if id(node) in self._inside or self._nodes > MAX_NODES:
            raise yaml.YAMLError("an anchor that repeats itself without end")
        if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith("tag:yaml.org,2002:python"):
            self.problems.add(at, f"the tag {node.tag}", "plain values")
        self._inside.append(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, at)
            if isinstance(node, yaml.SequenceNode):
                return [self.build(item, (*at, i)) for i, item in enumerate(node.value)]
            if not isinstance(node, yaml.ScalarNode):
                raise yaml.YAMLError(f"a node of kind {type(node).__name__}")
            return self._scalar(node, at)
        finally:
            self._inside.pop()

    def _mapping(self, node: yaml.MappingNode, at: KeyPath) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = _plain(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            place = (*at, str(key))
            if not isinstance(key_node, yaml.ScalarNode):
                self.document.lines[place] = line
                self.problems.add(place, "a list or mapping as a key", "text as a key")
            elif key_node.tag == "tag:yaml.org,2002:merge":
                self.document.lines[place] = line
                self.problems.add(place, "a merge key", "plain keys", "Write the shared keys out.")
            elif place in self.document.key_lines:
                first = self.document.key_lines[place]
                self.document.lines[place] = line
                self.problems.add(place, f"the same key again (first on line {first})", "each key once")
            else:
                self.document.key_lines[place] = line
                values[key] = self.build(value_node, place)
        return values

    def _scalar(self, node: yaml.ScalarNode, at: KeyPath) -> Any:
        value = _plain(node)
        if isinstance(value, bool):
            self.document.words[at] = node.value
        return value


def _plain(node: yaml.ScalarNode) -> Any:
    """A scalar as null, bool, int, float or text. Quoted scalars are text."""
    text = node.value
    if node.style is not None:
        return text
    if node.tag.endswith(":null"):
        return None
    if node.tag.endswith(":bool"):
        return yaml.SafeLoader.bool_values[text.lower()]
    return number_from(text) if number_from(text) is not None else text


def number_from(text: str) -> int | float | None:
    """The number that a text spells, as YAML 1.2 reads it; None when it spells none."""
    if INTEGER.fullmatch(text) and len(text) <= 4000:  # Python refuses to read more digits
        return int(text)
    if FLOAT.fullmatch(text) and any(mark in text for mark in ".eE"):
        return float(text.replace("_", ""))
    return SPECIAL.get(text.lower())


def _syntax_error(error: yaml.YAMLError, text: str, source: str) -> InputError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    position = getattr(error, "position", None)
    line = mark.line + 1 if mark else text.count("\n", 0, position) + 1 if isinstance(position, int) else 0
    place = f"{source}:{line}" if line else source
    rows = text.splitlines()
    row = rows[line - 1] if 0 < line <= len(rows) else ""
    if "\t" in row[: len(row) - len(row.lstrip())] or "'\\t'" in str(getattr(error, "problem", "")):
        return InputError(f"{place}: received a tab as indentation", "spaces", "Replace each tab by two spaces.")
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    shown = f" in {describe(row.strip())}" if row.strip() else ""
    return InputError(
        f"{place}: received what is not YAML{shown}: {what}", "a YAML mapping", "Check quotes, colons and indentation."
    )

"""The pages for readers, and how their Python snippets are run."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page, such as `docs/use.md`."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def run_snippet(snippet: str, page: str, names: dict[str, Any]) -> dict[str, Any]:
    """The reader's own script, with the reader's own data; returns the names that it leaves."""
    exec(compile(snippet, page, "exec"), names)
    return names

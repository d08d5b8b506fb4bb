"""Errors that end a search: what was received, what is allowed, what to do next."""

from collections.abc import Sequence


class InputError(ValueError):
    """Bad user input; the command line prints it without a traceback and exits with 2."""

    def __init__(self, received: str, allowed: str = "", hint: str = "") -> None:
        self.received, self.allowed, self.hint = received, allowed, hint
        parts = [received if received.endswith(("?", "!")) else received.rstrip(".") + "."]
        if allowed:
            parts.append(f"Allowed: {allowed.rstrip('.')}.")
        if hint:
            parts.append(hint)
        super().__init__(" ".join(parts))

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, str, str]]:
        """Keep the three parts when a data-loader worker sends the error to its parent."""
        return type(self), (self.received, self.allowed, self.hint)


class RecipeErrors(InputError):  # noqa: N818 (several errors, not one)
    """Every problem of a recipe at once, one line each, in `problems`."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        ValueError.__init__(self, "\n".join(self.problems))

    def __reduce__(self) -> tuple[type["RecipeErrors"], tuple[list[str]]]:  # type: ignore[override]
        return type(self), (self.problems,)


def nearest(name: str, known: Sequence[str]) -> str:
    """The known name that `name` is probably a misspelling of, as a hint; empty when none is close."""
    from difflib import get_close_matches

    found = get_close_matches(name, [str(k) for k in known], n=3, cutoff=0.6)
    return f"Did you mean {' or '.join(repr(f) for f in found)}?" if found else ""

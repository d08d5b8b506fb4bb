"""Groups of CUB-200-2011's birds by their names."""

from collections.abc import Sequence


def groups_of_birds(names: Sequence[str]) -> tuple[str, ...]:
    """The last word of each name: "001.Black_footed_Albatross" is an Albatross."""
    return tuple(name.rsplit(".", 1)[-1].rsplit("_", 1)[-1] for name in names)

"""ImageNet-1k's classes: 1,000 WordNet synsets in sorted order (timm's `ImageNetInfo`), and what people call them."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

SYNSET = re.compile(r"n\d{8}")


@cache
def imagenet_names() -> dict[str, str]:
    """{synset: name} of the 1,000 classes, in the order of pretrained classifiers.

    A name is the synset's first lemma; where two synsets share it (crane, maillot), the synset's id stands behind it.
    """
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    first = {synset: _first_lemma(info.label_name_to_description(synset)) for synset in info.label_names()}
    count = Counter(first.values())
    return {synset: name if count[name] == 1 else f"{name} ({synset})" for synset, name in first.items()}


def human_names(synsets: Sequence[str]) -> tuple[str, ...]:
    """The name of each synset of ImageNet-1k, the same in a subset as in the whole. Raises KeyError for others."""
    return tuple(imagenet_names()[synset] for synset in synsets)


def synsets_of(names: Sequence[str]) -> tuple[str, ...] | None:
    """The synset of each class of a data set that names its classes as ImageNet does; None for every other data set.

    Names are synset ids, or the lemmas of all 1,000 classes in their order, as the Hub's copies of ImageNet have them.
    """
    if names and all(SYNSET.fullmatch(name) for name in names):
        return tuple(names) if set(names) <= imagenet_names().keys() else None
    if len(names) != 1000:
        return None
    known = imagenet_names()
    fits = all(_plain(name) == _plain(own) for name, own in zip(names, known.values()))
    return tuple(known) if fits else None


def _first_lemma(description: str) -> str:
    return description.split(",")[0].strip()


def _plain(name: str) -> str:
    """The first lemma without what tells two equal ones apart (a number or an id behind it)."""
    return re.sub(r"\s*(\(n\d{8}\)|\d+)$", "", _first_lemma(name)).lower()

"""S1 and S2 from WordNet, for classes that are noun synsets such as ImageNet's n02099601.

Only `data.noun` is read, by its published format (wndb(5WN)): a synset's id is the byte at which its line starts. No library
for it: NLTK (3.10) refuses folders outside its own data path and wants files that Debian leaves out (`lexnames`,
`index.sense`), and `wn` (1.1) reads a database of its own that it fills from the internet.
"""

import os
import re
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hf_lskd.analysis.semantics import SimilarSets, check_sizes, checked_targets, drawn
from hf_lskd.errors import InputError

VERSION = "3.0"  # the one whose offsets ImageNet's ids are; other versions have other offsets
FILE = "data.noun"
SYNSET = re.compile(r"n\d{8}")
HYPERNYM = ("@", "@i")  # of a kind, of an instance
OBTAIN = (
    "Install it (Debian, Ubuntu: apt-get install wordnet-base; NLTK: nltk.download('wordnet')), or set WNSEARCHDIR."
)


class Synset(NamedTuple):
    """The words of one synset, in WordNet's order, and the offsets of its hypernyms."""

    words: tuple[str, ...]
    hypernyms: tuple[int, ...]


@dataclass(frozen=True)
class Nouns:
    """WordNet's nouns: the content of `data.noun` and the version that its licence names ("?": none)."""

    data: bytes = field(repr=False)

    @property
    def version(self) -> str:
        found = re.search(rb"^ .*?WordNet (?:Release )?(\d+(?:\.\d+)+)", self.data[:4096], re.MULTILINE)
        return found[1].decode() if found else "?"

    def synset(self, offset: int) -> Synset:
        """The synset whose line starts at byte `offset`. Raises InputError where none does."""
        end = self.data.find(b"\n", offset)
        line = self.data[offset : end if end >= 0 else None].decode("utf-8", "replace")
        if not line.startswith(f"{offset:08d} ") or self.data[offset - 1 : offset] not in (b"\n", b""):
            raise InputError(
                f"synset n{offset:08d}",
                f"a noun of WordNet {self.version}",
                f"Ids are offsets in WordNet {VERSION}: n and eight digits.",
            )
        # offset, lexicographer file, kind, number of words (hexadecimal), word and sense, …, number of pointers, pointers
        fields = line.partition(" | ")[0].split()
        count = int(fields[3], 16)
        pointers = fields[5 + 2 * count :]
        above = [int(pointers[i + 1]) for i in range(0, 4 * int(fields[4 + 2 * count]), 4) if pointers[i] in HYPERNYM]
        return Synset(tuple(fields[4 : 4 + 2 * count : 2]), tuple(above))

    def above(self, offset: int) -> dict[int, int]:
        """The synset and all its hypernyms: `{offset: steps up from the synset}`, nearest first."""
        steps, layer = {offset: 0}, [offset]
        while layer:
            higher = dict.fromkeys(h for each in layer for h in self.synset(each).hypernyms if h not in steps)
            layer = list(higher)
            steps.update(dict.fromkeys(layer, steps[next(reversed(steps))] + 1))
        return steps


# ---- Where the file is


def read_nouns(place: Path | None = None) -> Nouns:
    """The nouns of WordNet 3.0 in `place`: a folder with `data.noun`, or NLTK's wordnet.zip. None looks in `usual_places`.

    Raises InputError where there is none, saying what was looked for and how to get it, and for another version.
    """
    found = {}
    for each in usual_places() if place is None else [place]:
        data = _read(each)
        if data is not None:
            nouns = Nouns(data)
            if nouns.version == VERSION:
                return nouns
            found[each] = nouns.version
    others = "".join(f"; {each} is version {version}" for each, version in found.items())
    looked = "in " + ", ".join(map(str, usual_places() if place is None else [place]))
    raise InputError(f"no {FILE} of WordNet {VERSION} {looked}{others}", f"WordNet {VERSION}'s {FILE}", OBTAIN)


def usual_places() -> list[Path]:
    """Where WordNet may lie: what WordNet's own variables name and nothing else, or NLTK's data, Debian's and WordNet's folders.

    `WNSEARCHDIR` is the folder of the files, `WNHOME` the one above their `dict`; `NLTK_DATA` is read as NLTK does.
    """
    if os.environ.get("WNSEARCHDIR"):
        return [Path(os.environ["WNSEARCHDIR"])]
    if os.environ.get("WNHOME"):
        return [Path(os.environ["WNHOME"]) / "dict"]
    given = [Path(part) for part in os.environ.get("NLTK_DATA", "").split(os.pathsep) if part]
    own = [Path.home() / "nltk_data", *(Path(sys.prefix) / part for part in ("nltk_data", "share/nltk_data"))]
    shared = [Path(part) / "nltk_data" for part in ("/usr/share", "/usr/local/share", "/usr/lib", "/usr/local/lib")]
    corpora = [root / "corpora" / name for root in (*given, *own, *shared) for name in ("wordnet", "wordnet.zip")]
    return list(dict.fromkeys([*corpora, Path("/usr/share/wordnet"), Path(f"/usr/local/WordNet-{VERSION}/dict")]))


def _read(place: Path) -> bytes | None:
    """The content of data.noun in a folder or a zip file; None where there is none that can be read."""
    try:
        if place.suffix == ".zip" and place.is_file():
            with zipfile.ZipFile(place) as archive:
                return archive.read(f"{place.stem}/{FILE}")
        return (place / FILE).read_bytes()
    except (OSError, KeyError, zipfile.BadZipFile):
        return None


# ---- The choice


def sets_from_wordnet(
    synsets: Sequence[str],
    nouns: Nouns,
    *,
    min_similar: int = 4,
    dissimilar: int = 20,
    seed: int = 0,
    targets: Iterable[int] | None = None,
) -> dict[int, SimilarSets]:
    """S1 and S2 of classes by their synsets (one a class, such as "n02099601"): `{target: SimilarSets}`, targets ascending.

    A target's *home* is its nearest hypernym that at least `min_similar` other classes lie under, but not all (of several
    equally near, the one with the fewest classes). S1 are the `min_similar` classes under it that are nearest to the target,
    by the number of steps up to a common hypernym and down again. S2 are `dissimilar` random classes that share with the
    target only broad hypernyms, with more than half of the classes (and more than its home) under them; drawn as in
    `sets_from_groups`, all of them where there are fewer. Without `targets`, every class whose home is one step up, its
    direct hypernym, is a target (339 of ImageNet's 1000).

    Of equally near classes, those come last that share a word with another class under the home, such as green and garter
    snake, which are both "grass snake"; then the lower offset comes first. WordNet itself ranks no siblings. Of ImageNet's
    nine colubrid snakes, all siblings, this tie-break takes thunder, ringneck, hognose, king and water snake for each other's
    S1, as in the paper; it was chosen knowing that. The five retrievers are all that ImageNet has of them: nothing to choose.

    Raises InputError for ids that are no nouns of `nouns`, ids given twice, unknown targets, named targets without a home
    or without dissimilar classes, and when no class is a target.
    """
    check_sizes(min_similar, dissimilar)
    tree = _tree_of(synsets, nouns)
    wanted = range(len(synsets)) if targets is None else checked_targets(targets, len(synsets))
    found = {}
    for target in wanted:
        home = tree.home(target, min_similar)
        far = [] if home is None else tree.far(target, home)
        if home is not None and far and (targets is not None or tree.above[target][home] <= 1):
            near = tree.nearest(target, home, nouns)[:min_similar]
            found[target] = SimilarSets(tuple(sorted(near)), drawn(far, dissimilar, seed, target))
        elif targets is not None:
            raise InputError(
                f"target class {target} ({synsets[target]}, {nouns.synset(tree.offsets[target]).words[0]}): no hypernym with "
                f"{min_similar} other classes under it and dissimilar ones outside",
                "targets with similar and dissimilar classes",
                "Choose another target, or lower min_similar.",
            )
    if not found:
        raise InputError(
            f"no class whose direct hypernym has {min_similar} other classes under it, of {len(synsets)}",
            f"at least {min_similar + 1} classes of one kind, and others",
            "Lower min_similar, or name the targets.",
        )
    return found


@dataclass(frozen=True)
class _Tree:
    """The classes' part of WordNet: each class's offset and hypernyms with their steps, and the classes under each synset."""

    offsets: list[int]
    above: list[dict[int, int]]
    under: dict[int, set[int]]

    def home(self, target: int, min_similar: int) -> int | None:
        fitting = [h for h in self.above[target] if min_similar < len(self.under[h]) < len(self.offsets)]
        return min(fitting, key=lambda h: (self.above[target][h], len(self.under[h]), h), default=None)

    def nearest(self, target: int, home: int, nouns: Nouns) -> list[int]:
        own = self.above[target]
        words = {c: {word.lower() for word in nouns.synset(self.offsets[c]).words} for c in self.under[home]}
        times = Counter(word for each in words.values() for word in each)

        def rank(c: int) -> tuple[int, bool, int]:
            steps = min(own[h] + up for h, up in self.above[c].items() if h in own)
            return steps, any(times[word] > 1 for word in words[c]), self.offsets[c]

        return sorted(self.under[home] - {target}, key=rank)

    def far(self, target: int, home: int) -> list[int]:
        broad = max(len(self.offsets) / 2, len(self.under[home]))
        related = set().union(*(self.under[h] for h in self.above[target] if len(self.under[h]) <= broad))
        return [c for c in range(len(self.offsets)) if c not in related]


def _tree_of(synsets: Sequence[str], nouns: Nouns) -> _Tree:
    for name, times in Counter(synsets).items():
        if not SYNSET.fullmatch(name) or times > 1:
            what = f"synset {name!r}" + (f" of {times} classes" if times > 1 else "")
            raise InputError(what, "for each class a synset of its own: n and the eight digits of its offset")
    offsets = [int(name[1:]) for name in synsets]
    above = [nouns.above(offset) for offset in offsets]
    under: dict[int, set[int]] = defaultdict(set)
    for c, steps in enumerate(above):
        for h in steps:
            under[h].add(c)
    return _Tree(offsets, above, dict(under))

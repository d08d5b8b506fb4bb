"""Which classes count as semantically similar (S1) and dissimilar (S2) to a target class."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hf_lskd.errors import InputError, nearest


class SimilarSets(NamedTuple):
    """Class indices of S1 and S2 for one target class, both ascending."""

    similar: tuple[int, ...]
    dissimilar: tuple[int, ...]


class ChosenSets(dict[int, SimilarSets]):
    """`{target: SimilarSets}` with the `source` of the choice in one word, such as "groups" or "wordnet-3.0"."""

    def __init__(self, sets: Mapping[int, SimilarSets], source: str) -> None:
        super().__init__(sets)
        self.source = source


def sets_from_groups(
    groups: Sequence[str],
    *,
    min_similar: int = 4,
    dissimilar: int = 20,
    seed: int = 0,
    targets: Iterable[int] | None = None,
) -> dict[int, SimilarSets]:
    """S1 and S2 from one semantic group per class: `{target: SimilarSets}`, targets ascending.

    S1 is every other class of the target's group; S2 is `dissimilar` random classes of other groups (all of them
    where there are fewer). The draw is a pure function of (seed, target, groups), so a table over some targets agrees
    with the table over all. Without `targets`, every class with at least `min_similar` similar ones is a target.

    Raises InputError for a target that does not exist, for a named target with fewer than `min_similar` similar
    classes, and when no class has enough of them or nothing is dissimilar.
    """
    check_sizes(min_similar, dissimilar)
    sizes = Counter(groups)
    if targets is None:
        chosen = [i for i, group in enumerate(groups) if sizes[group] > min_similar]
        if not chosen:
            raise InputError(
                f"no class with {min_similar} similar ones: the largest of {len(sizes)} groups has "
                f"{max(sizes.values(), default=0)} classes",
                f"groups of at least {min_similar + 1} classes",
                "Lower min_similar, or group the classes more coarsely.",
            )
    else:
        chosen = sorted({_checked_target(target, groups, sizes, min_similar) for target in targets})
    if len(sizes) < 2:
        raise InputError("all classes in one group", "at least two groups", "Nothing is dissimilar in a single group.")
    return {target: _sets_of(target, groups, dissimilar, seed) for target in chosen}


def sets_signature(sets: Mapping[int, SimilarSets]) -> str:
    """One word that names a choice of S1 and S2: its source, how many targets and classes, and a hash of which ones.

    Read from the sets themselves, so it cannot name settings that they were not made with; without a source for sets that
    bring none. Two tables of η can be compared only when their signatures are equal.
    Example: `sets:wordnet-3.0|targets:339|similar:4|dissimilar:20|sha256:1f0c33aa`.
    """
    source = f"sets:{sets.source}|" if isinstance(sets, ChosenSets) else ""
    text = ";".join(
        f"{target}:{','.join(map(str, one.similar))}:{','.join(map(str, one.dissimilar))}"
        for target, one in sorted(sets.items())
    )
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    similar, dissimilar = (_span(len(one[k]) for one in sets.values()) for k in (0, 1))
    return f"{source}targets:{len(sets)}|similar:{similar}|dissimilar:{dissimilar}|sha256:{digest}"


def _span(sizes: Iterable[int]) -> str:
    distinct = sorted(set(sizes))
    return "-".join(map(str, distinct[:1] + distinct[1:][-1:])) or "0"


def check_sizes(similar: int, dissimilar: int) -> None:
    """S1 and S2 of at least one class each."""
    if similar < 1 or dissimilar < 1:
        raise InputError(f"min_similar = {similar}, dissimilar = {dissimilar}", "integers of at least 1")


def checked_targets(targets: Iterable[int], classes: int) -> list[int]:
    """The targets, ascending, each once. Raises InputError for one that does not exist."""
    chosen = sorted({int(target) for target in targets})
    for target in chosen:
        if not 0 <= target < classes:
            raise InputError(f"target class {target}", f"0 to {classes - 1}")
    return chosen


def drawn(others: Sequence[int], count: int, seed: int, target: int) -> tuple[int, ...]:
    """`count` of the classes `others` at random, all where there are fewer: a pure function of (seed, target, others)."""
    # RandomState, because numpy keeps its stream for good (NEP 19); default_rng may change between versions.
    draw = np.random.RandomState([seed % 2**32, target]).permutation(np.array(others))[:count]
    return tuple(sorted(draw.tolist()))


def _checked_target(target: int, groups: Sequence[str], sizes: Mapping[str, int], min_similar: int) -> int:
    checked_targets([target], len(groups))
    similar = sizes[groups[target]] - 1
    if similar < min_similar:
        raise InputError(
            f"target class {target} (group {groups[target]!r}) has {similar} similar classes",
            f"targets with at least {min_similar}",
            "Choose another target, or lower min_similar.",
        )
    return int(target)


def _sets_of(target: int, groups: Sequence[str], dissimilar: int, seed: int) -> SimilarSets:
    own = groups[target]
    similar = tuple(i for i, group in enumerate(groups) if group == own and i != target)
    others = [i for i, group in enumerate(groups) if group != own]
    return SimilarSets(similar, drawn(others, dissimilar, seed, target))


def sets_from_embeddings(
    weight: Tensor,
    candidates: Sequence[int],
    *,
    similar: int = 4,
    dissimilar: int = 20,
    targets: Sequence[int] | None = None,
) -> dict[int, SimilarSets]:
    """S1 and S2 of tokens by a teacher's output embedding `weight [V, D]`: `{target: SimilarSets}`, targets ascending.

    Of the `candidates`, S1 are the `similar` nearest by cosine and S2 the `dissimilar` farthest; without `targets` every
    candidate is one. Raises InputError for fewer candidates than S1, S2 and the target need, and for unknown targets.
    """
    chosen = sorted(set(candidates))
    if len(chosen) < similar + dissimilar + 1:
        raise InputError(
            f"{len(chosen)} tokens that occur often enough in both splits",
            f"at least {similar + dissimilar + 1}: {similar} similar, {dissimilar} dissimilar and the target",
            "Lower eta.min_count or eta.dissimilar, or take more text.",
        )
    unknown = sorted(set(targets or ()) - set(chosen))
    if unknown:
        raise InputError(
            f"target token {unknown[0]} is too rare", "tokens with eta.min_count occurrences in each split"
        )
    rows = torch.nn.functional.normalize(weight[chosen].double(), dim=1)
    return _nearest_and_farthest(rows @ rows.T, chosen, similar, dissimilar, targets)


def sets_from_centroids(
    means: Tensor, *, similar: int = 4, dissimilar: int = 20, targets: Iterable[int] | None = None
) -> dict[int, SimilarSets]:
    """S1 and S2 by class centroids `means [C, D]`: `{target: SimilarSets}`, targets ascending; without `targets` all are.

    S1 are the `similar` nearest centroids by Euclidean distance, as in η, and S2 the `dissimilar` farthest; of equally far
    ones the lower index is the nearer. Raises InputError for too few classes, unknown targets, and centroids not finite.
    """
    check_sizes(similar, dissimilar)
    classes = list(range(len(means)))
    if len(classes) < similar + dissimilar + 1:
        raise InputError(
            f"{len(classes)} classes",
            f"at least {similar + dissimilar + 1}: {similar} similar, {dissimilar} dissimilar and the target",
            "Lower eta.dissimilar or eta.min_similar.",
        )
    if not bool(torch.isfinite(means).all()):
        raise InputError("class centroids that are not finite", "a mean for each class", "Take another eta.sets.")
    chosen = classes if targets is None else checked_targets(targets, len(classes))
    exact = "donot_use_mm_for_euclid_dist"
    apart = torch.cdist(means.double(), means.double(), compute_mode=exact)
    return _nearest_and_farthest(-apart, classes, similar, dissimilar, chosen)


def sets_from_confusion(
    labels: Tensor,
    predictions: Tensor,
    classes: int,
    *,
    similar: int = 4,
    dissimilar: int = 20,
    seed: int = 0,
    targets: Iterable[int] | None = None,
) -> dict[int, SimilarSets]:
    """S1 and S2 by a model's mistakes on examples with these `labels [N]` and `predictions [N]`, of 0 to `classes` − 1.

    Two classes are confused as often as examples of either are taken for the other. S1 are the `similar` classes that the
    target is confused with most, of equally often confused ones the lower index first; S2 `dissimilar` random ones that it
    is never confused with, drawn as in `sets_from_groups`. Without `targets`, every class that is confused with at least
    `similar` others is one. Raises InputError for unknown targets, named ones with too few confusions or none without, and
    when no class has enough of them.
    """
    check_sizes(similar, dissimilar)
    taken = torch.bincount(labels.long() * classes + predictions.long(), minlength=classes**2).view(classes, classes)
    times = (taken + taken.T).fill_diagonal_(0)
    found = {}
    for target in range(classes) if targets is None else checked_targets(targets, classes):
        order = times[target].argsort(descending=True, stable=True).tolist()
        confused = [c for c in order if times[target, c] > 0]
        never = [c for c in range(classes) if times[target, c] == 0 and c != target]
        if len(confused) >= similar and never:
            found[target] = SimilarSets(tuple(sorted(confused[:similar])), drawn(never, dissimilar, seed, target))
        elif targets is not None:
            raise InputError(
                f"target class {target}, which the teacher confuses with {len(confused)} of {classes - 1} classes",
                f"targets confused with at least {similar}, and not with all",
                "Choose another target, or lower min_similar.",
            )
    if not found:
        raise InputError(
            f"no class that the teacher confuses with {similar} others",
            "a teacher with more kinds of mistakes, or more validation examples",
            "Lower min_similar, or take eta.sets: centroids.",
        )
    return found


def _nearest_and_farthest(
    closeness: Tensor, chosen: Sequence[int], similar: int, dissimilar: int, targets: Iterable[int] | None
) -> dict[int, SimilarSets]:
    """For the classes `chosen`, ascending, whose closeness to one another is `[n, n]`."""
    found = {}
    for target in sorted(chosen if targets is None else set(targets)):
        at = chosen.index(target)
        order = [i for i in closeness[at].argsort(descending=True, stable=True).tolist() if i != at]
        first, last = order[:similar], order[-dissimilar:]
        found[target] = SimilarSets(tuple(sorted(chosen[i] for i in first)), tuple(sorted(chosen[i] for i in last)))
    return found


def sets_from_file(path: Path, names: Sequence[str]) -> dict[int, SimilarSets]:
    """S1 and S2 as a JSON file says them: {target: {"similar": [names], "dissimilar": [names]}}.

    Raises InputError for a file that cannot be read, unknown names, empty sets, and a class in two roles.
    """
    index = {name: i for i, name in enumerate(names)}
    allowed = '{"target": {"similar": ["…"], "dissimilar": ["…"]}}'
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
        given = {str(name): (list(sets["similar"]), list(sets["dissimilar"])) for name, sets in page.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"eta.sets: {path} cannot be read ({type(error).__name__}: {error})", allowed) from error
    found = {}
    for target, (similar, dissimilar) in given.items():
        every = [target, *similar, *dissimilar]
        for name in every:
            if name not in index:
                raise InputError(
                    f"{path}: class {name!r}", f"one of the data's {len(names)}", nearest(str(name), list(names))
                )
        if not similar or not dissimilar or len(set(every)) != len(every):
            raise InputError(f"{path}: the sets of {target!r}", "two sets, neither empty, no class twice")
        found[index[target]] = SimilarSets(
            tuple(sorted(index[name] for name in similar)), tuple(sorted(index[name] for name in dissimilar))
        )
    if not found:
        raise InputError(f"{path} names no target", allowed)
    return dict(sorted(found.items()))

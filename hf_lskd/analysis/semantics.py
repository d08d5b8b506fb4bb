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
    if min_similar < 1 or dissimilar < 1:
        raise InputError(f"min_similar = {min_similar}, dissimilar = {dissimilar}", "integers of at least 1")
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
    """One word that names a choice of S1 and S2: how many targets and classes, and a hash of which ones.

    Read from the sets themselves, so it cannot name settings that they were not made with. Two tables of η can be
    compared only when their signatures are equal. Example: `targets:141|similar:4-11|dissimilar:20|sha256:1f0c33aa`.
    """
    text = ";".join(
        f"{target}:{','.join(map(str, one.similar))}:{','.join(map(str, one.dissimilar))}"
        for target, one in sorted(sets.items())
    )
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    similar, dissimilar = (_span(len(one[k]) for one in sets.values()) for k in (0, 1))
    return f"targets:{len(sets)}|similar:{similar}|dissimilar:{dissimilar}|sha256:{digest}"


def _span(sizes: Iterable[int]) -> str:
    distinct = sorted(set(sizes))
    return "-".join(map(str, distinct[:1] + distinct[1:][-1:])) or "0"


def _checked_target(target: int, groups: Sequence[str], sizes: Mapping[str, int], min_similar: int) -> int:
    if not 0 <= target < len(groups):
        raise InputError(f"target class {target}", f"0 to {len(groups) - 1}")
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
    others = np.array([i for i, group in enumerate(groups) if group != own])
    # RandomState, because numpy keeps its stream for good (NEP 19); default_rng may change between versions.
    draw = np.random.RandomState([seed % 2**32, target]).permutation(others)[:dissimilar]
    return SimilarSets(similar, tuple(sorted(draw.tolist())))


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
    near = rows @ rows.T
    near.fill_diagonal_(-2.0)
    found = {}
    for target in sorted(chosen if targets is None else set(targets)):
        order = near[chosen.index(target)].argsort(descending=True, stable=True).tolist()[:-1]
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

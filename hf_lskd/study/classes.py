"""Which classes of the data a study looks at: S1 and S2 of each target for η, and the three that are projected."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_lskd.analysis.semantics import ChosenSets, SimilarSets, sets_from_file, sets_from_groups
from hf_lskd.analysis.wordnet import SYNSET, read_nouns, sets_from_wordnet
from hf_lskd.errors import InputError
from hf_lskd.recipe import Recipe
from hf_lskd.record import CELLS
from hf_lskd.tasks.task import Task

# Sources of S1 and S2 that need a finished teacher; None is translation's own.
OF_TEACHER = (None, "centroids", "confusion")


def similar_sets(recipe: Recipe, task: Task) -> ChosenSets | None:
    """S1 and S2 of each target class where no model is needed to know them: by groups, WordNet, or a file.

    None when η was not asked for, the data have no groups, or a teacher says them when one is finished: see `sets_of_study`.
    Raises InputError as the source that `eta.sets` names, and for WordNet without the classes' synsets.
    """
    eta = recipe.eta
    if eta is None or eta.sets in OF_TEACHER:
        return None
    draw = {"min_similar": eta.min_similar, "dissimilar": eta.dissimilar, "seed": eta.seed}
    if eta.sets == "groups":
        if task.groups is None:
            return None
        return ChosenSets(sets_from_groups(task.groups, targets=task.eta_targets(eta), **draw), "groups")
    if eta.sets == "wordnet":
        synsets, nouns = synsets_of(task), read_nouns()
        found = sets_from_wordnet(synsets, nouns, targets=task.eta_targets(eta), **draw)
        return ChosenSets(found, f"wordnet-{nouns.version}")
    return ChosenSets(named_targets(sets_from_file(Path(eta.sets), task.class_names), recipe, task), "file")


def synsets_of(task: Task) -> Sequence[str]:
    """The WordNet ids of the classes: the data's, else the class names where these are ids. Raises InputError without."""
    synsets = task.class_names if task.synsets is None else task.synsets
    wrong = next((name for name in synsets if not SYNSET.fullmatch(name)), None)
    if wrong is not None:
        raise InputError(
            f"eta.sets: wordnet, for data whose class {wrong!r} is no WordNet id",
            "data that say their synsets, or class names such as n02099601",
            "Rename the classes, or take eta.sets: groups | centroids | confusion | a JSON file.",
        )
    return synsets


def named_targets(sets: Mapping[int, SimilarSets], recipe: Recipe, task: Task) -> Mapping[int, SimilarSets]:
    """Of a file's sets those of the targets that the recipe names. Raises InputError for one that the file leaves out."""
    chosen = task.eta_targets(recipe.eta) if recipe.eta else None
    lost = [task.class_names[target] for target in chosen or () if target not in sets]
    if lost and recipe.eta:
        raise InputError(f"eta.targets: {lost[0]!r}, which {recipe.eta.sets} does not name", "targets of the file")
    return sets if chosen is None else {target: sets[target] for target in sorted(chosen)}


def sets_of_study(folder: Path, recipe: Recipe, task: Task, records: Sequence[Mapping[str, Any]]) -> ChosenSets | None:
    """S1 and S2 of a study with these finished cells: known without a model, else those of its first finished teacher.

    One teacher speaks for all cells, so that every α is measured by the same sets; its name is part of the source.
    """
    sets = similar_sets(recipe, task)
    first = next((record for record in records if record["role"] == "teacher"), None)
    if sets is not None or recipe.eta is None or first is None:
        return sets
    found = task.sets_of_teacher(recipe.eta, folder / CELLS / first["name"])
    return None if found is None else ChosenSets(found, f"{recipe.eta.sets or 'embedding'}@{first['name']}")


def three_classes(
    recipe: Recipe,
    task: Task,
    names: Sequence[str] | None = None,
    sets: Mapping[int, SimilarSets] | None = None,
) -> list[int]:
    """Indices of target, similar and dissimilar class: as named, or the first two of the largest group and one of another.

    `names` None takes the recipe's; without groups, `auto` takes the first target of `sets` with one of its S1 and S2.
    Raises InputError for unknown or repeated names, and for `auto` without fitting groups.
    """
    wanted = names if names is not None else (recipe.projection.classes if recipe.projection else "auto")
    if not isinstance(wanted, str):
        if len(wanted) != 3 or len(set(wanted)) != 3:
            raise InputError(
                f"{len(wanted)} classes to project: {', '.join(wanted)}",
                "three different classes: target, similar, dissimilar",
            )
        return [task.class_index(name) for name in wanted]
    groups = task.groups
    if groups is None and sets:
        target = next(iter(sets))
        return [target, sets[target].similar[0], sets[target].dissimilar[0]]
    if groups is None:
        raise InputError(
            "projection.classes: auto, for data without semantic groups",
            "three class names: target, similar, dissimilar",
            f"Known classes: {', '.join(task.class_names[:10])}.",
        )
    sizes = sorted(set(groups), key=lambda group: (-groups.count(group), group))
    if len(sizes) < 2 or groups.count(sizes[0]) < 2:
        raise InputError(
            f"projection.classes: auto, for {len(sizes)} groups of at most {groups.count(sizes[0])} classes",
            "two groups, one of them with two classes",
            "Name three classes: target, similar, dissimilar.",
        )
    target, similar = [i for i, group in enumerate(groups) if group == sizes[0]][:2]
    return [target, similar, groups.index(sizes[1])]

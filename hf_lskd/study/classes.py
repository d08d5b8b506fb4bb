"""Which classes of the data a study looks at: S1 and S2 of each target for η, and the three that are projected."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_lskd.analysis.semantics import SimilarSets, sets_from_groups
from hf_lskd.errors import InputError
from hf_lskd.recipe import Recipe
from hf_lskd.record import CELLS
from hf_lskd.tasks.task import Task


def similar_sets(recipe: Recipe, task: Task) -> dict[int, SimilarSets] | None:
    """S1 and S2 of each target class by the groups that the data come with; None when η was not asked for or there are none.

    Where a task takes them from a teacher, they are known when one is finished: see `sets_of_study`.
    """
    eta, groups = recipe.eta, task.groups
    if eta is None or groups is None:
        return None
    targets = None if eta.targets == "all" else [task.class_index(name) for name in eta.targets]
    return sets_from_groups(
        groups, min_similar=eta.min_similar, dissimilar=eta.dissimilar, seed=eta.seed, targets=targets
    )


def sets_of_study(
    folder: Path, recipe: Recipe, task: Task, records: Sequence[Mapping[str, Any]]
) -> Mapping[int, SimilarSets] | None:
    """S1 and S2 of a study with these finished cells: the data's, else those of its first finished teacher.

    One teacher speaks for all cells, so that every α is measured by the same sets.
    """
    sets = similar_sets(recipe, task)
    first = next((record for record in records if record["role"] == "teacher"), None)
    if sets is not None or recipe.eta is None or first is None:
        return sets
    return task.sets_of_teacher(recipe.eta, folder / CELLS / first["name"])


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

"""Which classes of the data a study looks at: S1 and S2 of each target for η, and the three that are projected."""

from collections.abc import Sequence

from hf_lskd.analysis.semantics import SimilarSets, sets_from_groups
from hf_lskd.errors import InputError
from hf_lskd.recipe import Recipe
from hf_lskd.tasks.image_classification import ImageClassification


def similar_sets(recipe: Recipe, task: ImageClassification) -> dict[int, SimilarSets] | None:
    """S1 and S2 of each target class by the groups that the data come with; None when η was not asked for or there are none."""
    eta, groups = recipe.eta, task.source.groups
    if eta is None or groups is None:
        return None
    targets = None if eta.targets == "all" else [task.class_index(name) for name in eta.targets]
    return sets_from_groups(
        groups, min_similar=eta.min_similar, dissimilar=eta.dissimilar, seed=eta.seed, targets=targets
    )


def three_classes(recipe: Recipe, task: ImageClassification, names: Sequence[str] | None = None) -> list[int]:
    """Indices of target, similar and dissimilar class: as named, or the first two of the largest group and one of another.

    `names` None takes the recipe's. Raises InputError for unknown or repeated names, and for `auto` without fitting groups.
    """
    wanted = names if names is not None else (recipe.projection.classes if recipe.projection else "auto")
    if not isinstance(wanted, str):
        if len(wanted) != 3 or len(set(wanted)) != 3:
            raise InputError(
                f"{len(wanted)} classes to project: {', '.join(wanted)}",
                "three different classes: target, similar, dissimilar",
            )
        return [task.class_index(name) for name in wanted]
    groups = task.source.groups
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

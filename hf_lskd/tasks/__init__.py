"""The kinds of work that a recipe may name."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_lskd.recipe import Recipe
    from hf_lskd.tasks.task import Task


def open_task(recipe: "Recipe", cache_dir: Path | None = None) -> "Task":
    """The recipe's task with its data opened. Raises InputError for data that cannot be read."""
    if recipe.task == "translation":
        from hf_lskd.tasks.translation import Translation

        return Translation(recipe, cache_dir)
    from hf_lskd.tasks.image_classification import ImageClassification

    return ImageClassification(recipe, cache_dir)

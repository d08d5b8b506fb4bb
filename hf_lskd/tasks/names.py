"""The models that a recipe names, looked up without its data and without the network."""

from collections.abc import Iterator
from pathlib import Path

from hf_lskd.errors import InputError, RecipeErrors, nearest
from hf_lskd.recipe import ModelSpec, Recipe


def check_models(recipe: Recipe, source: str) -> list[str]:
    """Look up the timm architectures, their tags and arguments, or the shapes of translation, that a recipe names.

    Returns what could not be looked up, a line each: folders and ids of the Hub. `source` names the recipe in messages.
    Raises RecipeErrors with every name that is unknown, beside the nearest known ones.
    """
    check = check_sequence if recipe.task == "translation" else check_image
    unchecked, problems = [], []
    for role, spec in models_of(recipe):
        try:
            if not check(spec):
                unchecked.append(f"{role}: model {spec.model} is not checked here: a folder, or an id of the Hub")
        except InputError as error:
            problems.append(f"{source}: {role}: {error}")
    if problems:
        raise RecipeErrors(problems)
    return unchecked


def models_of(recipe: Recipe) -> Iterator[tuple[str, ModelSpec]]:
    """Each model that is to be trained, by its role; a finished teacher is none."""
    if recipe.teacher.path is None:
        yield "teacher", recipe.teacher
    for student in recipe.students:
        yield f"student {student.name}" if len(recipe.students) > 1 else "student", student


def check_image(spec: ModelSpec) -> bool:
    """Whether timm knows the model. Raises InputError for a name that it does not know, and for arguments that are set elsewhere."""
    from hf_lskd.models.loading import is_architecture, is_timm, pretrained_cfg
    from hf_lskd.models.timm_wrapper import check_model_args

    name = str(spec.model)
    check_model_args(spec.model_args, "the data's classes")
    if not is_timm(name) or (name.startswith("hf-hub:") and not is_architecture(name.removeprefix("hf-hub:timm/"))):
        return False
    pretrained_cfg(name)
    return True


def check_sequence(spec: ModelSpec) -> bool:
    """Whether the model is one of our shapes. Raises InputError for a name that looks like a misspelt one."""
    from hf_lskd.models.sequence import SHAPES

    name = str(spec.model)
    if name in SHAPES:
        return True
    if "/" not in name and not Path(name).is_dir() and (hint := nearest(name, list(SHAPES))):
        raise InputError(f"model {name!r} is no shape", f"{', '.join(SHAPES)}, a folder, or an id of the Hub", hint)
    return False

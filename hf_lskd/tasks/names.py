"""What a recipe names, looked up without its data and without the network: models, and paths that are to be here."""

import os
from collections.abc import Iterator
from pathlib import Path

from hf_lskd.errors import InputError, RecipeErrors, nearest
from hf_lskd.recipe import ModelSpec, Recipe

HERE = ("./", "../", "~")  # begin a path of this machine and folder
LOCAL = (*HERE, "/")  # begin a path, and no id of the Hub
WORDS = ("letters", "held_out", "class_names")  # keys of data that say no path, whatever they begin with


def check_models(recipe: Recipe, source: str) -> list[str]:
    """Look up the timm architectures, their tags and arguments, or the shapes of translation, that a recipe names.

    Returns what could not be looked up, a line each: folders and ids of the Hub. `source` names the recipe in messages.
    Raises RecipeErrors with every name that is unknown, beside the nearest known ones, and every path that is not there.
    """
    check = check_sequence if recipe.task == "translation" else check_image
    unchecked, problems = [], [f"{source}: {problem}" for problem in missing_paths(recipe)]
    for role, spec in models_of(recipe):
        if str(spec.model).startswith(LOCAL) and not Path(str(spec.model)).exists():
            continue  # said already
        try:
            if not check(spec):
                unchecked.append(f"{role}: model {spec.model} is not checked here: a folder, or an id of the Hub")
        except InputError as error:
            problems.append(f"{source}: {role}: {error}")
    if problems:
        raise RecipeErrors(problems)
    return unchecked


def missing_paths(recipe: Recipe) -> Iterator[str]:
    """What is said of each path that the recipe names and that is not there: of models, weights, finished teachers and data.

    An absolute path of data may be another machine's, where the recipe is to run: that one is looked at when data are opened.
    """
    for where, place in [*model_paths(recipe), *data_paths(recipe)]:
        written_out = os.path.expanduser(place)  # as it is where ~ names nobody: Path's own raises then
        if not Path(written_out).exists():
            here = "" if place.startswith("/") else f" It is looked for from {Path.cwd()}."
            yield str(InputError(f"{where} {place} does not exist", "a path that is here", f"Correct it.{here}"))
        elif place.startswith("~") and not where.startswith("data"):
            hint = f"Write {written_out}."
            yield str(
                InputError(f"{where} {place}", "a path without ~, which libraries do not read in a model's name", hint)
            )


def model_paths(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What each path of a model is and the path, where it can be nothing else."""
    finished = recipe.teacher.path or {}
    named: list[tuple[str, object]] = [(f"teacher: path of α = {a:g}:", path) for a, path in finished.items()]
    for role, spec in models_of(recipe):
        named += [(f"{role}: model", spec.model), (f"{role}: pretrained:", spec.pretrained)]
    return ((where, place) for where, place in named if isinstance(place, str) and place.startswith(LOCAL))


def data_paths(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The same for data, of paths from here."""
    for key, given in recipe.data.options.items():
        if key in WORDS or (key == "groups" and isinstance(given, list)):
            continue
        for place in given if isinstance(given, list) else [given]:
            if isinstance(place, str) and place.startswith(HERE):
                yield f"data.{key}:", place


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

"""One cell on its own, from the command line: the same cell, to the last bit, as inside a study."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_lskd import losses
from hf_lskd.errors import InputError
from hf_lskd.recipe import Recipe, recipe_from_dict
from hf_lskd.record import FILE, MODEL, Cell, read_record
from hf_lskd.study.cell import Bench, cell_signature, run_cell
from hf_lskd.study.runner import similar_sets
from hf_lskd.tasks.image_classification import ImageClassification


def train_one(recipe: Recipe, args: Any) -> dict[str, Any]:
    """Train the cell that `args` (of `hf-lskd train`) name and return its record; a finished one is only read.

    Raises InputError for options that do not fit, a student without a teacher, and an output folder that holds something else.
    """
    cell = chosen_cell(recipe, args)
    recipe = with_training(recipe, cell, args.rest)
    folder = args.output_dir or Path("runs") / recipe.name / "cells" / cell.name
    teacher = teacher_cell(args.teacher) if cell.role == "student" else None
    task = ImageClassification(recipe)
    bench = Bench(recipe, task, similar_sets(recipe, task))
    record = read_record(folder)
    if record is None and folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"{folder} is not empty and holds no cell", "a new or empty folder", "Choose another --output-dir."
        )
    if record is not None and record["status"] == "complete":
        if record["signature"] != cell_signature(bench, cell):
            raise InputError(
                f"{folder} holds another cell ({record['name']})", "a new folder", "Choose another --output-dir."
            )
        return record
    return run_cell(bench, cell, folder, teacher)


def chosen_cell(recipe: Recipe, args: Any) -> Cell:
    """The grid's first values, and what the options say otherwise."""
    grid = recipe.grid
    label_smoothing = grid.label_smoothing[0] if args.label_smoothing is None else args.label_smoothing
    losses.check_smoothing(label_smoothing)
    seed = grid.seed[0] if args.seed is None else args.seed
    if args.role == "teacher":
        return Cell("teacher", label_smoothing, seed)
    names = [student.name for student in recipe.students]
    student = args.student or names[0]
    if student not in names:
        raise InputError(f"--student {student}", f"one of the recipe's: {', '.join(names)}")
    temperature = grid.temperature[0] if args.temperature is None else args.temperature
    losses.check_temperature(temperature)
    weight = grid.kd_weight[0] if args.kd_weight is None else args.kd_weight
    losses.check_kd_weight(weight)
    own = grid.student_label_smoothing[0] if args.student_label_smoothing is None else args.student_label_smoothing
    losses.check_smoothing(own)
    scale = grid.kd_loss_scale[0] if args.kd_loss_scale is None else loss_scale(args.kd_loss_scale)
    scaled = grid.scale_student[0] if args.scale_student is None else args.scale_student == "true"
    top_k = grid.kd_top_k[0] if args.kd_top_k is None else args.kd_top_k
    losses.check_top_k(top_k)
    return Cell("student", label_smoothing, seed, student, temperature, weight, scale, scaled, own, top_k)


def loss_scale(text: str) -> float | str:
    if text == "equalised":
        return text
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(f"--kd-loss-scale {text}", "a number above 0, or equalised") from error
    losses.check_loss_scale(value)
    return value


def teacher_cell(path: Path | None) -> Path:
    """The finished cell of a teacher, from its folder or from the model folder in it."""
    if path is None:
        raise InputError(
            "a student without --teacher", "the folder of a finished teacher", "Train one with --role teacher first."
        )
    folder = path.parent if path.name == MODEL and (path.parent / FILE).is_file() else path
    record = read_record(folder)
    if record is None or record["status"] != "complete" or record["role"] != "teacher":
        raise InputError(
            f"--teacher {path} is no finished teacher",
            f"a folder with {FILE} and {MODEL}/, as `hf-lskd train --role teacher` makes",
        )
    return folder


def with_training(recipe: Recipe, cell: Cell, rest: Sequence[str]) -> Recipe:
    """The recipe with training arguments from the command line on top of the role's own, checked as the recipe's are."""
    given = training_options(rest)
    if not given:
        return recipe
    values = recipe.to_dict()
    spec = (
        values["teacher"]
        if cell.role == "teacher"
        else next(s for s in values["students"] if s["name"] == cell.student)
    )
    spec["training"].update(given)
    return recipe_from_dict(values, "command line")


def training_options(rest: Sequence[str]) -> dict[str, Any]:
    """`--name value`, `--name=value` and bare `--name` (true) as a mapping of texts; the recipe's readers give them types."""
    import yaml

    found: dict[str, Any] = {}
    words = list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise InputError(f"argument {word}", "options only: --name value")
        name, equals, value = word[2:].partition("=")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        found[name.replace("-", "_")] = yaml.safe_load(value)
    return found

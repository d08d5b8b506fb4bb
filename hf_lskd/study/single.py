"""One cell on its own, from the command line: the same cell, to the last bit, as inside a study."""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hf_lskd import losses
from hf_lskd.errors import InputError, nearest
from hf_lskd.recipe import Recipe, recipe_from_dict
from hf_lskd.record import CELLS, FILE, MODEL, Cell, read_record
from hf_lskd.study.bench import cell_signature, check_given_teacher, check_processes, open_bench
from hf_lskd.study.cell import finished, run_cell
from hf_lskd.study.claims import claim_together
from hf_lskd.study.progress import Progress


def train_one(recipe: Recipe, args: Any) -> dict[str, Any]:
    """Train the cell that `args` (of `hf-lskd train`) name and return its record; a finished one is only read.

    Raises InputError for options that do not fit, a student without a teacher, and an output folder that holds something else.
    """
    check_processes(recipe, args.processes)
    teachers = given_teachers(args)
    taught_by = [finished(teacher) or {} for teacher in teachers]
    cell = chosen_cell(recipe, args, taught_by)
    recipe = with_training(recipe, cell, args.rest)
    folder = (args.output_dir or Path("runs") / recipe.name / CELLS / cell.name).resolve()
    bench = open_bench(recipe)
    if cell.role == "teacher" and recipe.teacher.path is not None:
        check_given_teacher(bench, cell.label_smoothing, recipe.teacher.path[cell.label_smoothing])
    record = read_record(folder)
    if record is None and folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"{folder} is not empty and holds no cell", "a new or empty folder", "Choose another --output-dir."
        )
    if record is not None and record["status"] == "complete":
        if record["signature"] != cell_signature(bench, cell, [one["signature"] for one in taught_by]):
            raise InputError(
                f"{folder} holds another cell: {record['name']} of other data, settings or teacher",
                "a new folder, or this very cell's",
                "Choose another --output-dir.",
            )
        return record
    with no_empty_parents(folder), claim_together(recipe, folder) as mine, Progress(1, sys.stderr) as progress:
        if not mine:
            raise InputError(f"another process is making {folder}", "one process a cell", "Wait for it, or stop it.")
        progress.start(cell.name)
        record = run_cell(replace(bench, on_step=partial(progress.step, cell.name)), cell, folder, teachers)
        progress.finish(cell.name, record)
    return record


@contextlib.contextmanager
def no_empty_parents(folder: Path) -> Iterator[None]:
    """Remove the folders above `folder` that were made for it, when the run fails and leaves nothing in them."""
    new = [parent for parent in folder.parents if not parent.exists()]
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # the first that holds something
            for parent in new:
                parent.rmdir()
        raise


def chosen_cell(recipe: Recipe, args: Any, teachers: Sequence[Mapping[str, Any]]) -> Cell:
    """The grid's first values, and what the options say otherwise; a student's α is that of its teachers' records."""
    grid = recipe.grid
    label_smoothing = grid.label_smoothing[0] if args.label_smoothing is None else args.label_smoothing
    losses.check_smoothing(label_smoothing)
    seed = grid.seed[0] if args.seed is None else args.seed
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed {seed}", "an integer from 0 to 4294967295")
    if args.role == "teacher":
        if recipe.teacher.path is not None and label_smoothing not in recipe.teacher.path:
            raise InputError(f"--label-smoothing {label_smoothing:g}", "one that teacher.path has a teacher for")
        return Cell("teacher", label_smoothing, seed)
    if args.label_smoothing is None:
        label_smoothing = teachers[0]["label_smoothing"]
    for teacher in teachers:
        if label_smoothing != teacher["label_smoothing"]:
            which = (
                "--label-smoothing" if args.label_smoothing is not None else f"{teachers[0]['name']} of label smoothing"
            )
            raise InputError(
                f"{which} {label_smoothing:g} with a teacher of label smoothing {teacher['label_smoothing']:g}",
                "the teacher's own: a student's label_smoothing names its teacher's α",
                "For the student's own smoothing use --student-label-smoothing.",
            )
    return student_cell(recipe, args, label_smoothing, seed)


def student_cell(recipe: Recipe, args: Any, label_smoothing: float, seed: int) -> Cell:
    """A student's point of the grid, every option checked as the losses would."""
    grid = recipe.grid
    names = [student.name for student in recipe.students]
    student = args.student or names[0]
    if student not in names:
        raise InputError(f"--student {student}", f"one of the recipe's: {', '.join(names)}", nearest(student, names))
    temperature = grid.temperature[0] if args.temperature is None else args.temperature
    weight = grid.kd_weight[0] if args.kd_weight is None else args.kd_weight
    own = grid.student_label_smoothing[0] if args.student_label_smoothing is None else args.student_label_smoothing
    losses.check_temperature(temperature)
    losses.check_kd_weight(weight)
    losses.check_smoothing(own)
    return Cell(
        "student",
        label_smoothing,
        seed,
        student=student,
        temperature=temperature,
        kd_weight=weight,
        kd_loss_scale=grid.kd_loss_scale[0] if args.kd_loss_scale is None else loss_scale(args.kd_loss_scale),
        scale_student=grid.scale_student[0] if args.scale_student is None else args.scale_student == "true",
        student_label_smoothing=own,
        kd_top_k=grid.kd_top_k[0] if args.kd_top_k is None else top_k(args.kd_top_k),
    )


def top_k(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal():
        raise InputError(f"--kd-top-k {text}", "an integer from 1, or none")
    losses.check_top_k(int(text))
    return int(text)


def loss_scale(text: str) -> float | str:
    if text == "equalised":
        return text
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(f"--kd-loss-scale {text}", "a number above 0, or equalised") from error
    losses.check_loss_scale(value)
    return value


STUDENT_OPTIONS = (
    "student",
    "temperature",
    "teacher",
    "kd_weight",
    "kd_loss_scale",
    "scale_student",
    "student_label_smoothing",
    "kd_top_k",
)


def given_teachers(args: Any) -> list[Path]:
    """The finished cells that a student learns from, by their folders or those of the models in them; none for a teacher's run."""
    if args.role == "teacher":
        for option in STUDENT_OPTIONS:
            if getattr(args, option) is not None:
                raise InputError(
                    f"--{option.replace('_', '-')} for a teacher", "student options only with --role student"
                )
        return []
    if not args.teacher:
        raise InputError(
            "a student without --teacher", "the folder of a finished teacher", "Train one with --role teacher first."
        )
    folders = [given_teacher(path) for path in args.teacher]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError(f"--teacher {' '.join(map(str, args.teacher))}", "each teacher once")
    return folders


def given_teacher(path: Path) -> Path:
    """The finished teacher's cell that `path`, or the folder above it, is. Raises InputError for anything else."""
    folder = path.parent if path.name == MODEL and (path.parent / FILE).is_file() else path
    record = finished(folder)
    if record is None or record["role"] != "teacher":
        raise InputError(
            f"--teacher {path} is no finished teacher",
            f"a folder with {FILE} and {MODEL}/, as `hf-lskd train --role teacher` makes",
            "To take a model from elsewhere, give it as teacher.path in the recipe and run --role teacher first.",
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
        try:
            found[name.replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            found[name.replace("-", "_")] = value
    return found

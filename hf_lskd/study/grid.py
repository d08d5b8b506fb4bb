"""From a recipe's grid to its cells: one teacher a row (α, seed), and the columns of students that differ only in T or loss weight."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from hf_lskd.recipe import Recipe
from hf_lskd.record import Cell

CURVE = (
    "student",
    "label_smoothing",
    "kd_weight",
    "kd_loss_scale",
    "scale_student",
    "student_label_smoothing",
    "kd_top_k",
)  # what the students on one curve over T share; with the seed, what two cells share between which η is taken


@dataclass(frozen=True)
class Column:
    """The students of one teacher that differ only in T or in the weight of the soft loss: the runner's unit of work."""

    teacher: Cell
    students: tuple[Cell, ...]


def columns(recipe: Recipe) -> Iterator[Column]:
    """Every column of the grid, teacher by teacher: seeds outermost, so that a study cut short has whole seeds."""
    grid = recipe.grid
    kinds = list(product(recipe.students, grid.scale_student, grid.student_label_smoothing, grid.kd_top_k))
    points = list(product(grid.kd_weight, grid.kd_loss_scale, grid.temperature))
    for seed, label_smoothing in product(grid.seed, grid.label_smoothing):
        teacher = Cell("teacher", label_smoothing, seed)
        for student, scale_student, own_smoothing, top_k in kinds:
            yield Column(
                teacher,
                tuple(
                    Cell(
                        "student",
                        label_smoothing,
                        seed,
                        student=student.name,
                        temperature=temperature,
                        kd_weight=weight,
                        kd_loss_scale=scale,
                        scale_student=scale_student,
                        student_label_smoothing=own_smoothing,
                        kd_top_k=top_k,
                    )
                    for weight, scale, temperature in points
                ),
            )


def cells(recipe: Recipe) -> list[Cell]:
    """Every cell once, each teacher before its students."""
    ordered: dict[Cell, None] = {}
    for column in columns(recipe):
        ordered.setdefault(column.teacher)
        ordered.update(dict.fromkeys(column.students))
    return list(ordered)


def teachers(recipe: Recipe) -> list[Cell]:
    """The teacher of each row of the grid."""
    return [cell for cell in cells(recipe) if cell.role == "teacher"]


def row_of(cell: Cell) -> Cell:
    """The teacher of the cell's row: its own, or itself."""
    return cell if cell.role == "teacher" else cell.teacher

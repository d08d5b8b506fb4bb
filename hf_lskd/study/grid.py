"""From a recipe's grid to its cells: one teacher a row (α, seed), and the columns of students that differ only in T or loss weight."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from hf_lskd.recipe import Recipe
from hf_lskd.record import Cell


@dataclass(frozen=True)
class Column:
    """The students of one teacher that differ only in T or in the weight of the soft loss: the runner's unit of work."""

    teacher: Cell
    students: tuple[Cell, ...]


def columns(recipe: Recipe) -> Iterator[Column]:
    """Every column of the grid, teacher by teacher: seeds outermost, so that a study cut short has whole seeds."""
    grid = recipe.grid
    outer = product(grid.seed, grid.label_smoothing)
    kinds = list(product(recipe.students, grid.scale_student, grid.student_label_smoothing, grid.kd_top_k))
    for seed, label_smoothing in outer:
        teacher = Cell("teacher", label_smoothing, seed)
        for student, scale_student, own_smoothing, top_k in kinds:
            cells = tuple(
                Cell(
                    "student",
                    label_smoothing,
                    seed,
                    student.name,
                    temperature,
                    weight,
                    scale,
                    scale_student,
                    own_smoothing,
                    top_k,
                )
                for weight, scale, temperature in product(grid.kd_weight, grid.kd_loss_scale, grid.temperature)
            )
            yield Column(teacher, cells)


def cells(recipe: Recipe) -> list[Cell]:
    """Every cell once, each teacher before its students."""
    ordered: dict[Cell, None] = {}
    for column in columns(recipe):
        ordered.setdefault(column.teacher)
        ordered.update(dict.fromkeys(column.students))
    return list(ordered)

"""From a recipe's grid to its cells: the teachers of each row, and the columns of students that differ only in T or loss weight."""

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
    """The students of one teacher, or ensemble, that differ only in T or in the weight of the soft loss, or columns of the same
    teachers put together (`lockstep`): the runner's unit of work."""

    teachers: tuple[Cell, ...]
    students: tuple[Cell, ...]

    @property
    def teacher(self) -> Cell:
        """The first of the teachers, which the row is called by."""
        return self.teachers[0]


def columns(recipe: Recipe) -> Iterator[Column]:
    """Every column of the grid, teacher by teacher: seeds outermost, so that a study cut short has whole seeds."""
    grid = recipe.grid
    kinds = list(product(recipe.students, grid.scale_student, grid.student_label_smoothing, grid.kd_top_k))
    points = list(product(grid.kd_weight, grid.kd_loss_scale, grid.temperature))
    for seed, label_smoothing in product(grid.seed, grid.label_smoothing):
        taught_by = row_teachers(recipe, label_smoothing, seed)
        for student, scale_student, own_smoothing, top_k in kinds:
            yield Column(
                taught_by,
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


def row_teachers(recipe: Recipe, label_smoothing: float, seed: int) -> tuple[Cell, ...]:
    """The teachers that a student of this α and seed learns from: one of its own seed, or the recipe's one or ensemble."""
    own = seed if recipe.teacher.seed is None else recipe.teacher.seed
    return tuple(Cell("teacher", label_smoothing, one) for one in recipe.teacher.ensemble or (own,))


def teachers_of(recipe: Recipe, cell: Cell) -> tuple[Cell, ...]:
    """The teachers that must be finished before `cell`: those that it learns from, none for a teacher."""
    return () if cell.role == "teacher" else row_teachers(recipe, cell.label_smoothing, cell.seed)


def cells(recipe: Recipe) -> list[Cell]:
    """Every cell once, each teacher before its students."""
    ordered: dict[Cell, None] = {}
    for column in columns(recipe):
        ordered.update(dict.fromkeys((*column.teachers, *column.students)))
    return list(ordered)


def teachers(recipe: Recipe) -> list[Cell]:
    """Every teacher of the grid, once."""
    return [cell for cell in cells(recipe) if cell.role == "teacher"]


def rows_of(recipe: Recipe) -> list[Cell]:
    """The rows of the grid by their first teachers: what shares no teacher, so that rows may run at once."""
    return list(dict.fromkeys(column.teacher for column in columns(recipe)))


def row_of(recipe: Recipe, cell: Cell) -> Cell:
    """The first teacher of the cell's row."""
    return row_teachers(recipe, cell.label_smoothing, cell.seed)[0]

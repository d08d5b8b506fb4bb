"""The grid's cells: which, in which order, under which names."""

from itertools import product
from typing import Any

from hf_lskd.recipe import Recipe, recipe_from_dict
from hf_lskd.study.grid import CURVE, cells, columns


def recipe(students: int = 1, **grid: Any) -> Recipe:
    return recipe_from_dict(
        {
            "name": "grid",
            "data": {"source": "digits"},
            "teacher": {"model": "resnet18"},
            "students": [{"name": f"s{i}", "model": "resnet18"} for i in range(students)],
            "grid": {"label_smoothing": [0.0, 0.1], "temperature": [1, 2, 64], **grid},
        }
    )


def test_every_point_of_the_grid_is_one_cell_and_every_teacher_one() -> None:
    axes: dict[str, list] = {
        "seed": [0, 1],
        "kd_weight": [0.5, 1],
        "kd_loss_scale": [1, "equalised"],
        "scale_student": [True, False],
        "student_label_smoothing": [0, 0.1],
        "kd_top_k": [None, 5],
    }
    found = cells(recipe(2, **axes))
    teachers = [cell for cell in found if cell.role == "teacher"]
    students = [cell for cell in found if cell.role == "student"]
    assert {(t.label_smoothing, t.seed) for t in teachers} == set(product((0.0, 0.1), (0, 1)))
    assert len(teachers) == 4
    names = [f"s{i}" for i in range(2)]
    wanted = set(product(names, (0.0, 0.1), (1.0, 2.0, 64.0), *axes.values()))
    fields = ("student", "label_smoothing", "temperature", *axes)
    assert {tuple(getattr(s, field) for field in fields) for s in students} == wanted
    assert len(students) == len(wanted)


def test_each_teacher_comes_before_its_students_and_whole_seeds_first() -> None:
    found = cells(recipe(seed=[3, 1]))
    assert [cell.seed for cell in found] == [3] * 8 + [1] * 8
    for index, cell in enumerate(found):
        if cell.role == "student":
            assert found.index(cell.teacher) < index


def test_a_column_is_one_teachers_students_that_differ_in_temperature_and_loss_weight_alone() -> None:
    found = list(columns(recipe(2, kd_weight=[0.5, 1], kd_loss_scale=[1, "equalised"], scale_student=[True, False])))
    assert len(found) == 2 * 2 * 2  # α, students, scale_student
    for column in found:
        assert len(column.students) == 2 * 2 * 3
        assert {student.teacher for student in column.students} == {column.teacher}
        fixed = [field for field in CURVE if field not in ("kd_weight", "kd_loss_scale")]
        assert len({tuple(getattr(student, field) for field in fixed) for student in column.students}) == 1


def test_names_are_distinct_also_of_values_that_agree_to_six_digits() -> None:
    found = cells(
        recipe(label_smoothing=[0.1, 0.1000001], temperature=[1, 1.0000001, 1e-7], kd_loss_scale=[2, 2.0000001])
    )
    assert len({cell.name for cell in found}) == len(found)


def test_a_cells_name_stays_when_the_grid_grows() -> None:
    small = {cell.name for cell in cells(recipe())}
    large = {cell.name for cell in cells(recipe(2, seed=[0, 1], kd_weight=[1, 0.5], kd_top_k=[None, 5]))}
    assert small < large
    assert "s0-a0.1-T64-s0" in small

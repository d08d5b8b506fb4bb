"""What the seeds of a study may have in common: the order of their data, and their teacher."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_lskd import InputError, card
from hf_lskd.analysis import mean_and_t_interval
from hf_lskd.cli import main
from hf_lskd.recipe import parse_recipe, recipe_from_dict
from hf_lskd.record import Cell
from hf_lskd.study.bench import cell_signature, open_bench
from hf_lskd.study.card_record import card_record
from hf_lskd.study.grid import cells, row_of, rows_of, teachers_of
from hf_lskd.study.report_folder import Key, read_study
from hf_lskd.study.report_numbers import Scores
from hf_lskd.tasks import open_task
from tests.study_folder import make_study
from tests.tiny_study import changed, dump, finished_study, values, write_images

SEEDS = (0, 3, 4)


def with_common(page: dict[str, Any], data_seed: int | None, teacher: int | None) -> dict[str, Any]:
    return changed(changed(page, "switches.data_seed", data_seed), "teacher.seed", teacher)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One teacher, and two students of each of three seeds, with augmentation."""
    made = values(write_images(tmp_path_factory.mktemp("images"), train=48, validation=24))
    made = changed(changed(made, "data.augmentation", "standard"), "projection", None)
    made = changed(made, "grid", {"label_smoothing": [0.1], "temperature": [1, 2], "seed": list(SEEDS)})
    return with_common(changed(made, "training.max_steps", 30), 5, 0)


@pytest.fixture(scope="module")
def done(page: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_study(page, tmp_path_factory.mktemp("common"))


def record(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "cells" / name / "record.json").read_text(encoding="utf-8"))


# ---- The recipe


def test_the_keys_read_back_and_leave_no_trace_where_they_are_not_used(page: dict[str, Any]) -> None:
    recipe = recipe_from_dict(page)
    assert (recipe.switches.data_seed, recipe.teacher.seed) == (5, 0)
    assert parse_recipe(recipe.to_yaml()) == recipe == recipe_from_dict(json.loads(json.dumps(recipe.to_dict())))
    plain = recipe_from_dict(with_common(page, None, None)).to_dict()
    assert "data_seed" not in plain["switches"]
    assert "seed" not in plain["teacher"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("training.data_seed", 1, r"Use grid\.seed, or switches\.data_seed for one order of the data in all seeds"),
        ("grid.data_seed", 1, r"grid\.data_seed.*Use switches\.data_seed"),
        ("data_seed", 1, r"Use switches\.data_seed"),
        ("switches.data_seed", -1, r"switches\.data_seed: received -1; allowed a whole number in \[0, 4294967295\]"),
        ("teacher.seed", [0, 1], r"teacher\.seed: received .*allowed a whole number"),
        ("teacher.ensemble", [0, 1], r"teacher\.ensemble: received an ensemble beside seed; allowed one of the two"),
    ],
)
def test_what_cannot_be_is_refused_and_told_where_it_belongs(
    page: dict[str, Any], path: str, value: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        recipe_from_dict(changed(page, path, value))
    assert str(caught.value).count("received") == 1


def test_the_students_of_all_seeds_have_the_one_teacher_of_their_smoothing(page: dict[str, Any]) -> None:
    recipe = recipe_from_dict(changed(with_common(page, None, 7), "grid.label_smoothing", [0.0, 0.1]))
    found = cells(recipe)
    assert [cell for cell in found if cell.role == "teacher"] == [Cell("teacher", 0.0, 7), Cell("teacher", 0.1, 7)]
    students = [cell for cell in found if cell.role == "student"]
    assert len(students) == 2 * 2 * len(SEEDS)
    for cell in students:
        assert teachers_of(recipe, cell) == (Cell("teacher", cell.label_smoothing, 7),)
        assert row_of(recipe, cell) == Cell("teacher", cell.label_smoothing, 7)
    assert rows_of(recipe) == [Cell("teacher", 0.0, 7), Cell("teacher", 0.1, 7)]


def test_a_dry_run_gives_each_student_the_one_teacher(
    page: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["study", str(dump(page, tmp_path / "r.yaml")), "--output-dir", "runs/c", "--dry-run"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [(line[0], line[3]) for line in lines] == [
        ("teacher", "0"), *(("student", str(seed)) for seed in SEEDS for _ in "12")
    ]  # fmt: skip
    assert all("--teacher runs/c/cells/teacher-a0.1-s0 --" in f"{line[-1]} --" for line in lines[1:])


# ---- Signatures


def test_cells_of_recipes_without_the_keys_are_signed_as_before_there_were_any() -> None:
    """The literal signatures were taken from the version before."""
    bench = open_bench(
        recipe_from_dict(
            {
                "name": "grid",
                "data": {"source": "digits"},
                "teacher": {"model": "vit_tiny_patch16_224"},
                "students": [{"name": "s", "model": "resnet10t"}],
                "grid": {"label_smoothing": [0.1], "temperature": [2], "seed": [3]},
            }
        )
    )
    assert {cell.name: cell_signature(bench, cell) for cell in cells(bench.recipe)} == {
        "teacher-a0.1-s3": "3929eab82534e9b88fdbde4eafc8c6463d9c5132657873cd44c0e302b2ba5eb7",
        "s-a0.1-T2-s3": "67a6057b1d6b2d6ec3b767ce7aedb612e6e630b0a20a02bb1d5dba855b96eceb",
    }


def test_a_student_under_bf16_is_signed_anew_since_its_teacher_computes_in_bf16_too() -> None:
    """The literal signature is of the version whose teachers computed in float32 under bf16."""
    page = {
        "name": "grid",
        "data": {"source": "digits"},
        "training": {"bf16": True},
        "teacher": {"model": "vit_tiny_patch16_224"},
        "students": [{"name": "s", "model": "resnet10t"}],
        "grid": {"label_smoothing": [0.1], "temperature": [2], "seed": [3]},
    }
    bench = open_bench(recipe_from_dict(page))
    found = {cell.role: cell_signature(bench, cell) for cell in cells(bench.recipe)}
    assert found["teacher"] == "0e76f101ccf8faadd6ca0bf9a113a3f5f8663b289dc83429962aef3547def85a"
    assert found["student"] != "5e0d4961893a9cae4e4f972ede760cac63198a939977c5d9d09e95d9b4c8d94d"
    own = open_bench(recipe_from_dict(changed(page, "training.teacher_dtype", "float32")))  # was, and is, as it says
    assert {cell.role: cell_signature(own, cell) for cell in cells(own.recipe)}[
        "student"
    ] == "ddecc96d2a5d8c0b30d2cc8d4abc07075aac4f3e96b483386368916bfb04b6be"


def test_signature_and_record_say_the_seed_of_the_data(page: dict[str, Any], done: Path) -> None:
    student = Cell("student", 0.1, 3, "student", 1.0, 1.0, 1.0, True, 0.0)
    variants = [(5, 0), (6, 0), (None, 0), (5, 3), (None, 3), (None, None)]
    signed = [
        cell_signature(open_bench(recipe_from_dict(with_common(page, *variant))), student) for variant in variants
    ]
    assert len(set(signed)) == len(variants) - 1  # the teacher of its own seed is the same by either recipe
    for name in ("teacher-a0.1-s0", student.name):
        found = record(done, name)
        assert (found["data_seed"], found["recipe"]["switches"]["data_seed"]) == (5, 5)
    assert record(done, student.name)["signature"] == signed[0]


def test_one_teacher_is_an_ensemble_of_one_to_signatures(page: dict[str, Any]) -> None:
    student = Cell("student", 0.1, 3, "student", 1.0, 1.0, 1.0, True, 0.0)
    one = open_bench(recipe_from_dict(page))
    listed = open_bench(recipe_from_dict(changed(with_common(page, 5, None), "teacher.ensemble", [0])))
    assert cell_signature(one, student) == cell_signature(listed, student)


# ---- The data


def test_seeds_read_one_order_and_one_augmentation_and_draw_all_else_from_their_own(page: dict[str, Any]) -> None:
    def drawn(data_seed: int | None, seed: int) -> tuple[list[int], torch.Tensor, torch.Tensor]:
        task = open_task(recipe_from_dict(with_common(page, data_seed, 0)))
        trainer = task.trainer(Cell("student", 0.1, seed, "student", 1.0, 1.0, 1.0, True, 0.0), Path("unused"))
        batches = list(trainer.get_train_dataloader())
        order = [index for batch in batches for index in batch["example_id"].tolist()]
        weight = next(iter(trainer.model.parameters())).detach()
        return order, torch.cat([batch["pixel_values"] for batch in batches]), weight

    first, second = drawn(5, 0), drawn(5, 3)
    assert first[0] == second[0] != sorted(first[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[2], second[2])
    own = drawn(None, 3)
    assert own[0] != first[0]
    as_own = drawn(3, 0)
    assert as_own[0] == own[0]
    assert torch.equal(as_own[1], own[1])


# ---- The study


def test_intervals_are_over_the_students_seeds_and_the_teacher_stands_alone(page: dict[str, Any], done: Path) -> None:
    with (done / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["role"] for row in rows] == ["teacher"] + ["student"] * 6
    scores = Scores(read_study(done))
    key = next(key for key in scores.cells if key.temperature == 2.0)
    top1 = [record(done, f"student-a0.1-T2-s{seed}")["metrics"]["top1"] for seed in SEEDS]
    assert len(set(top1)) > 1
    found = scores.mean(key)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx(mean_and_t_interval(top1))
    assert (found.seeds, found.kind) == (3, "seeds")
    teacher = scores.over_seeds([(1.0, Key(None, 0.1, None))])
    assert teacher is not None
    assert (teacher.seeds, teacher.low) == (1, None)


def limits_of(folder: Path) -> str:
    assert main(["report", str(folder)]) == 0
    return re.sub(r"\s+", " ", (folder / "report.html").read_text(encoding="utf-8").replace("\u00a0", " "))


def test_the_page_says_what_the_seeds_have_in_common(done: Path, tmp_path: Path) -> None:
    assert "all seeds have the order of the data and the teacher in common, and no interval holds that" in limits_of(
        done
    )
    folder = make_study(tmp_path / "drawn", seeds=3)
    plain = limits_of(folder)
    assert "in common" not in plain
    assert "Two seeds of teacher and student, with nothing else changed, give" in plain
    study = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(changed(study, "teacher.seed", 0)))
    text = limits_of(folder)
    assert "all seeds have the teacher in common, and no interval holds that" in text
    assert "Two seeds of the student, with nothing else changed, give" in text


def test_a_card_compares_with_the_one_teacher_and_says_what_seeds_have_in_common(done: Path) -> None:
    found = card_record(done / "cells" / "student-a0.1-T1-s3", "someone/tiny")
    expected = found["metrics"]["top1"] - record(done, "teacher-a0.1-s0")["metrics"]["top1"]
    assert found["card"]["teacher"]["difference"]["value"] == pytest.approx(expected)
    text = card.render(found)
    assert "Its study's seeds have the order of the data and the teacher in common" in text
    assert "| seed of the data | 5 |" in text


def test_a_student_run_alone_is_the_studys(page: dict[str, Any], done: Path, tmp_path: Path) -> None:
    command = ["train", str(dump(page, tmp_path / "r.yaml")), "--role", "student", "--temperature", "2", "--seed", "3"]
    command += ["--teacher", str(done / "cells" / "teacher-a0.1-s0"), "--output-dir", str(tmp_path / "alone")]
    assert main(command) == 0
    inside, alone = (
        load_file(folder / "model" / "model.safetensors")
        for folder in (done / "cells" / "student-a0.1-T2-s3", tmp_path / "alone")
    )
    assert all(torch.equal(weight, alone[key]) for key, weight in inside.items())
    assert (
        json.loads((tmp_path / "alone" / "record.json").read_text())["signature"]
        == record(done, "student-a0.1-T2-s3")["signature"]
    )

"""Who is trained together: seeds of one teacher and one order of the data, students that read the same batches, and nobody else."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_lskd.clock import SaveByClock
from hf_lskd.recipe import recipe_from_dict
from hf_lskd.record import Cell
from hf_lskd.shared import OutOfStepError
from hf_lskd.study.bench import open_bench
from hf_lskd.study.cell import whole_checkpoints
from hf_lskd.study.grid import columns
from hf_lskd.study.lockstep import Seat, put_together, run_group
from hf_lskd.study.runner import run_study
from tests.conftest import assert_same_weights, weights
from tests.resume_run import StopAfter, StoppedError, make_trainer
from tests.test_lockstep import HUGE, RESNET_SPEC, assert_same_studies, made_one_by_one, record, student
from tests.test_translation import SHAPE, recipe_of, text  # noqa: F401  # a fixture
from tests.tiny_study import VIT, changed, dump, run_and_kill, values, write_images

SEEDS = (0, 3)
PREPARED = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}  # otherwise each architecture has its own


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A teacher and students of two seeds with batch norm, dropout, augmentation and checkpoints; of each seed one diverges."""
    made = values(write_images(tmp_path_factory.mktemp("images")))
    made = changed(changed(made, "projection", None), "eta", None)
    made = changed(changed(made, "switches.data_seed", 5), "teacher.seed", 0)
    made["data"] |= {"augmentation": "standard"}
    made["students"] = [{"name": "student", **RESNET_SPEC}]
    made["grid"] = {"label_smoothing": [0.1], "temperature": [2], "seed": list(SEEDS), "kd_loss_scale": [1.0, HUGE]}
    made["training"] |= {
        "max_steps": 7,
        "max_grad_norm": 0,
        "optim": "sgd",
        "save_strategy": "steps",
        "save_steps": 1,
    }  # into a second epoch
    made["training"] |= {"logging_strategy": "steps", "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2}
    return made


@pytest.fixture(scope="module")
def separate(page: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_one_by_one(page, tmp_path_factory.mktemp("separate") / "run")


def made_together(page: dict[str, Any]) -> list[list[str]]:
    """The names of the students that a study would train together."""
    bench = open_bench(recipe_from_dict(page))
    return [[cell.name for cell in column.students] for column in put_together(bench, columns(bench.recipe))]


# ---- Seeds


def test_seeds_in_lockstep_are_the_seeds_alone_also_when_students_of_each_go_nan(
    page: dict[str, Any], separate: Path, tmp_path: Path
) -> None:
    records = run_study(recipe_from_dict(page), tmp_path / "run")
    assert [one["status"] for one in records] == ["complete", "complete", "failed", "complete", "failed"]
    assert all("diverged" in one["error"]["message"] for one in records if one["status"] == "failed")
    assert_same_studies(tmp_path / "run", separate, students=4)


def test_a_seed_that_fails_on_its_way_costs_the_others_nothing(
    page: dict[str, Any], separate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one's disk is full when it writes its third checkpoint: its loader is the one that the others read from."""
    folder, name = tmp_path / "run", "student-a0.1-T2-s0"
    save = torch.save

    def full(what: Any, place: Any, *rest: Any, **options: Any) -> None:
        if f".{name}.partial" in str(place) and "checkpoint-3" in str(place):
            raise OSError("No space left on device")
        save(what, place, *rest, **options)

    monkeypatch.setattr(torch, "save", full)
    records = run_study(recipe_from_dict(page), folder)
    monkeypatch.undo()
    assert "No space left" in next(one for one in records if one["name"] == name)["error"]["message"]
    assert record(folder, "student-a0.1-T2-s3")["status"] == "complete"
    run_study(recipe_from_dict(page), folder)  # tries again what has failed
    assert_same_studies(folder, separate, students=None)


def test_seeds_that_were_killed_go_on_from_where_all_of_them_were(
    page: dict[str, Any], separate: Path, tmp_path: Path
) -> None:
    folder, recipe = tmp_path / "run", dump(page, tmp_path / "recipe.yaml")
    first, second = (folder / f"cells/.student-a0.1-T2-s{seed}.partial/trainer" for seed in SEEDS)
    command = ["study", str(recipe), "--output-dir", str(folder)]
    run_and_kill(command, (first / "checkpoint-6" / "trainer_state.json").exists)
    shutil.rmtree(second / "checkpoint-5")  # they lay further apart
    run_study(recipe_from_dict(page), folder)
    assert_same_studies(folder, separate, students=4)


def test_seeds_of_other_orders_or_other_teachers_are_not_put_together(page: dict[str, Any], tmp_path: Path) -> None:
    names = {s: [f"student-a0.1-T2-s{s}", f"student-a0.1-T2-x1e+38-s{s}"] for s in SEEDS}
    assert made_together(page) == [[*names[0], *names[3]]]
    own_order = changed(page, "switches.data_seed", None)
    own_teacher = changed(page, "teacher.seed", None)
    assert made_together(own_order) == made_together(own_teacher) == [names[0], names[3]]
    bench = replace(open_bench(recipe_from_dict(page)), lockstep=False)
    assert put_together(bench, columns(bench.recipe)) == list(columns(bench.recipe))
    own_order = changed(own_order, "training.max_steps", 2)
    for together in (True, False):
        run_study(recipe_from_dict(own_order), tmp_path / str(together), lockstep=together)
    assert_same_studies(tmp_path / "True", tmp_path / "False", students=2)


def test_a_trainer_of_another_order_is_refused_whoever_lets_it_in(tmp_path: Path) -> None:
    def make(cell: Cell, seat: Seat) -> Any:
        arguments = make_trainer(tmp_path / cell.name).args.to_dict()
        trainer = make_trainer(tmp_path / cell.name)
        trainer.args.data_seed = arguments["seed"] + int(cell.temperature or 0)
        try:
            seat.take(trainer)
        except OutOfStepError as error:
            return error
        seat.leave()
        return None

    found = run_group([student(1.0), student(2.0)], None, make)
    assert found[student(1.0)] is None
    assert "data_seed" in str(found[student(2.0)])


def test_seeds_of_translators_go_together_where_batches_are_by_tokens(text: Path, tmp_path: Path) -> None:  # noqa: F811
    shape = SHAPE.replace("dropout: 0.0", "dropout: 0.3")
    recipe = recipe_of(text, students=f"[{{model: marian, model_args: {shape}}}]")
    recipe = replace(
        recipe,
        eta=None,
        grid=replace(recipe.grid, label_smoothing=(0.1,), temperature=(2.0,), seed=SEEDS),
        switches=replace(recipe.switches, data_seed=1),
        teacher=replace(recipe.teacher, seed=0),
    )
    for together in (True, False):
        run_study(recipe, tmp_path / str(together), lockstep=together)
    assert_same_studies(tmp_path / "True", tmp_path / "False", students=2)
    stock = {key: value for key, value in recipe.training.items() if key != "max_tokens"}
    assert len(made_together(replace(recipe, training=stock).to_dict())) == 2


# ---- Students


def test_students_of_other_architectures_and_losses_go_together_where_they_read_the_same(
    page: dict[str, Any], separate: Path, tmp_path: Path
) -> None:
    made = changed(changed(page, "grid.kd_loss_scale", [1.0]), "grid.seed", [3])
    made["data"] |= PREPARED
    made["grid"] |= {"kd_top_k": [None, 3], "student_label_smoothing": [0.0, 0.2], "kd_weight": [0.5]}
    slow = {"learning_rate": 0.001, "optim": "adamw_torch", "weight_decay": 0.1}
    made["students"] = [{"name": "resnet", **RESNET_SPEC}, {"name": "vit", **VIT, "training": slow}]
    for together in (True, False):
        run_study(recipe_from_dict(made), tmp_path / str(together), lockstep=together)
    assert_same_studies(tmp_path / "True", tmp_path / "False", students=8)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("students.1.training", {"per_device_train_batch_size": 8}),
        ("students.1.training", {"gradient_accumulation_steps": 2}),
        ("students.1.training", {"num_train_epochs": 2}),
        ("data.mean", None),
    ],
)
def test_students_that_read_other_batches_do_not(page: dict[str, Any], path: str, value: Any) -> None:
    made = changed(page, "grid.kd_loss_scale", [1.0])
    made["data"] |= PREPARED
    made["students"] = [{"name": "resnet", **RESNET_SPEC}, {"name": "vit", **VIT}]
    assert [len(group) for group in made_together(made)] == [4]
    groups = made_together(changed(made, path, value))
    assert [[name.partition("-")[0] for name in group] for group in groups] == [["resnet"] * 2, ["vit"] * 2]


# ---- Checkpoints by the clock

PACE = {1.0: 10.0, 2.0: 25.0, 8.0: 0.0}  # seconds a step, by each student's own clock


def by_the_clock(folder: Path, temperature: float, **settings: Any) -> Any:
    trainer = make_trainer(folder, kd_temperature=temperature, save_strategy="no", save_minutes=40 / 60, **settings)
    (callback,) = (found for found in trainer.callback_handler.callbacks if isinstance(found, SaveByClock))
    callback.clock = lambda: trainer.state.global_step * PACE[temperature]
    return trainer


def steps_of(folder: Path) -> list[int]:
    return sorted(whole_checkpoints(folder))


def test_students_whose_clocks_differ_write_checkpoints_at_the_same_steps(tmp_path: Path) -> None:
    """The first one's clock decides: every four steps; alone each has its own."""

    def make(cell: Cell, seat: Seat) -> Any:
        trainer = by_the_clock(tmp_path / cell.name, cell.temperature or 0.0)
        seat.take(trainer)
        trainer.train()
        seat.leave()
        return weights(trainer.model)

    found = run_group([student(t) for t in PACE], None, make)
    assert {steps for t in PACE for steps in [tuple(steps_of(tmp_path / student(t).name))]} == {(4, 8, 12, 16)}
    alone = by_the_clock(tmp_path / "alone", 2.0)
    alone.train()
    assert steps_of(tmp_path / "alone") == [2, 4, 6, 8, 10, 12, 14, 16]
    assert_same_weights(found[student(2.0)], weights(alone.model))


def test_when_the_one_who_decides_fails_the_next_one_does(tmp_path: Path) -> None:
    def make(cell: Cell, seat: Seat) -> Any:
        callbacks = [StopAfter(6)] if cell.temperature == 1.0 else []
        trainer = by_the_clock(tmp_path / cell.name, cell.temperature or 0.0, callbacks=callbacks)
        seat.take(trainer)
        try:
            trainer.train()
        except StoppedError as error:
            return error
        return seat.leave()

    found = run_group([student(t) for t in PACE], None, make)
    assert isinstance(found[student(1.0)], StoppedError)
    others = [steps_of(tmp_path / student(t).name) for t in (2.0, 8.0)]
    assert others[0] == others[1]
    assert others[0][0] == 4
    assert len(others[0]) > 4  # 25 seconds a step now


def test_a_study_that_saves_by_the_clock_goes_on_in_lockstep_after_a_kill(page: dict[str, Any], tmp_path: Path) -> None:
    made = changed(changed(page, "grid.kd_loss_scale", [1.0]), "grid.temperature", [1, 2])
    made["training"] |= {"max_steps": 60, "save_strategy": "no", "save_minutes": 0.1 / 60, "eval_steps": 25}
    names = [f"student-a0.1-T{t}-s{seed}" for seed in SEEDS for t in (1, 2)]
    folder, recipe = tmp_path / "run", dump(made, tmp_path / "recipe.yaml")
    places = [folder / f"cells/.{name}.partial/trainer" for name in names]

    def twice() -> bool:
        return all(len(list(place.glob("checkpoint-*/trainer_state.json"))) == 2 for place in places)

    run_and_kill(["study", str(recipe), "--output-dir", str(folder)], twice)
    left = [set(whole_checkpoints(place)) for place in places]
    common = set.intersection(*left)
    assert common
    begun: list[Any] = []
    told = run_study_noting(made, folder, begun)
    assert [one["lockstep"] for one in told if one["role"] == "student"] == [4] * 4
    assert begun == [max(common)] * 4
    run_study(recipe_from_dict(made), tmp_path / "separate", lockstep=False)
    assert_same_studies(folder, tmp_path / "separate", students=4)


def run_study_noting(made: dict[str, Any], folder: Path, begun: list[Any]) -> list[dict[str, Any]]:
    """Run a study and note the step that each student goes on from."""
    with pytest.MonkeyPatch.context() as patch:
        take = Seat.take

        def noted(self: Any, trainer: Any) -> None:
            begun.append(self.resume)
            take(self, trainer)

        patch.setattr(Seat, "take", noted)
        return run_study(recipe_from_dict(made), folder)


def test_what_lies_ahead_of_where_all_go_on_is_dropped(page: dict[str, Any], tmp_path: Path) -> None:
    """Or the oldest checkpoint that all have would make room for one that only some have."""
    folder, made = tmp_path / "run", changed(page, "grid.kd_loss_scale", [1.0])
    recipe = dump(made, tmp_path / "recipe.yaml")
    first, second = (folder / f"cells/.student-a0.1-T2-s{seed}.partial/trainer" for seed in SEEDS)
    run_and_kill(
        ["study", str(recipe), "--output-dir", str(folder)], (second / "checkpoint-4/trainer_state.json").exists
    )
    for step in (3, 4):
        shutil.rmtree(second / f"checkpoint-{step}")
    seen: list[list[int]] = []
    with pytest.MonkeyPatch.context() as patch:
        take = Seat.take
        patch.setattr(Seat, "take", lambda self, trainer: (take(self, trainer), seen.append(steps_of(first)))[0])
        run_study(recipe_from_dict(made), folder)
    assert seen[0] == [1, 2]
    assert json.loads((folder / "cells/student-a0.1-T2-s0/record.json").read_text())["lockstep"] == 2

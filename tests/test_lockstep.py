"""Students that are trained together become, to the last bit, what each becomes alone, whatever happens to the others."""

import gc
import json
import os
import shutil
import signal
import threading
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_lskd.data.dataset import ImageDataset
from hf_lskd.recipe import recipe_from_dict
from hf_lskd.record import Cell
from hf_lskd.shared import Generators, OutOfStepError, SharedBatches, SharedTeacher
from hf_lskd.study import lockstep
from hf_lskd.study.bench import open_bench
from hf_lskd.study.lockstep import Seat, by_checkpoint, how_many, run_group
from hf_lskd.study.runner import run_study
from hf_lskd.study.strands import Strand
from hf_lskd.teacher import Member, Teacher
from tests.conftest import RESNET, assert_same_weights
from tests.resume_run import StopAfter, make_trainer
from tests.test_resume import LAST, everything
from tests.test_translation import SHAPE, recipe_of, text  # noqa: F401  # a fixture
from tests.tiny_study import changed, dump, run_and_kill, run_and_signal, values, write_images

# how a cell was made, and a hash over how its teacher was
OWN = ("durations", "peak_memory_mb", "lockstep", "teacher", "recipe", "signature")
CLIP = {1.0: 0.3, 2.0: 1.0, 8.0: 100.0}  # a norm that each gradient exceeds, and one that none does
HUGE = 1e38  # a loss scale that no weights survive
RESNET_SPEC = {"model": RESNET[0], "model_args": {**RESNET[1], "drop_rate": 0.2, "channels": [8, 8, 8, 8]}}


# ---- Trainers


def students(folder: Path, temperatures: tuple[float, ...], **settings: Any) -> dict[str, dict[str, Tensor]]:
    """The last checkpoints of students with dropout, augmentation, accumulation and a moving average, trained together."""

    def make(cell: Cell, seat: Seat) -> dict[str, Any]:
        if seat.resume is None:
            own = {**settings, "callbacks": settings.get("callbacks", {}).get(cell.temperature, ())}
        else:
            own = {key: value for key, value in settings.items() if key != "callbacks"}
        trainer = make_trainer(
            folder / cell.name, kd_temperature=cell.temperature, max_grad_norm=CLIP[cell.temperature], **own
        )
        seat.take(trainer)
        resume = None if seat.resume is None else str(folder / cell.name / f"checkpoint-{seat.resume}")
        trainer.train(resume_from_checkpoint=resume)
        seat.leave()
        return {"checkpoint": everything(folder / cell.name), "clipped": clipped(trainer)}

    cells = [student(temperature) for temperature in temperatures]
    return {cell.name: record for cell, record in run_group(cells, settings.pop("resume", None), make).items()}


def student(temperature: float) -> Cell:
    return Cell("student", 0.1, 0, student="s", temperature=temperature)


def alone(folder: Path, temperature: float, **settings: Any) -> dict[str, Any]:
    trainer = make_trainer(
        folder / f"alone-{temperature}", kd_temperature=temperature, max_grad_norm=CLIP[temperature], **settings
    )
    trainer.train()
    return {"checkpoint": everything(folder / f"alone-{temperature}"), "clipped": clipped(trainer)}


def clipped(trainer: Any) -> set[bool]:
    """Whether steps had a gradient that was clipped."""
    return {
        entry["grad_norm"] > trainer.args.max_grad_norm for entry in trainer.state.log_history if "grad_norm" in entry
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_trainers_in_lockstep_leave_the_checkpoints_that_each_leaves_alone(workers: int, tmp_path: Path) -> None:
    together = students(tmp_path, (1.0, 8.0), workers=workers)
    for temperature in (1.0, 8.0):
        expected, found = alone(tmp_path, temperature), together[student(temperature).name]
        assert_same_weights(found["checkpoint"], expected["checkpoint"])
    assert together[student(1.0).name]["clipped"] == {True}
    assert together[student(8.0).name]["clipped"] == {False}


def test_a_data_set_is_read_and_a_teacher_run_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"batches": 0, "teacher": 0}
    read, answer = ImageDataset.__getitems__, Member.logits

    def counted(self: Any, keys: Any) -> Any:
        counts["batches"] += isinstance(keys[0], tuple)  # training keys carry the epoch
        return read(self, keys)

    def asked(self: Any, inputs: Any) -> Any:
        counts["teacher"] += 1
        return answer(self, inputs)

    monkeypatch.setattr(ImageDataset, "__getitems__", counted)
    monkeypatch.setattr(Member, "logits", asked)
    alone(tmp_path, 1.0)
    once = dict(counts)
    students(tmp_path, (1.0, 2.0, 8.0))
    assert counts == {key: 2 * count for key, count in once.items()}
    assert once["batches"] == 33


class Failing(StopAfter):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise MemoryError


def test_one_that_fails_costs_the_others_nothing(tmp_path: Path) -> None:
    """Also when it is the first, whose loader the others read from."""

    def make(cell: Cell, seat: Seat) -> Any:
        callbacks = [Failing(7)] if cell.temperature == 1.0 else []
        trainer = make_trainer(
            tmp_path / cell.name,
            kd_temperature=cell.temperature,
            max_grad_norm=CLIP[cell.temperature],
            callbacks=callbacks,
        )
        seat.take(trainer)
        try:
            trainer.train()
        except MemoryError as error:
            return error
        seat.leave()
        return everything(tmp_path / cell.name)

    ended = run_group([student(1.0), student(8.0)], None, make)
    assert isinstance(ended[student(1.0)], MemoryError)
    assert_same_weights(ended[student(8.0)], alone(tmp_path, 8.0)["checkpoint"])


@pytest.mark.parametrize("checkpoint", [9, 6], ids=["mid-epoch", "epoch boundary"])
def test_students_that_are_resumed_together_become_what_they_were(checkpoint: int, tmp_path: Path) -> None:
    whole = students(tmp_path, (1.0, 8.0))
    for cell in (student(1.0), student(8.0)):
        for later in range(checkpoint + 3, LAST + 1, 3):
            shutil.rmtree(tmp_path / cell.name / f"checkpoint-{later}")
    torch.manual_seed(99)
    resumed = students(tmp_path, (1.0, 8.0), resume=checkpoint)
    for name, ended in resumed.items():
        assert_same_weights(ended["checkpoint"], whole[name]["checkpoint"])


# ---- What is shared


def test_a_readers_generators_move_as_if_it_had_read_itself() -> None:
    shared = SharedBatches()
    first, second = (shared.reader(lambda batch: batch) for _ in range(2))

    def drawing() -> Any:
        for _ in range(3):
            yield {"x": torch.rand(2)}

    torch.manual_seed(0)
    start = Generators.now()
    mine = [next(first(epoch)) for epoch in [drawing()] for _ in range(3)]
    after = Generators.now()
    start.restore()
    theirs = [next(second(epoch)) for epoch in [drawing()] for _ in range(3)]
    assert all(one["x"] is other["x"] for one, other in zip(mine, theirs))
    assert Generators.now().same(after)
    assert shared.kept == {}
    more = drawing(), drawing()
    next(first(more[0]))
    torch.rand(1)
    with pytest.raises(OutOfStepError, match="stands elsewhere"):
        next(second(more[1]))


def test_a_batch_that_others_are_not_at_is_never_taken_for_theirs() -> None:
    shared = SharedBatches()
    ahead, late = (shared.reader(lambda batch: batch) for _ in range(2))
    for batch in (0, 1):
        assert next(ahead(iter([{"n": 0}, {"n": 1}]) if batch == 0 else ahead.own)) == {"n": batch}
    late.own, late.epoch, late.batch = iter([]), 0, 5
    with pytest.raises(OutOfStepError, match="batch 5 of epoch 0"):
        next(late)


def test_an_error_in_the_data_is_every_readers() -> None:
    def broken() -> Any:
        yield {"n": 0}
        raise OSError("cannot be read")

    shared = SharedBatches()
    for reader in (shared.reader(lambda batch: batch), shared.reader(lambda batch: batch)):
        epoch = broken()
        assert next(reader(epoch)) == {"n": 0}
        with pytest.raises(OSError, match="cannot be read"):
            next(reader(epoch))


def test_a_shared_teacher_answers_for_the_same_tensors_only_and_sees_who_writes_into_its_answer() -> None:
    model = nn.Flatten()
    teacher = SharedTeacher(Teacher([Member(model, None)]))
    one, equal = torch.rand(2, 3), None
    equal = one.clone()
    answer = teacher.logits({"pixel_values": one})
    assert teacher.logits({"pixel_values": one}) is answer
    assert teacher.logits({"pixel_values": equal}) is not answer
    teacher = SharedTeacher(Teacher([Member(nn.Linear(3, 2), None)]))
    teacher.logits({"pixel_values": one}).add_(1)
    with pytest.raises(RuntimeError, match="written into the teacher's logits"):
        teacher.logits({"pixel_values": one})


def test_strands_have_generators_of_their_own_and_run_one_at_a_time() -> None:
    drawn: dict[str, list[float]] = {"a": [], "b": []}
    running, most = [0], [0]

    def draw(name: str) -> None:
        torch.manual_seed(0)
        for _ in range(3):
            running[0] += 1
            most[0] = max(most[0], running[0])
            drawn[name].append(float(torch.rand(1)))
            running[0] -= 1
            strands[name].pause()

    before = Generators.now()
    strands = {name: Strand(lambda name=name: draw(name)) for name in drawn}
    while not all(strand.ended for strand in strands.values()):
        for strand in strands.values():
            if not strand.ended:
                strand.advance()
    assert drawn["a"] == drawn["b"]
    assert most == [1]
    assert Generators.now().same(before)


def test_an_interruption_ends_every_student() -> None:
    threads = threading.active_count()
    begun: list[Cell] = []
    kept: list[Cell] = []
    ended: list[Cell] = []

    def make(cell: Cell, seat: Seat) -> Any:
        begun.append(cell)
        if len(begun) == 3:
            raise KeyboardInterrupt
        try:
            seat.strand.pause()
        except Exception:  # which no interruption is: as a failed cell's it would be recorded
            kept.append(cell)
        finally:
            ended.append(cell)
            seat.strand.pause()

    with pytest.raises(KeyboardInterrupt):
        run_group([student(t) for t in (1.0, 2.0, 3.0, 4.0)], None, make)
    assert len(begun) == 3
    assert kept == []
    assert ended == begun[:2]
    assert threading.active_count() == threads


def test_what_a_group_shared_is_let_go_when_it_has_ended() -> None:
    """Without waiting for the garbage collector: the next group's teacher needs the room of this one's."""
    shared = []

    def make(cell: Cell, seat: Seat) -> None:
        shared.append(weakref.ref(seat.together))
        seat.strand.pause()
        if cell.temperature == 3:
            seat.leave()

    gc.disable()
    try:
        run_group([student(t) for t in (1.0, 2.0, 3.0)], None, make)
        assert [one() for one in shared] == [None] * 3
    finally:
        gc.enable()


def test_strands_have_one_thread_and_keep_what_torch_records_for_themselves() -> None:
    seen: dict[str, set[Any]] = {"without": set(), "half": set(), "plain": set()}

    def look(name: str) -> None:
        for _ in range(2):
            strands[name].pause()
            state = (
                torch.is_grad_enabled(),
                torch.is_autocast_enabled("cpu"),
                (torch.ones(1, 1) @ torch.ones(1, 1)).dtype,
            )
            seen[name].add((threading.get_ident(), *state))

    def without() -> None:
        with torch.no_grad():
            look("without")

    def half() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            look("half")

    strands = {"without": Strand(without), "half": Strand(half), "plain": Strand(lambda: look("plain"))}
    for _ in range(3):
        for strand in strands.values():
            strand.advance()
            assert torch.is_grad_enabled()
            assert not torch.is_autocast_enabled("cpu")
    here = threading.get_ident()
    assert all(strand.ended and strand.error is None for strand in strands.values())
    assert seen == {
        "without": {(here, False, False, torch.float32)},
        "half": {(here, True, True, torch.bfloat16)},
        "plain": {(here, True, False, torch.float32)},
    }


# ---- Studies


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One teacher and four students with batch norm, dropout, augmentation and checkpoints; two of them come to nothing."""
    page = values(write_images(tmp_path_factory.mktemp("images")))
    page = changed(changed(page, "projection", None), "eta", None)
    page["data"] |= {"augmentation": "standard"}
    page["students"] = [{"name": "student", **RESNET_SPEC}]
    page["grid"] |= {"label_smoothing": [0.1], "temperature": [1, 64], "kd_loss_scale": [1.0, HUGE]}
    page["training"] |= {"max_grad_norm": 0, "optim": "sgd", "save_strategy": "steps", "save_steps": 1}
    page["training"] |= {"logging_strategy": "steps", "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2}
    return page


@pytest.fixture(scope="module")
def separate(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_one_by_one(recipe, tmp_path_factory.mktemp("separate") / "run")


def made_one_by_one(recipe: dict[str, Any], folder: Path) -> Path:
    """The study's folder, each student trained alone on one thread."""
    torch.set_num_threads(1)
    run_study(recipe_from_dict(recipe), folder, lockstep=False)
    return folder


def record(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "cells" / name / "record.json").read_text(encoding="utf-8"))


def assert_same_studies(one: Path, other: Path, students: int | None) -> None:
    """Records but for how they were made, weights, predictions and statistics of every cell."""
    names = sorted(path.name for path in (one / "cells").iterdir() if not path.name.startswith("."))
    assert names == sorted(path.name for path in (other / "cells").iterdir() if not path.name.startswith("."))
    for name in names:
        mine, theirs = record(one, name), record(other, name)
        if theirs["status"] == "failed":
            assert mine["error"]["message"] == theirs["error"]["message"]
            continue
        if students is not None and mine["role"] == "student":
            assert (mine["lockstep"], theirs["lockstep"]) == (students, 1)
        assert without(mine) == without(theirs)
        for file in ("model/model.safetensors", "predictions.safetensors", "statistics.safetensors"):
            assert (one / "cells" / name / file).read_bytes() == (other / "cells" / name / file).read_bytes(), (
                name,
                file,
            )


def without(page: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in page.items() if key not in OWN}


def test_a_study_in_lockstep_is_the_study_without_also_when_students_go_nan(
    recipe: dict[str, Any], separate: Path, tmp_path: Path
) -> None:
    records = run_study(recipe_from_dict(recipe), tmp_path / "run")
    assert [one["status"] for one in records] == ["complete", "complete", "complete", "failed", "failed"]
    assert all("diverged" in one["error"]["message"] for one in records[3:])
    assert_same_studies(tmp_path / "run", separate, students=4)


def test_a_study_in_lockstep_on_two_threads_is_the_study_without(recipe: dict[str, Any], tmp_path: Path) -> None:
    page = changed(changed(recipe, "grid.kd_loss_scale", [1.0]), "training.max_steps", 5)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for together in (False, True):
            run_study(recipe_from_dict(page), tmp_path / str(together), lockstep=together)
    finally:
        torch.set_num_threads(before)
    assert_same_studies(tmp_path / "True", tmp_path / "False", students=2)


def test_a_killed_column_goes_on_from_where_all_of_it_was(
    recipe: dict[str, Any], separate: Path, tmp_path: Path
) -> None:
    """Killed while its students are at different steps; and again where what is left of them lies further apart."""
    folder, page = tmp_path / "run", dump(recipe, tmp_path / "recipe.yaml")
    first, second = ("student-a0.1-T1-s0", "student-a0.1-T64-s0")
    trainer = "cells/.{}.partial/trainer/checkpoint-{}/trainer_state.json"
    run_and_kill(["study", str(page), "--output-dir", str(folder)], (folder / trainer.format(first, 3)).exists)
    assert (folder / trainer.format(second, 2)).exists()
    shutil.rmtree((folder / trainer.format(second, 2)).parent)
    run_study(recipe_from_dict(recipe), folder)
    assert_same_studies(folder, separate, students=4)


def test_an_interrupted_column_goes_on_from_where_all_of_it_was(
    recipe: dict[str, Any], separate: Path, tmp_path: Path
) -> None:
    """Ctrl-C reaches the student whose turn it is, in the middle of a step; none of them ends or is recorded as failed."""
    folder, page = tmp_path / "run", dump(recipe, tmp_path / "recipe.yaml")
    second = folder / "cells/.student-a0.1-T64-s0.partial/trainer/checkpoint-3/trainer_state.json"
    status = run_and_signal(["study", str(page), "--output-dir", str(folder)], second.exists, signal.SIGINT)
    assert os.waitstatus_to_exitcode(status) == 130
    assert sorted(path.name for path in (folder / "cells").glob("*/record.json")) == ["record.json"]  # the teacher's
    run_study(recipe_from_dict(recipe), folder)
    assert_same_studies(folder, separate, students=4)


def test_what_is_logged_once_an_epoch_is_the_same_in_lockstep(recipe: dict[str, Any], tmp_path: Path) -> None:
    """Where the gradient's norm is only logged, and where an epoch ends only the first student's loader knows."""
    page = changed(changed(recipe, "grid.kd_loss_scale", [1.0]), "training.max_steps", 12)  # two epochs
    page["training"] |= {"logging_strategy": "epoch", "eval_strategy": "no", "save_strategy": "no"}
    for together in (False, True):
        run_study(recipe_from_dict(page), tmp_path / str(together), lockstep=together)
    assert_same_studies(tmp_path / "True", tmp_path / "False", students=2)
    curve = record(tmp_path / "True", "student-a0.1-T64-s0")["curve"]
    assert all(point["grad_norm"] > 0 for point in curve if "grad_norm" in point or "loss" in point)


def test_what_is_finished_is_left_out(recipe: dict[str, Any], separate: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(separate, tmp_path / "run"))
    shutil.rmtree(folder / "cells" / "student-a0.1-T64-s0")
    run_study(recipe_from_dict(changed(recipe, "grid.kd_loss_scale", [1.0])), folder)
    assert record(folder, "student-a0.1-T64-s0")["lockstep"] == 1
    assert_same_studies(folder, separate, students=None)


def test_students_with_checkpoints_of_no_common_step_go_in_groups(tmp_path: Path) -> None:
    cells = [student(t) for t in (1.0, 2.0, 3.0, 4.0)]
    for cell, steps in zip(cells, ([4], [6], [4], [])):
        for step in steps:
            checkpoint = tmp_path / f".{cell.name}.partial" / "trainer" / f"checkpoint-{step}"
            checkpoint.mkdir(parents=True)
            (checkpoint / "trainer_state.json").write_text("{}")
    assert by_checkpoint(cells, tmp_path) == {4: [cells[0], cells[2]], 6: [cells[1]], None: [cells[3]]}


def test_translation_in_lockstep_is_translation_without(text: Path, tmp_path: Path) -> None:  # noqa: F811
    shape = SHAPE.replace("dropout: 0.0", "dropout: 0.3")
    recipe = recipe_of(text, students=f"[{{model: marian, model_args: {shape}}}]")
    recipe = replace(recipe, eta=None, grid=replace(recipe.grid, label_smoothing=(0.1,)))
    run_study(recipe, tmp_path / "together")
    run_study(recipe, tmp_path / "separate", lockstep=False)
    assert_same_studies(tmp_path / "together", tmp_path / "separate", students=2)


def test_as_many_go_together_as_memory_holds(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench = open_bench(recipe_from_dict(recipe))
    cells = [Cell("student", 0.1, 0, student="student", temperature=float(t)) for t in range(1, 6)]
    each = lockstep.COPIES * lockstep.weight_bytes(bench.task.build(cells[0]))
    assert how_many(bench, cells) == 5
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert how_many(bench, cells) == 5  # several threads of a CPU are shared by all
    monkeypatch.undo()
    for room, count in ((0.0, 1), (2.5, 3), (100.0, 5)):
        monkeypatch.setattr(lockstep, "free_memory", lambda room=room: int(room * each / lockstep.SHARE))
        assert how_many(bench, cells) == count

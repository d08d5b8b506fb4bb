"""Checkpoints by the clock: when they are due, that they cost no look a step, and that a run resumed from one misses nothing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl

from hf_lskd.clock import SaveByClock
from hf_lskd.errors import InputError
from tests.conftest import assert_same_weights, weights
from tests.pairs import run_pair
from tests.resume_run import StopAfter, StoppedError, make_trainer

PACE = 10.0  # seconds a step, by the clock of these tests
SETTINGS: dict[str, Any] = {"save_strategy": "no", "save_minutes": 4 * PACE / 60, "eval_strategy": "epoch"}


def clocked(folder: Path, **settings: Any) -> Any:
    """The run of tests/resume_run.py (6 steps an epoch, 3 epochs), in which each step takes 10 seconds."""
    trainer = make_trainer(folder, **{**SETTINGS, **settings})
    (callback,) = (found for found in trainer.callback_handler.callbacks if isinstance(found, SaveByClock))
    callback.clock = lambda: trainer.state.global_step * PACE
    return trainer


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))


def evaluations(trainer: Any) -> list[tuple[int, float]]:
    return [(entry["step"], entry["eval_nll"]) for entry in trainer.state.log_history if "eval_nll" in entry]


def test_a_run_that_is_resumed_from_any_of_them_is_the_whole_run(tmp_path: Path) -> None:
    """Also from the one at the end of an epoch, whose evaluation it must not miss; and there is none after the last step."""
    whole = clocked(tmp_path / "whole")
    whole.train()
    assert checkpoints(tmp_path / "whole") == [4, 8, 12, 16]
    for step in (8, 12):
        folder = tmp_path / str(step)
        with pytest.raises(StoppedError):
            clocked(folder, callbacks=[StopAfter(step + 1)]).train()
        resumed = clocked(folder)
        resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
        assert_same_weights(weights(resumed.model), weights(whole.model))
        assert evaluations(resumed) == evaluations(whole)
        assert len(evaluations(whole)) == 3


def test_none_is_written_after_the_last_step(tmp_path: Path) -> None:
    clocked(tmp_path, save_minutes=6 * PACE / 60).train()
    assert checkpoints(tmp_path) == [6, 12]  # due at 18 too


@pytest.mark.parametrize("pace", [0.01, 1.0, 1000.0])
def test_looks_are_few_and_late_by_little(pace: float) -> None:
    """By the simple rule: a checkpoint at the first step whose time since the last one is long enough."""
    seconds, steps, looks = 600.0, 200_000 if pace < 1 else 5000, 0
    state = SimpleNamespace(global_step=0, max_steps=10**9, epoch=0.5)
    callback = SaveByClock(seconds / 60, lambda: state.global_step * pace)
    decide = callback.decision

    def counted(step: int) -> tuple[bool, int]:
        nonlocal looks
        looks += 1
        return decide(step)

    callback.decision = counted  # type: ignore[method-assign]
    args, saved = SimpleNamespace(world_size=1), []
    callback.on_train_begin(args, state, None)
    while state.global_step < steps:
        state.global_step += 1
        control = TrainerControl()
        callback.on_step_end(args, state, control)
        if control.should_save:
            saved.append(state.global_step)
    every = max(1, round(seconds / pace))
    assert saved == list(range(every, steps + 1, every))
    assert looks <= len(saved) * 20 + 20


@pytest.mark.parametrize("minutes", [0, -1.0])
def test_minutes_are_above_zero(minutes: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="save_minutes"):
        make_trainer(tmp_path, save_minutes=minutes)


@pytest.mark.slow
def test_processes_with_clocks_of_their_own_write_whole_checkpoints_at_the_same_steps(tmp_path: Path) -> None:
    """Rank 1's clock stands still, and its share of a checkpoint takes long: see tests/clock_run.py."""
    run_pair("tests.clock_run", tmp_path)
    assert checkpoints(tmp_path) == [2, 4]
    both = "rng_state_0.pth rng_state_1.pth"
    assert (tmp_path / "rank0.txt").read_text().splitlines() == [f"2 {both}", f"4 {both}"]

"""A run that is stopped and resumed is the run that was not, bit by bit; and what its examples look like is nobody's chance."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.trainer_utils import get_last_checkpoint

from tests.conftest import assert_same_weights, weights
from tests.resume_run import EPOCHS, MAPPING, STEPS_PER_EPOCH, StopAfter, StoppedError, end_workers, make_trainer

LAST = STEPS_PER_EPOCH * EPOCHS
MID_EPOCH, BOUNDARY = 9, 6  # the checkpoints that are resumed from
LOADERS = {"no workers": {}, "workers": {"workers": 2}, "persistent workers": {"workers": 2, "persistent": True}}


def everything(folder: Path) -> dict[str, Tensor]:
    """The last checkpoint's tensors: raw weights, their average, and what the optimizer remembers."""
    last = folder / f"checkpoint-{LAST}"
    found = {f"raw.{key}": value for key, value in load_file(last / "model.safetensors").items()}
    if (last / "ema.safetensors").is_file():
        found.update({f"average.{key}": value for key, value in load_file(last / "ema.safetensors").items()})
    optimizer = torch.load(last / "optimizer.pt", weights_only=True)
    for index, state in optimizer["state"].items():
        found.update({f"optimizer.{index}.{key}": value for key, value in state.items()})
    return found


def whole_run(folder: Path, **settings: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(final weights of the model, last checkpoint) of a run that nothing stops."""
    trainer = make_trainer(folder, **settings)
    trainer.train()
    end_workers(trainer)
    assert trainer.state.global_step == LAST
    return weights(trainer.model), everything(folder)


def resumed_run(folder: Path, checkpoint: int, **settings: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same of a run that loses the step after `checkpoint` to an exception and is resumed."""
    trainer = make_trainer(folder, callbacks=[StopAfter(checkpoint + 1)], **settings)
    with pytest.raises(StoppedError):
        trainer.train()
    end_workers(trainer)
    return resumed(folder, checkpoint, **settings)


def resumed(folder: Path, checkpoint: int, **settings: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    last = get_last_checkpoint(str(folder))
    assert last == str(folder / f"checkpoint-{checkpoint}")
    trainer = make_trainer(folder, **settings)
    torch.manual_seed(12345)  # a fresh process stands somewhere else in its generator
    trainer.train(resume_from_checkpoint=last)
    end_workers(trainer)
    return weights(trainer.model), everything(folder)


def assert_same_run(one: tuple[dict, dict], other: tuple[dict, dict]) -> None:
    for left, right in zip(one, other):
        assert_same_weights(left, right)


def differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return any(not torch.equal(value, other[key]) for key, value in one.items())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Standard augmentation, dropout, accumulation with a short window, teacher, EMA, no workers."""
    torch.set_num_threads(1)
    return whole_run(tmp_path_factory.mktemp("uninterrupted"))


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("checkpoint", [MID_EPOCH, BOUNDARY], ids=["mid-epoch", "epoch boundary"])
def test_trap_19_a_resumed_run_is_the_uninterrupted_one(
    checkpoint: int, loader: str, uninterrupted, tmp_path: Path
) -> None:
    assert_same_run(resumed_run(tmp_path, checkpoint, **LOADERS[loader]), uninterrupted)


@pytest.mark.parametrize("loader", [name for name in LOADERS if name != "no workers"])
def test_trap_28_workers_change_nothing(loader: str, uninterrupted, tmp_path: Path) -> None:
    assert_same_run(whole_run(tmp_path, **LOADERS[loader]), uninterrupted)


def test_trap_19_a_killed_run_is_resumed_by_another_process(uninterrupted, tmp_path: Path) -> None:
    settings = {"workers": 2}
    command = [sys.executable, "-m", "tests.resume_run", str(tmp_path), str(MID_EPOCH + 1), json.dumps(settings)]
    root = Path(__file__).parent.parent
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert_same_run(resumed(tmp_path, MID_EPOCH, **settings), uninterrupted)


@pytest.mark.parametrize(
    "settings",
    [
        {"augmentation": MAPPING, "ema": None, "accumulation": 1, "batch": 8},
        {"augmentation": "standard", "mix": {"mixup": 0.4, "cutmix": 1.0}, "teacher": False},
    ],
    ids=["a mapping, plain", "mixup, no teacher"],
)
def test_trap_19_and_28_with_other_augmentations(settings: dict[str, Any], tmp_path: Path) -> None:
    expected = whole_run(tmp_path / "whole", **settings)
    assert_same_run(resumed_run(tmp_path / "resumed", MID_EPOCH, **settings, workers=2), expected)


def test_trap_28_the_data_seed_alone_decides_order_and_augmentation(uninterrupted, tmp_path: Path) -> None:
    assert differ(whole_run(tmp_path, data_seed=8)[0], uninterrupted[0])


def test_trap_28_augmentation_reaches_training(uninterrupted, tmp_path: Path) -> None:
    """Otherwise every test above would hold for a data set that augments nothing."""
    assert differ(whole_run(tmp_path, augmentation="none")[0], uninterrupted[0])


def test_a_checkpoint_elsewhere_brings_its_average(uninterrupted, tmp_path: Path) -> None:
    """As when a run is continued in another folder."""
    first, second = tmp_path / "first", tmp_path / "second"
    with pytest.raises(StoppedError):
        make_trainer(first, callbacks=[StopAfter(MID_EPOCH + 1)]).train()
    trainer = make_trainer(second)
    trainer.train(resume_from_checkpoint=str(first / f"checkpoint-{MID_EPOCH}"))
    assert_same_run((weights(trainer.model), everything(second)), uninterrupted)


def test_the_best_models_average_is_what_is_kept(tmp_path: Path) -> None:
    """With load_best_model_at_end the model is the average that was best in evaluation, not the last one."""
    trainer = make_trainer(
        tmp_path,
        load_best_model_at_end=True,
        metric_for_best_model="eval_nll",
        greater_is_better=True,  # the worst, so that it is not the last
    )
    trainer.train()
    best = max(entry["eval_nll"] for entry in trainer.state.log_history if "eval_nll" in entry)
    assert trainer.state.best_global_step < LAST
    assert trainer.evaluate()["eval_nll"] == pytest.approx(best, rel=1e-6)
    kept = load_file(Path(trainer.state.best_model_checkpoint) / "ema.safetensors")
    assert_same_weights(weights(trainer.model), kept)


def test_an_average_that_the_checkpoint_lacks_begins_anew_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(tmp_path, ema=None, max_steps=3).train()
    trainer = make_trainer(tmp_path, ema=0.8, max_steps=6)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert "holds no ema.safetensors" in caplog.text
    assert (tmp_path / "checkpoint-6" / "ema.safetensors").is_file()

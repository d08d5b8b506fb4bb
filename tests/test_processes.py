"""Two processes come to what one comes to: the step, the log, the evaluation, the statistics, and a resumed run."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import VIT, assert_same_weights, tiny
from tests.pairs import ROOT, environment, finished, free_port, read, run_pair
from tests.process_run import STEPS, Masked, run

LOGGED = ("loss", "grad_norm", "hard_loss")
WITH_TEACHER = ("soft_loss", "target_entropy", "agreement")
SHARED = [name for name, settings in STEPS.items() if settings.get("average_tokens_across_devices", True)]
LOCAL = [name for name in STEPS if name not in SHARED]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two plain python processes found."""
    folder = tmp_path_factory.mktemp("pair")
    run_pair("tests.process_run", folder)
    return read(folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What this process finds by itself."""
    torch.set_num_threads(1)
    return run(tmp_path_factory.mktemp("alone"))


def test_two_processes_came_up(pair) -> None:
    assert [step["world"] for found in pair for step in found["steps"].values()] == [2] * 2 * len(STEPS)


def test_trap_09_parameters_are_equal_on_both_processes(pair) -> None:
    for name in STEPS:
        assert_same_weights(pair[0]["steps"][name]["weights"], pair[1]["steps"][name]["weights"])


@pytest.mark.parametrize("name", SHARED)
def test_trap_01_and_03_the_step_does_not_depend_on_the_number_of_processes(name: str, pair, alone) -> None:
    expected = alone["steps"][name]["weights"]
    for key, value in pair[0]["steps"][name]["weights"].items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SHARED)
def test_what_is_logged_does_not_depend_on_the_number_of_processes(name: str, pair, alone) -> None:
    for ours, expected in zip(pair[0]["steps"][name]["log"], alone["steps"][name]["log"], strict=True):
        for key in LOGGED + WITH_TEACHER * bool(STEPS[name].get("teacher")):
            assert ours[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-6), key


def test_local_items_are_the_mean_of_the_local_means(pair, alone) -> None:
    """With equal numbers of items on both processes that is the mean over all; the loss is not multiplied by their number."""
    expected = alone["steps"]["distilled"]
    for key, value in pair[0]["steps"]["local items"]["weights"].items():
        torch.testing.assert_close(value, expected["weights"][key], rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(pair[0]["steps"]["local items"]["log"], expected["log"], strict=True):
        for key in LOGGED + WITH_TEACHER:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-6), key


def test_local_items_weigh_processes_alike_and_shared_items_examples(pair) -> None:
    """The first window by hand, where masked examples leave the processes with unequal numbers of items."""
    data, masked = Masked(24), STEPS["masked"]["masked"]
    with torch.no_grad():
        logits = tiny(VIT, 1)(pixel_values=data.images[:16]).logits
    nll = F.cross_entropy(logits, data.labels[:16], reduction="none")
    items = [
        [i for i in range(16) if (i // 4) % 2 == rank and i not in masked] for rank in range(2)
    ]  # batches of 4, in turn
    by_process = float(sum(nll[part].mean() for part in items) / 2)
    by_example = float(nll[[*items[0], *items[1]]].mean())
    assert by_process != pytest.approx(by_example, rel=1e-3)
    for name, expected in (("masked, local items", by_process), ("masked, shared items", by_example)):
        first = pair[0]["steps"][name]["log"][0]
        assert first["hard_loss"] == pytest.approx(expected, rel=1e-5)
        assert first["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("examples", [21, 3])
def test_statistics_and_evaluation_count_each_example_once(examples: int, pair, alone) -> None:
    """21 examples in batches of 4 on two processes: three are padding. 3 examples: one process has nothing but padding."""
    expected = alone["readings"][examples]
    assert sorted(pair[0]["readings"][examples]["ids"] + pair[1]["readings"][examples]["ids"]) == list(range(examples))
    for found in (rank["readings"][examples] for rank in pair):
        assert int(found["statistics"]["count"].sum()) == examples
        assert torch.equal(found["statistics"]["count"], expected["statistics"]["count"])
        for key in ("mean", "within"):
            torch.testing.assert_close(
                found["statistics"][key],
                expected["statistics"][key],
                rtol=1e-5,
                atol=1e-6,
                equal_nan=True,
                check_dtype=False,
            )
        assert found["nll"] == pytest.approx(expected["nll"], rel=1e-5)
        assert found["loss"] == pytest.approx(
            expected["loss"], rel=1e-5
        )  # the stock loop weighs the padded tail as well
        torch.testing.assert_close(found["logits"], expected["logits"], rtol=1e-4, atol=1e-5)
        assert torch.equal(found["labels"], expected["labels"])


def test_the_processes_share_each_epoch_without_overlap(pair, alone) -> None:
    """44 examples, 22 a process; in the order of one process, dealt out batch by batch; another order in the next epoch."""
    for epoch, whole in enumerate(alone["shares"]):
        parts = [found["shares"][epoch] for found in pair]
        assert sorted(parts[0] + parts[1]) == sorted(whole) == list(range(44))
        assert [part[:2] for part in parts] == [whole[:2], whole[2:4]]
    assert alone["shares"][0] != alone["shares"][1]


def test_trap_19_a_run_on_two_processes_resumes_bit_equal(pair, alone) -> None:
    for found in (*pair, alone):
        assert_same_weights(found["resumed"]["whole"], found["resumed"]["resumed"])
    assert_same_weights(pair[0]["resumed"]["whole"], pair[1]["resumed"]["whole"])


@pytest.mark.slow
def test_accelerate_launch_comes_to_the_same(pair, tmp_path: Path) -> None:
    """`--multi_gpu` with ACCELERATE_USE_CPU is what starts two processes on a CPU; `--cpu` starts one and says nothing."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_machines",
        "1",
        "--num_processes",
        "2",
    ]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_ip", "127.0.0.1"]
    command += ["--main_process_port", str(free_port()), "-m", "tests.process_run", str(tmp_path)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    finished([process])
    for launched, plain in zip(read(tmp_path), pair, strict=True):
        for name in STEPS:
            assert launched["steps"][name]["world"] == 2
            assert_same_weights(launched["steps"][name]["weights"], plain["steps"][name]["weights"])

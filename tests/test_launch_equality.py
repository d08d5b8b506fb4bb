"""Two processes by `accelerate launch` make of a recipe what one process with the same global batch makes: on one machine, on two,
and with the student in two parts (FSDP2, which accelerate is talked into on a processor: see tests/launch_run.py).

The digits recipe with a LayerNorm model in place of its BatchNorm one (whose gradient depends on how a batch is cut: trap 30), and
the CLDR recipe, both cut short by `--set`, through `hf-lskd train` itself.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_lskd import diffusion_index
from hf_lskd.data.token_batches import TokenBatchSampler
from hf_lskd.recipe import recipe_from_dict
from hf_lskd.record import Cell, without_times
from hf_lskd.tasks import open_task
from tests.conftest import assert_same_weights
from tests.pairs import finished, free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "recipes" / "accelerate"
LAYER_NORM = "{img_size: 16, patch_size: 8, depth: 1, embed_dim: 32, num_heads: 2}"
CELLS = ("digits-teacher", "digits-T1", "digits-T2", "cldr-teacher", "cldr-T2")  # in the order of their training
STEPS = 4
PLACES = ("one machine", "two machines", "in parts")
EACH = [(where, name) for where in PLACES for name in CELLS if where != "in parts" or name.startswith("digits")]


def digits(folder: Path, processes: int, **more: Any) -> list[list[str]]:
    """A teacher and students at T = 1 and 2; 64 images a step."""
    settings = {
        **more,
        "teacher.model": "vit_tiny_patch16_224", "teacher.model_args": LAYER_NORM,
        "students.0.model": "vit_tiny_patch16_224", "students.0.model_args": LAYER_NORM,
        "training.per_device_train_batch_size": 64 // processes, "training.per_device_eval_batch_size": 64,
        "training.max_steps": STEPS, "training.logging_strategy": "steps", "training.logging_steps": 1,
        "training.eval_strategy": "steps", "training.eval_steps": 2,
    }  # fmt: skip
    teacher, *students = commands("digits", settings, folder, processes)
    return [
        teacher,
        [*students[0], "--temperature", "1"],
        [*students[0][:-1], str(folder / "digits-T2"), "--temperature", "2"],
    ]


def cldr(folder: Path, processes: int) -> list[list[str]]:
    """A teacher and a student at T = 2; two batches by tokens a step: one a process, or both accumulated by one."""
    settings = {
        "data.pairs": 400, "data.vocab_size": 300, "decoding.max_length": 6, "training.max_tokens": 140,
        "training.gradient_accumulation_steps": 2 // processes, "training.per_device_eval_batch_size": 50,
        "teacher.training.max_steps": STEPS, "students.0.training.max_steps": STEPS,
        "training.logging_steps": 1, "training.eval_steps": 2,
    }  # fmt: skip
    teacher, student = commands("cldr", settings, folder, processes)
    return [teacher, [*student[:-1], str(folder / "cldr-T2"), "--temperature", "2"]]


def commands(name: str, settings: dict[str, Any], folder: Path, processes: int) -> list[list[str]]:
    recipe = next((ROOT / "recipes" / "quickstart").glob(f"{name}*.yaml"))
    start = ["train", str(recipe), *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]
    start += ["--processes", str(processes), "--label-smoothing", "0.1"]
    teacher = str(folder / f"{name}-teacher")
    student = [*start, "--role", "student", "--teacher", teacher]
    return [[*start, "--output-dir", teacher], [*student, "--output-dir", str(folder / f"{name}-T1")]]


def started(folder: Path, processes: int, launcher: list[str], in_parts: bool = False) -> subprocess.Popen:
    plan = folder / "commands.json"
    contiguous = {"switches.channels_last": "false"} if in_parts else {}  # FSDP takes no other weights
    plan.write_text(
        json.dumps(digits(folder, processes, **contiguous) + cldr(folder, processes)[: 1 if in_parts else 2])
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE")}
    quiet = {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
    }
    quiet |= {"HF_LSKD_TEST_FSDP": "1"} if in_parts else {}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "tests.launch_run", str(plan), str(folder)],
        env={**clean, **quiet, "PYTHONPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def launched(folder: Path, where: str) -> list[dict[str, Any]]:
    """What both processes found, started by one `accelerate launch`, or by two that know each other by an address alone."""
    start = ["-m", "accelerate.commands.launch", "--config_file"]
    port = str(free_port())
    if where == "one machine":
        launchers = [[*start, str(CONFIGS / "cpu_2.yaml"), "--main_process_port", port]]
    elif where == "in parts":
        launchers = [[*start, str(CONFIGS / "fsdp.yaml"), "--num_processes", "2", "--main_process_port", port]]
    else:
        both = [*start, str(CONFIGS / "two_machines.yaml"), "--num_processes", "2", "--main_process_port", port]
        launchers = [[*both, "--machine_rank", rank] for rank in "01"]
    finished([started(folder, 2, launcher, where == "in parts") for launcher in launchers])
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def cells_of(where: str) -> tuple[str, ...]:
    return tuple(name for place, name in EACH if place == where)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[dict[str, Any]]]]:
    """Folder and findings of one process, and of two: on one machine, on two, and with the student in two parts (FSDP)."""
    alone = tmp_path_factory.mktemp("alone")
    finished([started(alone, 1, [])])
    found = {"alone": (alone, [torch.load(alone / "rank0.pt", weights_only=True)])}
    for where in PLACES:
        folder = tmp_path_factory.mktemp(where.replace(" ", "_"))
        found[where] = (folder, launched(folder, where))
    return found


def record(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name / "record.json").read_text())


@cache
def task_of(folder: Path, name: str) -> Any:
    return open_task(recipe_from_dict(record(folder, name)["recipe"]))


@pytest.mark.parametrize("where", PLACES)
def test_trap_27_two_processes_came_up_and_the_record_says_so(runs: Any, where: str) -> None:
    folder, pair = runs[where]
    refused = [2] if where == "in parts" else []  # Marian's tied embeddings
    assert [one["codes"] for one in pair] == [[0] * len(cells_of(where)) + refused] * 2
    assert runs["alone"][1][0]["codes"] == [0] * len(CELLS)
    assert [trained["world"] for one in pair for trained in one["trained"]] == [2] * 2 * len(cells_of(where))
    assert {record(folder, name)["hardware"]["world_size"] for name in cells_of(where)} == {2}
    assert record(runs["alone"][0], CELLS[0])["hardware"]["world_size"] == 1


def test_fsdp_leaves_each_process_a_part_of_the_student_and_saves_it_whole(runs: Any) -> None:
    folder, pair = runs["in parts"]
    for index, name in enumerate(cells_of("in parts")):
        trained = [one["trained"][index] for one in pair]
        saved = sum(value.numel() for value in load_file(folder / name / "model" / "model.safetensors").values())
        assert 0 < min(one["parts"] for one in trained) < saved
        assert sum(one["parts"] for one in trained) >= saved  # uneven rows are filled up
    assert [one["parts"] for one in runs["one machine"][1][0]["trained"]] == [0] * len(CELLS)


@pytest.mark.parametrize("where", PLACES)
def test_trap_09_parameters_are_bit_equal_on_both_processes(runs: Any, where: str) -> None:
    first, second = (one["trained"] for one in runs[where][1])
    for ours, theirs in zip(first, second, strict=True):
        assert_same_weights(ours["weights"], theirs["weights"])
        assert len(ours["gradients"]) == len(theirs["gradients"]) == STEPS
        for mine, other in zip(ours["gradients"], theirs["gradients"]):
            assert_same_weights(mine, other)


def test_both_ways_of_launching_come_to_the_same_bits(runs: Any) -> None:
    one, two = (runs[where][1][0]["trained"] for where in PLACES[:2])
    for ours, theirs in zip(one, two, strict=True):
        assert_same_weights(ours["weights"], theirs["weights"])


@pytest.mark.parametrize(("where", "name"), EACH)
def test_trap_03_each_steps_gradient_is_that_of_one_process_with_the_same_global_batch(
    runs: Any, where: str, name: str
) -> None:
    index = CELLS.index(name)
    ours, alone = (runs[which][1][0]["trained"][index] for which in (where, "alone"))
    for step, expected in enumerate(alone["gradients"]):
        found = ours["gradients"][step]
        assert found.keys() == expected.keys()
        off = sum(float((found[key] - value).square().sum()) for key, value in expected.items()) ** 0.5
        size = sum(float(value.square().sum()) for value in expected.values()) ** 0.5
        assert size > 1e-3
        assert off < 1e-5 * size, step  # float32 sums in another order; a batch cut otherwise is off by the order of 1
    for key, value in alone["weights"].items():
        torch.testing.assert_close(ours["weights"][key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("where", "name"), EACH)
def test_what_is_logged_and_measured_is_that_of_one_process(runs: Any, where: str, name: str) -> None:
    index = CELLS.index(name)
    ours, alone = (runs[which][1][0]["trained"][index]["log"] for which in (where, "alone"))
    assert len(ours) == len(alone) == STEPS + STEPS // 2
    for found, expected in zip(ours, alone):
        wanted = without_times(expected)
        assert without_times(found) == pytest.approx(wanted, rel=1e-4)
    measured, by_one = (record(runs[which][0], name) for which in (where, "alone"))
    for key in ("nll", "ece", "top1", "top5", "token_accuracy", "agreement"):
        if key in by_one["metrics"]:
            assert measured["metrics"][key] == pytest.approx(by_one["metrics"][key], rel=1e-3), key
    for key in ("target_gradient", "target_entropy", "kd_loss_scale_value"):
        assert measured[key] == (None if by_one[key] is None else pytest.approx(by_one[key], rel=1e-5)), key


@pytest.mark.parametrize(("where", "name"), EACH)
def test_evaluation_counts_each_example_once_and_in_order(runs: Any, where: str, name: str) -> None:
    folder, (first, _) = runs[where]
    task, kept = task_of(folder, name), load_file(folder / name / "predictions.safetensors")
    if name.startswith("digits"):
        labels = torch.as_tensor(task.source.validation.labels)
        assert len(labels) % 2 == 1  # two processes cannot share them evenly
        assert torch.equal(kept["label"], labels)
        last = [entry for entry in first["trained"][CELLS.index(name)]["log"] if "eval_loss" in entry][-1]
        assert last["eval_top1"] == pytest.approx(record(folder, name)["metrics"]["top1"], abs=1e-9)
        assert last["eval_nll"] == pytest.approx(record(folder, name)["metrics"]["nll"], rel=1e-5)
    else:
        rows = task.rows["validation"].rows
        assert torch.equal(kept["label"], torch.tensor([token for _, target in rows for token in target]))
        lines = [json.loads(line) for line in (folder / name / "translations.jsonl").read_text().splitlines()]
        assert [line["source"] for line in lines] == list(task.source.held_out.sources)
    statistics = load_file(folder / name / "statistics.safetensors")
    for split in ("train", "validation"):
        assert torch.equal(statistics[f"{split}.count"], alone_again(folder, name)[f"{split}.count"])


@cache
def alone_again(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The saved model's statistics, taken once more by this process alone."""
    torch.set_num_threads(1)
    task, cell = task_of(folder, name), Cell.of(record(folder, name))
    found: dict[str, torch.Tensor] = {}
    for split in ("train", "validation"):
        reading = task.read_split(task.reader(cell, folder / name / "model"), task.spec(cell), split)
        found |= reading.statistics.to_tensors(f"{split}.")
    return found


@pytest.mark.parametrize(("where", "name"), EACH)
def test_the_statistics_of_one_model_do_not_depend_on_who_takes_them(runs: Any, where: str, name: str) -> None:
    """Batches are the same, so only the order of float64 sums differs; where translations' last batch is filled up on two
    processes, its padding is wider and float32 rounds otherwise."""
    folder, _ = runs[where]
    kept, again = load_file(folder / name / "statistics.safetensors"), alone_again(folder, name)
    assert kept.keys() == again.keys()
    for key, value in again.items():
        filled_up = name.startswith("cldr") and key.startswith("train.")
        torch.testing.assert_close(
            kept[key], value, rtol=1e-10, atol=1e-6 if filled_up else 1e-10 * float(value.nan_to_num().abs().max()),
            equal_nan=True,
        )  # fmt: skip


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_eta_of_two_processes_is_eta_of_one(runs: Any, where: str, split: str) -> None:
    folder, _ = runs[where]
    ours = [load_file(folder / name / "statistics.safetensors")[f"{split}.mean"] for name in CELLS[1:3]]
    alone = [alone_again(folder, name)[f"{split}.mean"] for name in CELLS[1:3]]
    for target in range(10):
        similar, dissimilar = [(target + i) % 10 for i in (1, 2, 3)], [(target + i) % 10 for i in (4, 5, 6, 7)]
        found, expected = (diffusion_index(*means, target, similar, dissimilar) for means in (ours, alone))
        assert found.similar == pytest.approx(expected.similar, abs=1e-10)
        assert found.dissimilar == pytest.approx(expected.dissimilar, abs=1e-10)
        assert abs(expected.similar) > 1e-6  # the two students differ


@pytest.mark.parametrize("where", PLACES)
def test_each_cell_is_written_once_by_the_first_process_alone(runs: Any, where: str) -> None:
    folder, (first, second) = runs[where]
    assert second["moved"] == []
    assert [Path(path).name for path in first["moved"] if Path(path).parent == folder] == list(cells_of(where))
    assert sum(path.endswith("record.json") for path in first["moved"]) == len(cells_of(where))
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        *cells_of(where)
    }  # nothing half-made or refused


def test_the_batches_by_tokens_are_the_same_on_one_process_and_on_two(runs: Any) -> None:
    """What the comparison of CLDR rests on: an even number of batches, which two processes need not cut otherwise."""
    lengths = task_of(runs["alone"][0], "cldr-teacher").rows["train"].lengths
    one, two = (list(TokenBatchSampler(lengths, 140, multiple=multiple)) for multiple in (1, 2))
    assert one == two
    assert len(one) > 2 * STEPS

"""What a study's records and signatures hold, and g(T) of its teachers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_lskd.analysis.gradient import target_gradient
from hf_lskd.recipe import recipe_from_dict
from hf_lskd.record import Cell, file_sha256
from hf_lskd.study import runner
from hf_lskd.study.bench import cell_signature, open_bench
from hf_lskd.study.grid import cells
from hf_lskd.trainer import DistillationTrainer
from tests.study.files import Study, predictions, record, table, weights
from tests.tiny_study import bytes_of, changed

# ---- Records


def test_trap_23_a_record_holds_all_that_made_the_numbers(done: Path, recipe: dict) -> None:
    page = record(done, "student-a0.1-T2-s0")
    assert recipe_from_dict(page["recipe"]) == recipe_from_dict(recipe)
    assert page["recipe"]["training"]["per_device_train_batch_size"] == 16
    assert (page["seed"], page["status"], page["error"]) == (0, "complete", None)
    assert set(page["metrics"]) == {"top1", "top5", "ece", "nll", "train_top1", "agreement"}
    points = [point for point in page["curve"] if point["split"] == "validation"]
    assert page["best"]["top1"] == max(point["top1"] for point in points)
    assert page["best"]["epoch"] == next(p["epoch"] for p in points if p["top1"] == page["best"]["top1"])
    assert page["metrics"]["top1"] == pytest.approx(points[-1]["top1"])  # the last epoch, beside the best
    assert page["metrics"]["nll"] == pytest.approx(points[-1]["nll"], rel=1e-5)
    trained = [point for point in page["curve"] if point["split"] == "train"]
    assert {"loss", "learning_rate", "soft_loss", "hard_loss", "agreement", "target_entropy"} <= set(trained[-1])
    assert {"python", "hf_lskd", "torch", "transformers", "timm", "numpy"} <= set(page["versions"])
    agree = [p["prediction"] for p in (predictions(done, "student-a0.1-T2-s0"), predictions(done, "teacher-a0.1-s0"))]
    assert page["metrics"]["agreement"] == pytest.approx(float((agree[0] == agree[1]).float().mean()))
    assert {"cpu", "gpu", "threads", "world_size"} == set(page["hardware"])
    assert 0 < page["durations"]["train"] < page["durations"]["total"]
    assert 10 < page["peak_memory_mb"] < 100_000
    teacher = done / "cells" / "teacher-a0.1-s0" / "record.json"
    assert page["teacher"] == {"name": "teacher-a0.1-s0", "record_sha256": file_sha256(teacher)}
    json.dumps(page, allow_nan=False)


@pytest.mark.parametrize(
    ("path", "value", "changes"),
    [
        ("data.max_train", 90, True),
        ("data.augmentation", "standard", True),
        ("data.image_size", 32, True),
        ("training.learning_rate", 0.2, True),
        ("training.bf16", True, True),
        ("students.0.model_args.depth", 2, True),
        ("students.0.training", {"weight_decay": 0.1}, True),
        ("teacher.training", {"weight_decay": 0.1}, True),
        ("teacher.model_args.depth", 2, True),
        ("switches.ema", 0.9, True),
        ("name", "other", False),
        ("grid.temperature", [2, 5], False),
        ("grid.seed", [0, 1], False),
        ("eta.dissimilar", 2, False),
        ("projection", None, False),
        ("students.0.paper", "cub200_resnet50_resnet18", False),
    ],
)
def test_a_signature_changes_with_what_can_change_the_numbers_and_with_nothing_else(
    recipe: dict, path: str, value: Any, changes: bool
) -> None:
    cell = Cell("student", 0.1, 0, "student", 2.0, 1.0, 1.0, True, 0.0, None)

    def signature(of: dict[str, Any]) -> str:
        return cell_signature(open_bench(recipe_from_dict(of)), cell)

    assert (signature(changed(recipe, path, value)) != signature(recipe)) is changes


def test_signatures_differ_from_cell_to_cell_and_with_a_model_files_content(
    done: Path, recipe: dict, tmp_path: Path
) -> None:
    grown = changed(changed(recipe, "grid.seed", [0, 1]), "grid.kd_loss_scale", [1, "equalised"])
    bench = open_bench(recipe_from_dict(grown))
    signatures = [cell_signature(bench, cell) for cell in cells(bench.recipe)]
    assert len(set(signatures)) == len(signatures) == 20
    for copy in ("one", "two"):
        shutil.copytree(done / "cells/teacher-a0-s0/model", tmp_path / copy)
    cell = Cell("teacher", 0.0, 0)

    def of(folder: str) -> str:
        start = changed(recipe, "teacher", {"model": str(tmp_path / folder), "pretrained": True})
        return cell_signature(open_bench(recipe_from_dict(start)), cell)

    assert of("one") == of("two")  # where the file lies says nothing
    file = tmp_path / "two" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    assert of("one") != of("two")


def test_trap_31_label_smoothing_is_the_teachers_and_the_students_own_has_its_own_name(
    quick: dict, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: dict[str, float] = {}
    original = DistillationTrainer.train

    def note(self: Any, *args: Any, **kwargs: Any) -> Any:
        reached[Path(self.args.output_dir).parent.name.strip(".").removesuffix(".partial")] = (
            self.args.label_smoothing_factor
        )
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "train", note)
    grid = {"label_smoothing": [0.1], "temperature": [2], "kd_weight": [0.5], "student_label_smoothing": [0.0, 0.3]}
    assert study(changed(quick, "grid", grid)) == 0
    plain, own = "student-a0.1-T2-w0.5-s0", "student-a0.1-T2-w0.5-own0.3-s0"
    assert reached == {"teacher-a0.1-s0": 0.1, plain: 0.0, own: 0.3}
    rows = {row["name"]: row for row in table(tmp_path / "run" / "results.csv")}
    assert {name: (row["label_smoothing"], row["student_label_smoothing"]) for name, row in rows.items()} == {
        "teacher-a0.1-s0": ("0.1", ""),
        plain: ("0.1", "0.0"),
        own: ("0.1", "0.3"),
    }
    assert record(tmp_path / "run", own)["label_smoothing"] == 0.1
    assert record(tmp_path / "run", own)["student_label_smoothing"] == 0.3
    one, other = weights(tmp_path / "run", plain), weights(tmp_path / "run", own)
    assert any(not torch.equal(weight, other[key]) for key, weight in one.items())


# ---- g(T)


def teacher_logits(recipe: dict, folder: Path, name: str) -> torch.Tensor:
    """The saved teacher's logits over the training images, by a plain loop over the data set."""
    from transformers import AutoModelForImageClassification

    bench = open_bench(recipe_from_dict(recipe))
    model = AutoModelForImageClassification.from_pretrained(folder / "cells" / name / "model").eval()
    images = bench.task.dataset(bench.recipe.teacher, "train", train=False)
    with torch.no_grad():
        return torch.cat([model(images[i]["pixel_values"][None]).logits for i in range(len(images))])


def test_equalised_loss_scale_is_one_over_g_of_that_teacher_recorded_and_used(
    quick: dict, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: dict[str, float] = {}
    original = DistillationTrainer.train

    def note(self: Any, *args: Any, **kwargs: Any) -> Any:
        used[Path(self.args.output_dir).parent.name.strip(".").removesuffix(".partial")] = self.args.kd_loss_scale
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "train", note)
    recipe = changed(quick, "grid.kd_loss_scale", ["equalised"])
    assert study(recipe) == 0
    folder = tmp_path / "run"
    for alpha in ("0", "0.1"):
        logits = teacher_logits(recipe, folder, f"teacher-a{alpha}-s0")
        for temperature in (1, 2):
            name = f"student-a{alpha}-T{temperature}-xequalised-s0"
            page = record(folder, name)
            assert page["target_gradient"] == pytest.approx(target_gradient(logits, temperature), rel=1e-5)
            assert page["kd_loss_scale"] == "equalised"
            assert page["kd_loss_scale_value"] == 1 / page["target_gradient"] == used[name]
    rows = {row["name"]: row for row in table(folder / "results.csv")}
    assert rows["student-a0.1-T2-xequalised-s0"]["kd_loss_scale"] == "equalised"
    assert float(rows["student-a0.1-T2-xequalised-s0"]["kd_loss_scale_value"]) == pytest.approx(
        used["student-a0.1-T2-xequalised-s0"], rel=1e-6
    )


def test_g_of_a_temperature_added_later_is_that_of_a_study_that_had_it_from_the_start(
    copy: Path, quick: dict, study: Study, tmp_path: Path
) -> None:
    grown = changed(changed(quick, "grid.temperature", [2, 7]), "grid.kd_loss_scale", ["equalised"])
    assert study(grown, folder=copy) == 0
    assert study(grown, folder=tmp_path / "from_the_start") == 0
    assert bytes_of(copy, "results.csv") == bytes_of(tmp_path / "from_the_start", "results.csv")


def test_cells_of_different_precision_share_a_process(quick: dict, study: Study, tmp_path: Path) -> None:
    """accelerate keeps one precision a process: after a teacher in bf16 (here read for its g) a student would be in bf16 too."""
    recipe = changed(changed(quick, "teacher.training", {"bf16": True, "use_cpu": True}), "grid.label_smoothing", [0.1])
    assert study(changed(recipe, "grid.temperature", [1])) == 0
    both = changed(recipe, "grid.temperature", [1, 3])
    assert study(both) == 0
    assert study(both, folder=tmp_path / "from_the_start") == 0
    for name in ("student-a0.1-T1-s0", "student-a0.1-T3-s0"):
        other = weights(tmp_path / "from_the_start", name)
        assert all(torch.equal(weight, other[key]) for key, weight in weights(tmp_path / "run", name).items()), name


def test_seeds_give_a_chance_level_and_their_spread(
    quick: dict, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recipe = changed(quick, "grid.label_smoothing", [0.1])
    assert study(recipe, "--seeds", "2") == 0
    assert " sd" in capsys.readouterr().out.splitlines()[1]
    chance = table(tmp_path / "run" / "eta_chance.csv")
    assert len(chance) == 2 * 2 * 2 * 6  # orders of the two seeds, temperatures, splits, targets
    assert {row["seed"] for row in chance} == {"0|1", "1|0"}
    assert all(row["T1"] == row["T2"] for row in chance)
    one, other = (record(tmp_path / "run", f"teacher-a0.1-s{seed}")["metrics"]["nll"] for seed in (0, 1))
    assert one != other


def test_a_projection_asked_for_by_name_replaces_the_recipes(copy: Path) -> None:
    runner.retabulate(copy, "projection", ["o", "ò", "a"])
    page = json.loads((copy / "projections.json").read_text())
    assert [entry["name"] for entry in page["classes"]] == ["o", "ò", "a"]

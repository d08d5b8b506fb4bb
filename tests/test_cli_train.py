"""`hf-lskd train` as its user meets it: any training argument, a student's teacher, what is refused and what is left alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hf_lskd.cli import main
from tests.command import Capture, refused
from tests.tiny_study import changed, dump, finished_study, values, write_images


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One teacher, two students."""
    images = write_images(tmp_path_factory.mktemp("images"))
    return changed(changed(values(images), "grid.label_smoothing", [0.1]), "projection", None)


@pytest.fixture(scope="module")
def done(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_study(recipe, tmp_path_factory.mktemp("study"))


@pytest.fixture
def page(recipe: dict[str, Any], tmp_path: Path) -> Path:
    return dump(recipe, tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label-smoothing", "1"], "label"),
        (["--label-smoothing", "-0.1"], "label"),
        (["--label-smoothing", "nan"], "label"),
        (["--seed", "-1"], "--seed -1"),
        (["--temperature", "2"], "--temperature for a teacher"),
        (["--learning_rate", "fast"], "learning_rate"),
        (["--max_steps"], "max_steps"),
        (["--label_smoothing_factor", "0.1"], "label_smoothing_factor"),
        (["--bf16", "--fp16"], "bf16"),
        (["stray"], "argument stray"),
        (["--role", "student"], "without --teacher"),
        (["--role", "student", "--teacher", "nowhere"], "no finished teacher"),
    ],
)
def test_train_refuses_what_does_not_fit(
    capsys: Capture, page: Path, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = page.resolve()
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, "train", str(page), *words)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temperature", "0"], "temperature"),
        (["--temperature", "inf"], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--kd-weight", "1.5"], "weight"),
        (["--kd-loss-scale", "equalized"], "equalised"),
        (["--kd-loss-scale", "-1"], "scale"),
        (["--kd-top-k", "0"], "0"),
        (["--kd-top-k", "all"], "none"),
        (["--student-label-smoothing", "1"], "smoothing"),
        (["--student", "studnet"], "'student'"),
        (["--label-smoothing", "0.2"], "teacher of label smoothing 0.1"),
    ],
)
def test_a_student_refuses_what_does_not_fit(
    capsys: Capture, page: Path, done: Path, words: list[str], message: str
) -> None:
    teacher = str(done / "cells" / "teacher-a0.1-s0")
    assert message in refused(capsys, "train", str(page), "--role", "student", "--teacher", teacher, *words)


def test_train_takes_any_training_argument(capsys: Capture, page: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cell"
    argv = ["train", str(page), "--output-dir", str(folder), "--learning_rate", "1e-3", "--max_steps=2", "--bf16"]
    argv += ["--use-cpu", "--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", "{min_lr_rate: 0.1}"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    record = json.loads((folder / "record.json").read_text())
    assert out.startswith(f"{record['name']}: top1 ")
    own = record["recipe"]["teacher"]["training"]
    assert (own["learning_rate"], own["max_steps"], own["bf16"], own["use_cpu"]) == (0.001, 2, True, True)
    assert own["lr_scheduler_kwargs"] == {"min_lr_rate": 0.1}
    assert record["curve"][-1]["step"] == 2
    assert main(argv) == 0  # it is there
    assert "holds another cell" in refused(capsys, *argv[:-4])


def test_a_student_takes_its_teachers_smoothing_and_records_its_teacher(page: Path, done: Path, tmp_path: Path) -> None:
    teacher = done / "cells" / "teacher-a0.1-s0"
    argv = ["train", str(page), "--role", "student", "--teacher", str(teacher / "model"), "--seed", "7"]
    assert main([*argv, "--temperature", "3", "--kd-weight", "0.5", "--output-dir", str(tmp_path / "cell")]) == 0
    record = json.loads((tmp_path / "cell" / "record.json").read_text())
    assert (record["label_smoothing"], record["temperature"], record["kd_weight"]) == (0.1, 3.0, 0.5)
    assert record["teacher"]["name"] == "teacher-a0.1-s0"
    assert record["seed"] == 7
    assert record["target_gradient"] > 0


def test_train_leaves_a_foreign_folder_alone(capsys: Capture, page: Path, tmp_path: Path) -> None:
    (tmp_path / "cell").mkdir()
    (tmp_path / "cell" / "thesis.tex").write_text("precious")
    assert "holds no cell" in refused(capsys, "train", str(page), "--output-dir", str(tmp_path / "cell"))
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(capsys, "train", str(page), "--output-dir", str(tmp_path / "file" / "cell"))


def test_a_teacher_whose_file_was_cut_is_refused(capsys: Capture, page: Path, done: Path, tmp_path: Path) -> None:
    teacher = shutil.copytree(done / "cells" / "teacher-a0.1-s0", tmp_path / "teacher")
    file = teacher / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    argv = ["train", str(page), "--role", "student", "--teacher", str(teacher), "--output-dir", str(tmp_path / "cell")]
    assert "cannot be loaded" in refused(capsys, *argv)

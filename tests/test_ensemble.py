"""Several teachers at once: the equation, and a recipe whose students learn from an ensemble."""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_lskd import DistillationArguments, DistillationTrainer, InputError, target_gradient
from hf_lskd.cli import main
from hf_lskd.losses import distillation_kl
from hf_lskd.models import load_trained
from hf_lskd.recipe import parse_recipe, recipe_from_dict
from hf_lskd.record import Cell
from hf_lskd.study.bench import cell_signature, open_bench
from hf_lskd.study.grid import cells, row_of, rows_of, teachers_of
from hf_lskd.study.runner import run_study
from hf_lskd.tasks import open_task
from hf_lskd.teacher import ensemble_logits
from tests.conftest import RESNET, VIT, Examples, tiny
from tests.reference import slow_ensemble, slow_kl, slow_target_entropy, slow_target_gradient
from tests.test_translation import SHAPE, pairs, recipe_of
from tests.tiny_study import changed, dump, finished_study, values, write_images

SEEDS = (0, 1, 5)
TRAINED = [f"teacher-a0.1-s{seed}" for seed in SEEDS]


def spread(seed: int) -> torch.Tensor:
    return 4 * torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- The equation


@pytest.mark.parametrize("of", ["probabilities", "logits"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 64.0])
def test_an_ensembles_targets_are_the_reference_equations(of: str, temperature: float) -> None:
    outputs = spread(0)
    logits = ensemble_logits(list(outputs), temperature, of)
    expected = [slow_ensemble(item, temperature, of) for item in outputs.transpose(0, 1).tolist()]
    assert logits.dtype is torch.float64
    torch.testing.assert_close(
        (logits / temperature).softmax(-1), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14
    )
    student = spread(1)[0]
    by_reference = slow_kl(
        student.tolist(), [[temperature * math.log(p) for p in row] for row in expected], temperature
    )
    assert float(distillation_kl(student, logits, temperature)) == pytest.approx(by_reference, rel=1e-10)


def test_the_two_kinds_of_ensemble_differ_and_agree_where_members_do() -> None:
    outputs = list(spread(0))
    apart = (ensemble_logits(outputs, 2.0, of).div(2).softmax(-1) for of in ("probabilities", "logits"))
    assert (next(apart) - next(apart)).abs().max() > 0.01
    for of in ("probabilities", "logits"):
        same = ensemble_logits([outputs[0]] * 3, 2.0, of)
        torch.testing.assert_close(same.div(2).softmax(-1), outputs[0].div(2).softmax(-1), rtol=1e-12, atol=1e-14)
        assert ensemble_logits(outputs[:1], 2.0, of) is outputs[0]


def test_half_precision_outputs_are_averaged_in_float32() -> None:
    outputs = [z.to(torch.bfloat16) for z in spread(0)]
    for of in ("probabilities", "logits"):
        assert ensemble_logits(outputs, 2.0, of).dtype is torch.float32
        torch.testing.assert_close(
            ensemble_logits(outputs, 2.0, of), ensemble_logits([z.float() for z in outputs], 2.0, of)
        )


@pytest.mark.parametrize("of", ["probabilities", "logits"])
def test_a_trainer_takes_the_kind_of_ensemble_from_its_arguments_at_each_step(of: str, tmp_path: Path) -> None:
    other = {"probabilities": "logits", "logits": "probabilities"}[of]
    args = DistillationArguments(
        str(tmp_path), kd_temperature=2.0, kd_ensemble_of=other, report_to="none", max_steps=1, use_cpu=True
    )
    data, members = Examples(8), [louder(tiny(RESNET, 2)), louder(tiny(VIT, 3))]
    trainer = DistillationTrainer(tiny(seed=1), args, train_dataset=data, teacher_model=members)
    args.kd_ensemble_of = of
    batch = {"pixel_values": data.images, "labels": data.labels}
    loss = float(trainer.compute_loss(trainer.model.eval(), batch).detach())
    with torch.no_grad():
        said = [model.eval().double()(pixel_values=data.images.double()).logits for model in (trainer.model, *members)]
    targets = [slow_ensemble(item, 2.0, of) for item in torch.stack(said[1:], 1).tolist()]
    expected = slow_kl(said[0].tolist(), [[2 * math.log(p) for p in row] for row in targets], 2.0)
    assert loss == pytest.approx(expected, rel=1e-4)


def louder(model: Any) -> Any:
    """A model whose logits are large enough to tell one mean from another."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.mul_(8)
    return model


def test_an_unknown_kind_of_ensemble_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"kd_ensemble_of = 'logit'.*probabilities, logits"):
        DistillationArguments(str(tmp_path), kd_ensemble_of="logit")


# ---- A recipe


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One α, three teachers, two temperatures, two students' seeds, of which only one is a teacher's too."""
    made = values(write_images(tmp_path_factory.mktemp("images"), train=48, validation=24))
    for path, value in {
        "teacher.ensemble": list(SEEDS),
        "grid": {"label_smoothing": [0.1], "temperature": [1, 2], "seed": [0, 3], "kd_loss_scale": ["equalised"]},
        "projection": None,
        "training.learning_rate": 0.05,
    }.items():
        made = changed(made, path, value)
    return made


@pytest.fixture(scope="module")
def done(page: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_study(page, tmp_path_factory.mktemp("ensemble"))


def record(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "cells" / name / "record.json").read_text())


def test_each_teacher_of_an_ensemble_is_one_cell_before_all_of_its_students(page: dict[str, Any]) -> None:
    recipe = recipe_from_dict(changed(page, "grid.label_smoothing", [0.0, 0.1]))
    found = cells(recipe)
    assert len(found) == len(set(found)) == 2 * len(SEEDS) + 2 * 2 * 2
    for cell in found:
        taught_by = teachers_of(recipe, cell)
        if cell.role == "student":
            assert taught_by == tuple(Cell("teacher", cell.label_smoothing, seed) for seed in SEEDS)
            assert all(found.index(teacher) < found.index(cell) for teacher in taught_by)
        else:
            assert taught_by == ()
        assert row_of(recipe, cell) == Cell("teacher", cell.label_smoothing, 0)
    assert rows_of(recipe) == [Cell("teacher", 0.0, 0), Cell("teacher", 0.1, 0)]


def test_without_an_ensemble_each_student_has_the_teacher_of_its_own_seed(page: dict[str, Any]) -> None:
    recipe = recipe_from_dict(changed(page, "teacher.ensemble", None))
    students = [cell for cell in cells(recipe) if cell.role == "student"]
    assert [teachers_of(recipe, cell) for cell in students] == [(cell.teacher,) for cell in students]
    assert rows_of(recipe) == [Cell("teacher", 0.1, 0), Cell("teacher", 0.1, 3)]


def test_a_recipe_with_an_ensemble_reads_back_and_says_nothing_of_one_where_there_is_none(page: dict[str, Any]) -> None:
    recipe = recipe_from_dict(changed(page, "teacher.ensemble_of", "logits"))
    assert (recipe.teacher.ensemble, recipe.teacher.ensemble_of) == (SEEDS, "logits")
    assert parse_recipe(recipe.to_yaml()) == recipe == recipe_from_dict(json.loads(json.dumps(recipe.to_dict())))
    plain = recipe_from_dict(changed(page, "teacher.ensemble", None)).to_dict()["teacher"]
    assert not {"ensemble", "ensemble_of"} & plain.keys()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("teacher.ensemble", [], r"teacher\.ensemble: received an empty list.*at least one value"),
        ("teacher.ensemble", [1, 1], r"teacher\.ensemble.*1 twice.*each value once"),
        ("teacher.ensemble", ["best"], r"teacher\.ensemble.*'best'.*whole number"),
        ("teacher.ensemble_of", "mean", r"teacher\.ensemble_of.*'mean'.*probabilities \| logits"),
        ("teacher.path", "runs/t", r"teacher\.ensemble: received an ensemble beside path.*--teacher A B"),
        ("training.kd_ensemble_of", "logits", r"kd_ensemble_of.*Use teacher\.ensemble_of"),
    ],
)
def test_an_ensemble_that_cannot_be_is_refused_by_name(
    page: dict[str, Any], path: str, value: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        recipe_from_dict(changed(page, path, value))
    assert str(caught.value).count("received") == 1


def test_a_dry_run_gives_each_student_all_teachers(
    page: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["study", str(dump(page, tmp_path / "r.yaml")), "--output-dir", "runs/e", "--dry-run"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["teacher"] * 3 + ["student"] * 4
    wanted = " ".join(f"runs/e/cells/{name}" for name in TRAINED)
    assert all(f"--teacher {wanted} --" in line[-1] for line in lines[3:])


def teachers_say(page: dict[str, Any], folder: Path, split: str) -> torch.Tensor:
    """`[3, N, C]` logits of the three saved teachers, in float64."""
    task = open_task(recipe_from_dict(page))
    rows = task.judged(task.spec(Cell("teacher", 0.1, 0)), split).dataset
    images = torch.stack([torch.as_tensor(rows[i]["pixel_values"]) for i in range(len(rows))])
    with torch.no_grad():
        models = [load_trained(str(folder / "cells" / name / "model")).eval() for name in TRAINED]
        return torch.stack([model(pixel_values=images).logits.double() for model in models])


def test_g_entropy_and_agreement_are_those_of_the_ensembles_targets(page: dict[str, Any], done: Path) -> None:
    on_train, held_out = (teachers_say(page, done, split) for split in ("train", "validation"))
    said = [slow_ensemble(item, 1.0, "probabilities") for item in held_out.transpose(0, 1).tolist()]
    top = torch.tensor(said).argmax(-1)
    for temperature in (1, 2):
        targets = [slow_ensemble(item, temperature, "probabilities") for item in on_train.transpose(0, 1).tolist()]
        logits = [[temperature * math.log(p) for p in row] for row in targets]
        for seed in (0, 3):
            found = record(done, f"student-a0.1-T{temperature}-xequalised-s{seed}")
            assert found["target_gradient"] == pytest.approx(slow_target_gradient(logits, temperature), rel=1e-5)
            assert found["target_entropy"] == pytest.approx(slow_target_entropy(logits, temperature), rel=1e-5)
            assert found["kd_loss_scale_value"] == 1 / found["target_gradient"]
            mine = load_file(done / "cells" / found["name"] / "predictions.safetensors")
            assert found["metrics"]["agreement"] == pytest.approx(float((mine["prediction"] == top).double().mean()))
            right = 100 * float((mine["label"] == top).double().mean())
            assert found["teacher"]["metrics"]["top1"] == pytest.approx(right)


def test_a_students_record_names_every_teacher_and_its_signature_hashes_them_all(
    page: dict[str, Any], done: Path
) -> None:
    cell = Cell("student", 0.1, 3, "student", 2.0, 1.0, "equalised", True, 0.0)
    found = record(done, cell.name)
    assert [member["name"] for member in found["teacher"]["members"]] == TRAINED
    assert found["teacher"]["of"] == "probabilities"
    assert found["recipe"]["teacher"]["ensemble"] == list(SEEDS)
    signatures = [record(done, name)["signature"] for name in TRAINED]
    bench = open_bench(recipe_from_dict(page))
    assert found["signature"] == cell_signature(bench, cell) == cell_signature(bench, cell, signatures)
    others = [[*signatures[:i], "0" * 64, *signatures[i + 1 :]] for i in range(3)]
    others += [signatures[:2], signatures[:1], []]
    logits = open_bench(recipe_from_dict(changed(page, "teacher.ensemble_of", "logits")))
    made = {cell_signature(bench, cell, one) for one in others[:-1]} | {cell_signature(logits, cell)}
    assert len(made) == len(others)
    assert found["signature"] not in made


def test_a_student_run_alone_with_all_teachers_is_the_studys(page: dict[str, Any], done: Path, tmp_path: Path) -> None:
    name = "student-a0.1-T2-xequalised-s3"
    command = ["train", str(dump(page, tmp_path / "r.yaml")), "--role", "student", "--temperature", "2", "--seed", "3"]
    taught_by = [str(done / "cells" / teacher) for teacher in TRAINED]
    assert main([*command, "--teacher", *taught_by, "--output-dir", str(tmp_path / "all")]) == 0
    assert main([*command, "--teacher", *taught_by[:2], "--output-dir", str(tmp_path / "two")]) == 0
    inside, all_three, two = (
        load_file(folder / "model" / "model.safetensors")
        for folder in (done / "cells" / name, tmp_path / "all", tmp_path / "two")
    )
    assert all(torch.equal(weight, all_three[key]) for key, weight in inside.items())
    assert any(not torch.equal(weight, two[key]) for key, weight in inside.items())
    alone = json.loads((tmp_path / "all" / "record.json").read_text())
    for key in ("signature", "metrics", "target_gradient", "target_entropy", "teacher"):
        assert alone[key] == record(done, name)[key], key


def test_a_student_is_trained_by_every_teacher_and_by_the_recipes_kind_of_ensemble(
    page: dict[str, Any], done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = DistillationTrainer.__init__

    def note(self: Any, model: Any, args: Any, *rest: Any, teacher_model: Any = None, **kwargs: Any) -> None:
        seen.append((teacher_model, args.kd_ensemble_of))
        original(self, model, args, *rest, teacher_model=teacher_model, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "__init__", note)
    command = [
        "train",
        str(dump(page, tmp_path / "r.yaml")),
        "--set",
        "teacher.ensemble_of=logits",
        "--role",
        "student",
    ]
    taught_by = [str(done / "cells" / teacher) for teacher in TRAINED]
    assert main([*command, "--teacher", *taught_by, "--output-dir", str(tmp_path / "student")]) == 0
    models = [f"{folder}/model" for folder in taught_by]
    assert [one for one in seen if one[0] is not None] == [(models, "logits")]


def test_teachers_that_do_not_belong_together_are_refused(
    page: dict[str, Any], done: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = str(dump(page, tmp_path / "r.yaml"))
    one = str(done / "cells" / TRAINED[0])
    other = tmp_path / "other"
    assert main(["train", path, "--label-smoothing", "0.3", "--output-dir", str(other)]) == 0
    student = ["train", path, "--role", "student", "--output-dir", str(tmp_path / "student"), "--teacher"]
    assert main([*student, one, str(other)]) == 2
    assert "label smoothing 0.1 with a teacher of label smoothing 0.3" in capsys.readouterr().err
    assert main([*student, one, f"{one}/model"]) == 2
    assert "Allowed: each teacher once" in capsys.readouterr().err
    assert not (tmp_path / "student").exists()


def test_tables_and_page_know_of_the_ensemble_and_a_second_run_changes_nothing(
    page: dict[str, Any], done: Path, tmp_path: Path
) -> None:
    with (done / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["role"] for row in rows] == ["teacher"] * 3 + ["student"] * 4
    text = re.sub(r"\s+", " ", (done / "report.html").read_text().replace("\u00a0", " "))
    assert (
        "Each student learns from 3 teachers of its α together, from the mean of their tempered probabilities" in text
    )
    top1 = record(done, "student-a0.1-T1-xequalised-s0")["teacher"]["metrics"]["top1"]
    assert f"Together: top-1 {top1:.1f} % with α = 0.1." in text
    before = {path: path.stat().st_mtime_ns for path in (done / "cells").rglob("*") if path.is_file()}
    assert main(["study", str(dump(page, tmp_path / "r.yaml")), "--output-dir", str(done)]) == 0
    assert {path: path.stat().st_mtime_ns for path in (done / "cells").rglob("*") if path.is_file()} == before


# ---- Translation


def translating(text: Path, more: str = "") -> dict[str, Any]:
    for name, count, seed in (("train", 60, 0), ("validation", 12, 1), ("test", 12, 2)):
        (text / f"{name}.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in pairs(count, seed)), encoding="utf-8")
    found = recipe_of(text, students=f"[{{model: marian, model_args: {SHAPE}{more}}}]").to_dict()
    found = changed(found, "grid", {"label_smoothing": [0.1], "temperature": [64], "kd_top_k": [5]})
    return {**changed(found, "teacher.ensemble", [0, 1]), "eta": None, "projection": None}


def test_translators_of_an_ensemble_learn_from_all_its_tokens(tmp_path: Path) -> None:
    recipe = recipe_from_dict(translating(tmp_path))
    records = run_study(recipe, tmp_path / "run", jobs=1)
    assert [one["status"] for one in records] == ["complete"] * 3
    task, teacher = open_task(recipe), Cell("teacher", 0.1, 0)
    said = {}
    for split in ("train", "validation"):
        rows = task.judged(task.spec(teacher), split).dataset
        folders = [tmp_path / "run" / "cells" / f"teacher-a0.1-s{seed}" / "model" for seed in (0, 1)]
        batches = [list(task.reader(teacher, folder).penultimate(rows)) for folder in folders]
        said[split] = [torch.cat([batch.logits for batch in some]).tolist() for some in batches]
    targets = [slow_ensemble(item, 64.0, "probabilities") for item in zip(*said["train"])]
    logits = [[64 * math.log(p) for p in row] for row in targets]
    student = records[2]
    expected = target_gradient(torch.tensor(logits, dtype=torch.float64), 64.0, 5)
    assert student["target_gradient"] == pytest.approx(expected, rel=1e-4)
    assert student["metrics"]["agreement"] is not None
    nll = [-math.log(slow_ensemble(item, 1.0, "probabilities")[label]) for item, label in
           zip(zip(*said["validation"]), torch.cat([batch.labels for batch in batches[0]]).tolist())]  # fmt: skip
    assert student["teacher"]["metrics"]["nll"] == pytest.approx(sum(nll) / len(nll), rel=1e-4)


def test_an_ensemble_translates_nothing_for_its_students(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"students\[0\]\.targets: received both of an ensemble; allowed gold"):
        recipe_from_dict(translating(tmp_path, ", targets: both"))

"""The models that a recipe names: looked up by `validate` and `--dry-run`, without data and without the network."""

from pathlib import Path
from typing import Any

import pytest

from hf_lskd.cli import main
from hf_lskd.recipe import load_recipe
from hf_lskd.tasks.names import check_models
from tests.tiny_study import changed, dump, values

Capture = pytest.CaptureFixture[str]


def page_of(folder: Path, **settings: Any) -> Path:
    """A recipe whose data are nowhere; `teacher__model` stands for teacher.model."""
    recipe = values(Path("/nowhere"))
    for key, value in settings.items():
        recipe = changed(recipe, key.replace("__", "."), value)
    return dump(recipe, folder / "recipe.yaml")


TRANSLATION = {
    "name": "pairs",
    "task": "translation",
    "data": {"source": "cldr", "source_lang": "en", "target_lang": "de"},
    "training": {"max_steps": 1},
    "teacher": {"model": "transformer_iwslt_de_em"},
    "students": [{"model": "marian"}, {"name": "other", "model": "Helsinki-NLP/opus-mt-en-de"}],
    "grid": {"label_smoothing": [0.0], "temperature": [1]},
}


@pytest.mark.parametrize("command", [["validate"], ["study", "--dry-run"]])
def test_every_misspelt_architecture_is_said_with_the_nearest_one(
    command: list[str], tmp_path: Path, capsys: Capture
) -> None:
    page = page_of(tmp_path, teacher__model="resnet81", students__0__model="timm/mobilenet2_100")
    assert main([*command, str(page)]) == 2
    out, err = capsys.readouterr()
    teacher, student = err.removeprefix("hf-lskd: ").splitlines()
    assert teacher.startswith(f"{page}: teacher: model 'resnet81' is neither a folder here nor a timm model")
    assert "'resnet18'" in teacher
    assert student.startswith(f"{page}: student: model 'timm/mobilenet2_100' is neither")
    assert "'mobilenetv2_100'" in student
    assert out == ""


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("teacher__model", "resnet18.no_such_tag", "no_such_tag"),
        ("teacher__model_args", {"num_classes": 3}, "It follows from the data's classes."),
    ],
)
def test_tags_and_arguments_that_are_set_elsewhere_are_said_too(
    key: str, value: Any, message: str, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["validate", str(page_of(tmp_path, **{key: value}))]) == 2
    assert message in capsys.readouterr().err


def test_folders_and_ids_of_the_hub_are_said_not_to_be_checked(tmp_path: Path, capsys: Capture) -> None:
    mine, finished = tmp_path / "mine", tmp_path / "finished"
    mine.mkdir()
    finished.mkdir()
    page = page_of(tmp_path, teacher__model="owner/model", students__0__model=str(mine))
    assert main(["validate", str(page)]) == 0
    why = "is not checked here: a folder, or an id of the Hub"
    assert capsys.readouterr().out.splitlines() == [
        f"{page}: image_classification, 6 cells",
        f"{page}: teacher: model owner/model {why}",
        f"{page}: student: model {mine} {why}",
    ]
    assert main(["study", str(page), "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 6
    assert err.splitlines()[0] == f"hf-lskd: teacher: model owner/model {why}"
    given = page_of(tmp_path, teacher={"path": str(finished)}, grid__label_smoothing=[0.0])
    assert check_models(load_recipe(given), "page") == []  # a finished teacher is no name


@pytest.mark.parametrize("command", [["validate"], ["study", "--dry-run"]])
def test_every_path_that_is_not_there_is_said(
    command: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = page_of(
        tmp_path,
        teacher__model="./nowhere",
        teacher__pretrained="../weights.pth",
        students__0__model="/nowhere/model",
        students__0__pretrained="~/nowhere.pth",
        data__path="./pictures",
    )
    monkeypatch.chdir(tmp_path)
    assert main([*command, str(page)]) == 2
    out, err = capsys.readouterr()
    said = "does not exist. Allowed: a path that is here. Correct it."
    assert err.removeprefix("hf-lskd: ").splitlines() == [
        f"{page}: teacher: model ./nowhere {said} It is looked for from {tmp_path}.",
        f"{page}: teacher: pretrained: ../weights.pth {said} It is looked for from {tmp_path}.",
        f"{page}: student: model /nowhere/model {said}",
        f"{page}: student: pretrained: ~/nowhere.pth {said} It is looked for from {tmp_path}.",
        f"{page}: data.path: ./pictures {said} It is looked for from {tmp_path}.",
    ]
    assert out == ""
    for place in ("nowhere", "pictures"):
        (tmp_path / place).mkdir()
    page = page_of(tmp_path, teacher__model="./nowhere", data__path="./pictures")
    assert main([*command, str(page)]) == 0


def test_finished_teachers_that_are_not_there_are_said_and_a_home_is_written_out(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = page_of(tmp_path, teacher={"path": {"0.0": "/nowhere/plain", "0.1": str(tmp_path)}})
    assert main(["validate", str(given)]) == 2
    assert "recipe.yaml: teacher: path of α = 0: /nowhere/plain does not exist. Allowed:" in capsys.readouterr().err
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert main(["validate", str(page_of(tmp_path, students__0__model="~/mine", data__path="~/mine"))]) == 2
    assert capsys.readouterr().err == (
        f"hf-lskd: {tmp_path / 'recipe.yaml'}: student: model ~/mine. Allowed: a path without ~, which libraries do not read in a "
        f"model's name. Write {tmp_path / 'mine'}.\n"
    )


def test_a_home_of_nobody_does_not_exist_and_classes_and_letters_are_no_paths(tmp_path: Path, capsys: Capture) -> None:
    assert main(["validate", str(page_of(tmp_path, students__0__model="~nobody-of-that-name/mine"))]) == 2
    assert (
        "student: model ~nobody-of-that-name/mine does not exist. Allowed: a path that is here."
        in capsys.readouterr().err
    )
    signs = ["~nobody-of-that-name", "./", "../", "~", "a", "b"]
    assert main(["validate", str(page_of(tmp_path, data__class_names=signs, data__groups=signs))]) == 0
    glyphs = page_of(tmp_path, data={"source": "glyphs", "letters": "./~ab", "held_out": ["~fonts"]})
    assert main(["validate", str(glyphs)]) == 0


def test_translations_text_is_looked_for_from_here(tmp_path: Path, capsys: Capture) -> None:
    recipe = changed(TRANSLATION, "teacher.model", "marian")
    data = {"source": "text", "source_lang": "en", "target_lang": "de", "train": ["./nowhere.en", "./nowhere.de"]}
    assert main(["validate", str(dump(changed(recipe, "data", data), tmp_path / "pairs.yaml"))]) == 2
    err = capsys.readouterr().err
    assert "data.train: ./nowhere.en does not exist" in err
    assert "data.train: ./nowhere.de does not exist" in err


def test_a_study_says_of_a_folder_that_is_not_there_that_it_cannot_be_loaded(tmp_path: Path, capsys: Capture) -> None:
    page = tmp_path / "digits.yaml"
    recipe = changed(values(Path("/nowhere")), "data", {"source": "digits", "validation": 0.2, "image_size": 16})
    recipe = {key: value for key, value in recipe.items() if key not in ("eta", "projection")}
    dump(changed(recipe, "students.0.model", "/nowhere/model"), page)
    assert main(["study", str(page), "--output-dir", str(tmp_path / "study")]) == 2
    assert "model '/nowhere/model' cannot be loaded" in capsys.readouterr().err
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text('{"model_type": "resnet"}', encoding="utf-8")
    dump(changed(recipe, "students.0.model", str(bare)), page)
    assert main(["study", str(page), "--output-dir", str(tmp_path / "study")]) == 2
    assert "does not say how its images are prepared" in capsys.readouterr().err


def test_a_misspelt_shape_of_translation_is_said_with_the_nearest_one(tmp_path: Path, capsys: Capture) -> None:
    assert main(["validate", str(dump(TRANSLATION, tmp_path / "pairs.yaml"))]) == 2
    err = capsys.readouterr().err
    assert "pairs.yaml: teacher: model 'transformer_iwslt_de_em' is no shape" in err
    assert "Did you mean 'transformer_iwslt_de_en'" in err
    page = dump(changed(TRANSLATION, "teacher.model", "transformer_iwslt_de_en"), tmp_path / "pairs.yaml")
    assert main(["validate", str(page)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"{page}: student other: model Helsinki-NLP/opus-mt-en-de is not checked here: a folder, or an id of the Hub"
    ]

"""Alternatives of a recipe, and settings laid over it from the command line."""

import re
from pathlib import Path

import pytest

from hf_lskd.cli import main
from hf_lskd.errors import InputError, RecipeErrors
from hf_lskd.recipe import load_recipe, parse_recipe, recipe_alternatives, recipe_from_dict

PAGE = """
name: page
data: {source: digits}
training: {num_train_epochs: 2, learning_rate: 0.1}
teacher: {model: test_resnet}
students:
  - {model: test_resnet, pretrained: true}
  - {name: other, model: test_vit}
grid: {label_smoothing: [0.0, 0.1], temperature: [1, 2]}
alternatives:
  modern: {training: {learning_rate: 0.5, lr_scheduler_type: cosine}}
  scale_control: {grid: {kd_loss_scale: [1.0, equalised]}}
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.yaml"
    path.write_text(PAGE, encoding="utf-8")
    return path


def test_without_an_alternative_the_page_is_what_it_says(page: Path) -> None:
    recipe = load_recipe(page)
    assert recipe == parse_recipe(PAGE)
    assert recipe.training == {"num_train_epochs": 2, "learning_rate": 0.1}
    assert recipe.changes == ()
    assert "changes" not in recipe.to_dict()
    assert recipe_alternatives(page) == ["modern", "scale_control"]


def test_an_alternative_is_merged_key_by_key_and_noted(page: Path) -> None:
    recipe = load_recipe(page, "modern")
    assert recipe.training == {"num_train_epochs": 2, "learning_rate": 0.5, "lr_scheduler_type": "cosine"}
    assert recipe.grid == load_recipe(page).grid
    assert load_recipe(page, "scale_control").grid.kd_loss_scale == (1.0, "equalised")
    assert recipe.changes == ("alternative modern",)
    assert recipe_from_dict(recipe.to_dict()) == recipe


def test_settings_reach_into_mappings_and_lists_and_are_noted(page: Path) -> None:
    settings = ["students.0.pretrained=false", "teacher.training.max_steps=2", "data.seed=5", "grid.temperature=[1, 3]"]
    recipe = load_recipe(page, "modern", settings)
    assert recipe.students[0].pretrained is False
    assert recipe.students[1] == load_recipe(page).students[1]
    assert recipe.teacher.training == {"max_steps": 2}
    assert recipe.data.options["seed"] == 5
    assert recipe.grid.temperature == (1.0, 3.0)
    assert recipe.changes == ("alternative modern", *settings)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("teacher.pretrained", "--set KEY=VALUE"),
        ("=3", "--set KEY=VALUE"),
        ("students.2.pretrained=false", "an index below 2"),
        ("students.first.pretrained=false", "an index below 2"),
        (
            "students.-1.pretrained=false",
            "'-1' in students. Allowed: an index below 2. Items are counted from 0; the last is",
        ),
        (
            "training..max_steps=3",
            "an empty key in 'training..max_steps'. Allowed: keys with one dot between. Write training.max",
        ),
        (".name=x", "an empty key in '.name'"),
        ("training.=3", "an empty key in 'training.'"),
        (
            "students.0.seed=3",
            "students[0].seed: received an unknown key; allowed name, model, pretrained, model_args, ",
        ),
        ("students.0.seed=3", "targets, paper. Use grid.seed; teacher.seed gives"),
        ("students.0.ensemble=[0]", "It belongs to teacher."),
        ("name.first=x", "a key of a mapping. Set name itself."),
        ("teacher.modle=x", "Did you mean 'model'?"),
        ("grid.temperature=[0]", "grid.temperature[0]: received 0; allowed a finite number > 0"),
    ],
)
def test_a_setting_that_leads_nowhere_or_does_not_fit_is_refused(page: Path, setting: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        load_recipe(page, settings=[setting])


def test_an_unknown_alternative_and_a_block_of_another_shape_are_refused(page: Path) -> None:
    with pytest.raises(InputError, match=r"alternative 'modren'.*modern, scale_control.*Did you mean 'modern'"):
        load_recipe(page, "modren")
    with pytest.raises(InputError, match=r"alternatives: .*a mapping"):
        parse_recipe(PAGE.split("alternatives:")[0] + "alternatives: [modern]\n")
    with pytest.raises(InputError, match="has no alternatives"):
        load_recipe("recipes/quickstart/digits.yaml", "modern")


def test_validate_checks_every_alternative(page: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["validate", str(page)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0].removeprefix(str(page)) for line in lines] == ["", " (modern)", " (scale_control)"]
    assert lines[2].endswith(f"{2 + 2 * 2 * 2 * 2} cells")
    page.write_text(PAGE.replace("cosine", "cosin"), encoding="utf-8")
    assert main(["validate", str(page)]) == 2
    assert "cosine" in capsys.readouterr().err


def test_a_planned_command_carries_the_changes(page: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["study", str(page), "--alternative", "modern", "--set", "grid.temperature=[1]", "--dry-run"]) == 0
    commands = [line.split("\t")[-1] for line in capsys.readouterr().out.splitlines()]
    assert len(commands) == 2 + 4
    assert all("--alternative modern --set 'grid.temperature=[1]'" in command for command in commands)


def test_problems_of_the_page_itself_keep_their_lines(page: Path) -> None:
    page.write_text(PAGE.replace("teacher: {model: test_resnet}", "teacher: {model: 3}"), encoding="utf-8")
    with pytest.raises(RecipeErrors, match=r"page.yaml:5: teacher.model"):
        load_recipe(page, "modern", ["data.seed=1"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("grid.temperature=[1, -2]", "grid.temperature[1]: received -2; allowed a finite number > 0."),
        ("training.learning_rat=0.1", "training.learning_rat: received an unknown key"),
        ("swiches.ema=0.9", "swiches: received an unknown key"),
        ("students.0.pretrained=[true]", "students[0].pretrained: received [true]"),
        ("teacher.ensemble.0=1", 'teacher.ensemble: received {"0": 1}'),
    ],
)
def test_what_is_wrong_with_a_setting_is_said_with_the_setting(page: Path, setting: str, message: str) -> None:
    with pytest.raises(RecipeErrors) as caught:
        load_recipe(page, None, ["data.seed=1", setting])
    (problem,) = caught.value.problems
    assert problem.startswith(f"{page}, --set {setting}: {message}")


def test_what_is_wrong_with_an_alternative_is_said_with_its_own_line(page: Path) -> None:
    page.write_text(PAGE.replace("scale_control: {grid: {kd_loss_scale", "scale_control: {grid: {kd_loss_scal"))
    with pytest.raises(RecipeErrors) as caught:
        load_recipe(page, "scale_control")
    line = page.read_text().splitlines().index("  scale_control: {grid: {kd_loss_scal: [1.0, equalised]}}") + 1
    assert caught.value.problems[0].startswith(f"{page}:{line}: grid.kd_loss_scal: received an unknown key")


def test_words_and_numbers_of_a_setting_mean_what_they_mean_on_a_page(page: Path) -> None:
    recipe = load_recipe(page, None, ["training.save_strategy=no", "training.learning_rate=1e-3"])
    assert recipe.training["save_strategy"] == "no"
    assert recipe.training["learning_rate"] == 0.001
    with pytest.raises(RecipeErrors, match="the same key again"):
        load_recipe(page, None, ["training={max_steps: 1, max_steps: 2}"])

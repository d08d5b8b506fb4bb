"""Recipes: what a page means, that reading it opens neither data nor models, and that the pages we ship are valid."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hf_lskd.errors import InputError
from hf_lskd.recipe import load_recipe, parse_recipe, recipe_from_dict, signature
from tests.recipe_pages import GOOD, PAGES, grid, only_problem, page

# ---- what a recipe means


def test_defaults_are_filled_in() -> None:
    recipe = parse_recipe(GOOD)
    assert recipe.grid.temperature == (1.0, 2.0)
    assert recipe.grid.seed == (0,)
    assert recipe.grid.kd_weight == recipe.grid.kd_loss_scale == (1.0,)
    assert recipe.students[0].name == "student"
    assert recipe.teacher.pretrained is False
    assert recipe.data.options["size"] == 20
    assert recipe.eta is not None
    assert recipe.eta.reference == "sets"
    assert recipe.projection is not None
    assert recipe.projection.classes == "auto"


def test_to_dict_gives_an_equal_recipe_back_through_json_and_yaml() -> None:
    text = page(
        data={"source": "glyphs", "augmentation": {"random_resized_crop": True, "rotation": 5}, "letters": "0123"},
        training={"learning_rate": "1e-3", "save_strategy": "no", "lr_scheduler_kwargs": {"x": 1}, "warmup_steps": 3}
        | {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"},
        teacher={"path": {"0.0": "a", "0.1": "b"}},
        grid={"label_smoothing": [0, 0.1], "temperature": 1, "kd_loss_scale": [2, "equalised"], "kd_top_k": [None, 3]},
        projection={"classes": ["ä", "á", "no"]},
        switches={"ema": 0.99},
    )
    recipe = parse_recipe(text)
    values = recipe.to_dict()
    assert json.loads(json.dumps(values)) == values
    assert recipe_from_dict(json.loads(json.dumps(values))) == recipe
    assert parse_recipe(recipe.to_yaml()) == recipe
    assert parse_recipe(json.dumps(values)) == recipe
    assert parse_recipe(recipe.to_yaml()).to_dict() == values


def test_whole_and_decimal_spellings_of_a_number_have_the_same_signature() -> None:
    one = parse_recipe(grid(temperature=[1, 64], kd_loss_scale=1)).to_dict()
    other = parse_recipe(grid(temperature=[1.0, "64"], kd_loss_scale=[1.0])).to_dict()
    assert signature(one) == signature(other)
    assert signature({"a": 1}) == signature({"a": 1.0}) != signature({"a": True})
    assert signature({"a": 1, "b": (2,)}) == signature({"b": [2], "a": 1})
    assert signature({"a": 0.0}) == signature({"a": -0.0}) != signature({"a": "0"})
    assert signature({0.1: "p"}) == signature({"0.1": "p"})


def test_signature_refuses_numbers_that_are_none() -> None:
    with pytest.raises(ValueError):
        signature({"a": float("nan")})


@pytest.mark.parametrize(("key", "value"), [("temperature", [1, 3]), ("seed", 1), ("kd_weight", 0.5)])
def test_signature_changes_with_the_grid(key: str, value: object) -> None:
    assert signature(parse_recipe(GOOD).to_dict()) != signature(parse_recipe(grid(**{key: value})).to_dict())


def test_scalars_stand_for_lists_of_one() -> None:
    recipe = parse_recipe(grid(label_smoothing=0.1, temperature=4, seed=7, kd_loss_scale="equalised", kd_top_k=None))
    assert recipe.grid.label_smoothing == (0.1,)
    assert recipe.grid.temperature == (4.0,)
    assert recipe.grid.seed == (7,)
    assert recipe.grid.kd_loss_scale == ("equalised",)
    assert recipe.grid.kd_top_k == (None,)


def test_numbers_that_yaml_1_1_reads_as_text_are_numbers() -> None:
    text = GOOD.replace("learning_rate: 0.2", "learning_rate: 1e-3\n  weight_decay: '1e-4'\n  max_steps: 1e3")
    training = parse_recipe(text).training
    assert training == {"learning_rate": 0.001, "weight_decay": 0.0001, "max_steps": 1000}
    assert type(training["max_steps"]) is int


@pytest.mark.parametrize("spelling", ["1__0.5e1", "9" * 5000, "1e999", "_1.5", ".", "1e", "-.inf"])
def test_odd_spellings_of_numbers_end_in_a_value_or_a_problem(spelling: str) -> None:
    text = GOOD.replace("learning_rate: 0.2", f"learning_rate: {spelling}")
    if spelling == "1__0.5e1":
        assert parse_recipe(text).training == {"learning_rate": 105.0}
    else:
        assert "training.learning_rate: received" in only_problem(text)


def test_one_mean_stands_for_three_channels() -> None:
    assert parse_recipe(page(data={"source": "digits", "mean": 0.5})).data.options["mean"] == [0.5, 0.5, 0.5]


def test_reading_a_recipe_module_imports_nothing_heavy() -> None:
    code = "import sys, hf_lskd.recipe; print({'torch', 'transformers', 'timm', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_numbers_that_yaml_1_1_reads_in_base_8_or_60_are_refused() -> None:
    for spelling in ("010", "1:30", "0x10"):
        text = GOOD.replace("learning_rate: 0.2", f"max_steps: {spelling}")
        assert only_problem(text).startswith(
            f"r.yaml:6: training.max_steps: received '{spelling}'; allowed a whole number"
        )


def test_unquoted_no_is_a_word_where_words_are_allowed() -> None:
    assert parse_recipe(GOOD.replace("learning_rate: 0.2", "save_strategy: no")).training == {"save_strategy": "no"}
    named = GOOD + "projection: {classes: [no, 1, off]}\n"
    projection = parse_recipe(named).projection
    assert projection is not None
    assert projection.classes == ("no", "1", "off")


def test_a_single_student_needs_no_list() -> None:
    text = page(students=None, student={"model": "resnet18", "name": "narrow"})
    assert [student.name for student in parse_recipe(text).students] == ["narrow"]


def test_a_role_s_training_overrides_the_recipe_s() -> None:
    recipe = parse_recipe(page(teacher={"model": "m", "training": {"learning_rate": 1, "num_train_epochs": 6}}))
    assert recipe.training_of(recipe.teacher) == {"learning_rate": 1.0, "num_train_epochs": 6.0}
    assert recipe.training_of(recipe.students[0]) == {"learning_rate": 0.2}


@pytest.mark.parametrize(
    ("seeds", "count", "expected"),
    [([0], 3, (0, 1, 2)), ([5], 2, (5, 6)), ([0, 1, 2], 2, (0, 1)), ([3, 1], 4, (3, 1, 4, 5)), ([0], 1, (0,))],
)
def test_replace_seeds_keeps_the_seeds_that_there_are(seeds: list[int], count: int, expected: tuple[int, ...]) -> None:
    recipe = parse_recipe(grid(seed=seeds))
    assert recipe.replace_seeds(count).grid.seed == expected
    assert recipe.grid.seed == tuple(seeds)


def test_replace_seeds_refuses_less_than_one() -> None:
    with pytest.raises(InputError, match=r"0 seeds.*at least 1"):
        parse_recipe(GOOD).replace_seeds(0)


def test_finished_teachers_are_mapped_to_the_grid() -> None:
    both = parse_recipe(page(teacher={"path": {0: "plain", "0.1": "smooth"}}))
    assert both.teacher.path == {0.0: "plain", 0.1: "smooth"}
    one = page(teacher={"path": "smooth"}, grid={"label_smoothing": 0.1, "temperature": 1})
    assert parse_recipe(one).teacher.path == {0.1: "smooth"}


def test_data_without_groups_switch_eta_and_projection_off() -> None:
    recipe = parse_recipe(page(data={"source": "digits"}))
    assert recipe.eta is None
    assert recipe.projection is None
    assert parse_recipe(page(eta=None) + "eta: null\n").eta is None


def test_birds_have_groups_by_their_names_and_imagenet_only_those_of_the_recipe() -> None:
    assert parse_recipe(page(data={"source": "cub200", "path": "birds"})).eta is not None
    assert parse_recipe(page(data={"source": "imagenet", "path": "ILSVRC2012"})).eta is None
    grouped = {"source": "imagenet", "path": "ILSVRC2012", "groups": "groups.json"}
    assert parse_recipe(page(data=grouped)).eta is not None


def test_anchors_can_be_reused() -> None:
    text = GOOD.replace("model: test_byobnet\nstudents", "model: &m resnet18\nstudents").replace(
        "- model: test_byobnet", "- model: *m"
    )
    assert parse_recipe(text).students[0].model == "resnet18"


# ---- the pages that we ship


def test_there_are_quickstart_recipes() -> None:
    assert {"digits", "glyphs", "glyphs_seeds", "fashion_mnist"} <= {page.stem for page in PAGES}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_shipped_recipe_is_valid_and_opens_with_its_header(path: Path) -> None:
    recipe = load_recipe(path)
    quick = path.parent.name == "quickstart"
    assert recipe.name == (path.stem if quick else f"{path.parent.name}_{path.stem}")
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    for word in ("Question:", "First:", "Command:", "Cost:", "Expect:"):
        assert any(line.startswith(f"# {word}") for line in header), word
    command = next(line for line in header if "Command:" in line)
    assert f"hf-lskd study recipes/{path.parent.name}/{path.name}" in command

"""Recipes: what is refused, and in which words."""

import json
import random
from pathlib import Path

import pytest
import yaml

from hf_lskd.errors import InputError, RecipeErrors
from hf_lskd.recipe import Recipe, load_recipe, parse_recipe, recipe_from_dict
from tests.recipe_pages import GOOD, PAGES, grid, only_problem, page, problems_of

# ---- bad values, each with its line, key, what was received and what is allowed


@pytest.mark.parametrize(
    ("axis", "value", "expected"),
    [
        ("label_smoothing", 1, "grid.label_smoothing: received 1; allowed a number in [0, 1)."),
        ("label_smoothing", [0.0, -0.1], "grid.label_smoothing[1]: received -0.1; allowed a number in [0, 1)."),
        ("temperature", 0, "grid.temperature: received 0; allowed a finite number > 0."),
        ("temperature", [1, -2], "grid.temperature[1]: received -2; allowed a finite number > 0."),
        ("temperature", float("nan"), "grid.temperature: received nan; allowed a finite number > 0."),
        ("temperature", [1, float("inf")], "grid.temperature[1]: received inf; allowed a finite number > 0."),
        ("temperature", "nan", "grid.temperature: received 'nan'; allowed a finite number > 0."),
        ("temperature", [1, 2, 1.0], "grid.temperature[2]: received 1.0 twice; allowed each value once."),
        ("temperature", True, "grid.temperature: received true; allowed a finite number > 0."),
        ("temperature", [], "grid.temperature: received an empty list; allowed at least one value"),
        ("temperature", None, "grid.temperature: received null; allowed a finite number > 0."),
        ("temperature", {"a": 1}, 'grid.temperature: received {"a": 1}; allowed a list'),
        ("temperature", [[1, 2]], "grid.temperature[0]: received [1, 2]; allowed a finite number > 0."),
        ("temperature", "0.1x", "grid.temperature: received '0.1x'; allowed a finite number > 0."),
        ("seed", -1, "grid.seed: received -1; allowed a whole number in [0, 4294967295]."),
        ("seed", 0.5, "grid.seed: received 0.5; allowed a whole number"),
        ("seed", False, "grid.seed: received false; allowed a whole number"),
        ("seed", [0, 0], "grid.seed[1]: received 0 twice"),
        ("seed", 10**400, "grid.seed: received 1000"),
        ("kd_weight", 1.01, "grid.kd_weight: received 1.01; allowed a number in [0, 1]."),
        ("kd_loss_scale", 0, "grid.kd_loss_scale: received 0; allowed a finite number > 0, or equalised."),
        ("kd_loss_scale", "equalized", "Did you mean 'equalised'?"),
        ("kd_loss_scale", True, "grid.kd_loss_scale: received true; allowed a finite number > 0, or equalised."),
        ("scale_student", 1, "grid.scale_student: received 1; allowed true or false."),
        (
            "scale_student",
            "true",
            "grid.scale_student: received 'true'; allowed true or false. Write it without quotes.",
        ),
        ("student_label_smoothing", 2, "grid.student_label_smoothing: received 2; allowed a number in [0, 1)."),
        ("kd_top_k", 0, "grid.kd_top_k: received 0; allowed a whole number >= 1, or null."),
        ("temprature", 1, "grid.temprature: received an unknown key; allowed label_smoothing, temperature, seed"),
        ("temprature", 1, "Did you mean 'temperature'?"),
        ("alpha", 1, "Use label_smoothing."),
    ],
)
def test_bad_grid_value_is_named(axis: str, value: object, expected: str) -> None:
    assert expected in only_problem(grid(**{axis: value}))


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("label_smoothing_factor", 0.1, "Use grid.label_smoothing for the teacher's smoothing"),
        ("label_smoothing_factor", 0.1, "grid.student_label_smoothing for the student's own"),
        ("seed", 1, "Use grid.seed."),
        ("kd_temperature", 2, "Use grid.temperature."),
        ("kd_loss_scale", 2, "Use grid.kd_loss_scale."),
        ("channels_last", True, "Use switches.channels_last."),
        ("output_dir", "x", "Use --output-dir."),
        ("push_to_hub", True, "Use `hf-lskd publish`"),
        ("warmup_ratio", 0.1, "Use warmup_steps: a number below 1 is a share of all steps."),
        ("learning_rat", 0.1, "Did you mean 'learning_rate'"),
        ("evaluation_strategy", "no", "Did you mean 'eval_strategy'"),
        ("learning_rate", 0, "received 0; allowed a finite number > 0."),
        ("learning_rate", "fast", "received 'fast'; allowed a finite number > 0."),
        ("num_train_epochs", True, "received true; allowed a finite number > 0."),
        ("per_device_train_batch_size", 0, "received 0; allowed a whole number >= 1."),
        ("per_device_train_batch_size", 12.5, "received 12.5; allowed a whole number >= 1."),
        ("bf16", 1, "received 1; allowed true or false."),
        ("bf16", "true", "Write it without quotes."),
        ("optim", "sdg", "Did you mean 'sgd'?"),
        ("optim", "xyzzy", "All: adamw_torch, "),
        ("lr_scheduler_type", "cosin", "Did you mean 'cosine'"),
        ("eval_strategy", False, "received false; allowed no | steps | epoch."),
        ("lr_scheduler_kwargs", 3, "received 3; allowed a mapping {key: value}, or text, or null."),
        ("dataloader_num_workers", None, "received null; allowed a whole number >= 0."),
        ("report_to", [], "received []; allowed"),
        ("parallelism_config", {}, "received {}; allowed null."),
        ("teacher_dtype", "half", "allowed float32 | bfloat16 | float16, or null."),
    ],
)
def test_bad_training_argument_is_named_in_every_training_block(argument: str, value: object, expected: str) -> None:
    block = {argument: value}
    for where, text in [
        ("training", page(training=block)),
        ("teacher.training", page(teacher={"model": "m", "training": block})),
        ("students[0].training", page(students=[{"model": "m", "training": block}])),
    ]:
        problem = only_problem(text)
        assert f" {where}.{argument}: received " in problem
        assert expected in problem


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"bf16": True, "fp16": True}, "training.fp16: received bf16 and fp16 both true; allowed one of them."),
        ({"optim": "sgd", "optim_args": "momentun=0.9"}, "training.optim_args: received 'momentun'"),
        ({"optim": "sgd", "optim_args": "momentun=0.9"}, "Did you mean 'momentum'?"),
        ({"optim": "sgd", "optim_args": "weight_decay=1e-4"}, "Use training.weight_decay."),
        ({"optim": "sgd", "optim_args": "momentum=lots"}, "received 'lots'; allowed momentum=a finite number >= 0."),
        ({"optim": "sgd", "optim_args": "nesterov=maybe"}, "received 'maybe'; allowed nesterov=true | false."),
        ({"optim": "sgd", "optim_args": "momentum: 0.9"}, "allowed key=value pairs with commas between"),
        ({"optim_args": "beta1=0.9"}, "Use adam_beta1, adam_beta2, adam_epsilon."),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "lr_scheduler_kwargs.num_decay_steps: received nothing"),
        ({"lr_scheduler_kwargs": {"num_cycle": 1}, "lr_scheduler_type": "cosine"}, "Did you mean 'num_cycles'?"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "allowed one of min_lr and min_lr_rate."),
        ({"lr_scheduler_type": "greedy", "eval_strategy": "no"}, "received greedy without evaluation"),
        ({"dataloader_prefetch_factor": 2}, "allowed null, or dataloader_num_workers >= 1."),
    ],
)
def test_training_arguments_that_do_not_fit_together_are_named(training: dict[str, object], expected: str) -> None:
    assert expected in only_problem(page(training=training))


def test_settings_that_clash_only_in_one_role_are_named_there() -> None:
    text = page(
        training={"optim": "sgd", "optim_args": "momentum=0.9"},
        teacher={"model": "m", "training": {"optim": "rmsprop", "optim_args": "nesterov=true"}},
    )
    assert "teacher.training.optim_args: received 'nesterov'" in only_problem(text)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            {"source": "glyfs"},
            "data.source: received 'glyfs'; allowed glyphs | digits | idx | dataset | imagenet | cub200. Did you mean 'glyphs'?",
        ),
        ({"source": ["glyphs"]}, 'data.source: received ["glyphs"]; allowed glyphs'),
        ({}, "data.source: received nothing; allowed glyphs | digits | idx | dataset | imagenet | cub200."),
        ("glyphs", "data: received 'glyphs'; allowed a mapping with source: glyphs"),
        ({"source": "idx"}, "data.path: received nothing; allowed text. This key is required."),
        ({"source": "digits", "path": "x"}, "It belongs to source: idx, imagenet, cub200."),
        ({"source": "glyphs", "varients": 3}, "Did you mean 'variants'?"),
        ({"source": "glyphs", "held_out": 1}, "data.held_out: received 1; allowed a number in (0, 1), or a list"),
        ({"source": "glyphs", "held_out": []}, "data.held_out: received []; allowed a number in (0, 1), or a list"),
        ({"source": "digits", "validation": 1.0}, "data.validation: received 1.0; allowed a number in (0, 1)."),
        ({"source": "digits", "mean": [0.5, 0.5]}, "data.mean: received [0.5, 0.5]; allowed a list of 3 values"),
        ({"source": "digits", "std": [1, 0, 1]}, "data.std[1]: received 0; allowed a finite number > 0."),
        ({"source": "digits", "mixup": -1}, "data.mixup: received -1; allowed a finite number >= 0."),
        ({"source": "digits", "augmentation": "standart"}, "Did you mean 'standard'?"),
        ({"source": "digits", "augmentation": {"rotate": 5}}, "data.augmentation.rotate: received an unknown key"),
        (
            {"source": "digits", "augmentation": {"rotation": 400}},
            "data.augmentation.rotation: received 400; allowed a number in [0, 180]",
        ),
        (
            {"source": "digits", "augmentation": {"random_resized_crop": {"scale": [1, 0.5]}}},
            "data.augmentation.random_resized_crop.scale: received [1, 0.5]; allowed the lower number first.",
        ),
        (
            {"source": "idx", "path": "p", "class_names": ["a", "b"], "groups": ["x"]},
            "data.groups: received 1 groups; allowed one a class: 2.",
        ),
        (
            {"source": "idx", "path": "p", "class_names": ["a", "b"], "groups": {"a": "x", "b": "y", "c": "x"}},
            "data.groups.c: received the unknown class 'c'",
        ),
        ({"source": "idx", "path": "p", "class_names": ["a", "a"]}, "data.class_names[1]: received 'a' twice"),
    ],
)
def test_bad_data_block_is_named(data: object, expected: str) -> None:
    assert expected in only_problem(page(data=data))


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"name": "No Spaces"}, "name: received 'No Spaces'; allowed a name of lower-case letters"),
        ({"name": "../up"}, "name: received '../up'"),
        ({"name": None}, "name: received nothing; allowed a name of lower-case letters, digits, '_' and '-'. This key is"),
        ({"task": "image_clasification"}, "Did you mean 'image_classification'?"),
        ({"teacher": None}, "teacher: received nothing"),
        ({"teacher": {}}, "teacher.model: received nothing; allowed text. Name a model to train, or give the path"),
        ({"teacher": "resnet50"}, "teacher: received 'resnet50'; allowed a mapping with model"),
        ({"teacher": {"model": 5}}, "teacher.model: received 5; allowed text, or null. Quote it if text is meant."),
        ({"teacher": {"model": "m", "pretrained": "True"}}, "teacher.pretrained: received 'True'; allowed true, false, or the path"),
        ({"teacher": {"model": "m", "model_args": [1]}}, "teacher.model_args: received [1]; allowed a mapping"),
        ({"teacher": {"model": "m", "model_args": {"a": float("nan")}}}, "teacher.model_args.a: received nan"),
        ({"teacher": {"path": "p"}}, "teacher.path: received one path for several label smoothings; allowed {0.0: path, 0.1: path}."),
        ({"teacher": {"path": {0.0: "p"}}}, "teacher.path: received no path for label smoothing 0.1"),
        ({"teacher": {"path": {0.0: "p", 0.1: "q", 0.2: "r"}}}, "teacher.path.0.2: received a label smoothing outside the grid"),
        ({"students": None}, "students: received nothing; allowed a list of at least one student."),
        ({"students": []}, "students: received an empty list; allowed at least one value"),
        ({"students": [{"model": "a"}, {"model": "b"}]}, "students[1].name: received 'student' twice"),
        ({"students": [{"name": "a"}]}, "students[0].model: received nothing; allowed text."),
        ({"students": ["resnet18"]}, "students[0]: received 'resnet18'; allowed a mapping with name, model"),
        ({"student": {"model": "m"}}, "student: received student beside students; allowed one of the two."),
        ({"grid": None}, "grid: received nothing"),
        ({"grid": {"temperature": 1}}, "grid.label_smoothing: received nothing"),
        ({"eta": {"reference": "set"}}, "eta.reference: received 'set'; allowed sets | all | none. Did you mean 'sets'?"),
        ({"eta": {"targets": []}}, "eta.targets: received []; allowed all, or a list"),
        ({"data": {"source": "digits"}, "eta": {}}, "eta: received a setting for data without groups; allowed null, or data.groups"),
        ({"eta": {"sets": "wordnett"}}, "centroids | confusion, or the path of a JSON file. Did you mean 'wordnet'?"),
        ({"eta": {"sets": ""}}, "eta.sets: received ''; allowed groups | wordnet | centroids | confusion, or the path"),
        ({"eta": {"min_count": 3}}, "eta.min_count: received a key of translation"),
        ({"data": {"source": "digits"}, "eta": {"sets": "groups"}}, "or eta.sets: wordnet | centroids | confusion | a JSON file."),
        ({"data": {"source": "digits"}, "projection": {}}, "projection: received a setting for data without groups; allowed null"),
        ({"projection": {"classes": ["a", "b"]}}, "allowed auto, or [target, similar, dissimilar]."),
        ({"projection": {"classes": ["a", "b", "a"]}}, "projection.classes[2]: received 'a' twice"),
        ({"switches": {"ema": 1}}, "switches.ema: received 1; allowed a number in (0, 1), or null."),
        ({"switches": {"chanels_last": True}}, "Did you mean 'channels_last'?"),
        ({"temperature": [1]}, "temperature: received an unknown key"),
        ({"temperature": [1]}, "Use grid.temperature."),
        ({"grids": {}}, "Did you mean 'grid'?"),
        ({"training": [1]}, "training: received [1]; allowed a mapping of training arguments."),
    ],
)  # fmt: skip
def test_bad_section_is_named(sections: dict[str, object], expected: str) -> None:
    assert expected in only_problem(page(**sections))


@pytest.mark.parametrize("sets", ["wordnet", "centroids", "confusion", "sets.json", "/data/sets"])
def test_data_without_groups_have_eta_by_another_source(sets: str) -> None:
    recipe = parse_recipe(page(data={"source": "digits"}, eta={"sets": sets}))
    assert recipe.eta is not None
    assert recipe.eta.sets == sets
    assert recipe.projection is not None  # automatic: of the first target and its sets
    assert recipe_from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_the_sets_of_images_are_the_groups_also_in_pages_written_before_there_was_a_choice() -> None:
    recipe = parse_recipe(GOOD)
    assert recipe.eta is not None
    assert recipe.eta.sets == "groups"
    old = recipe.to_dict()
    assert old["eta"].pop("sets") == "groups"
    assert recipe_from_dict(old) == recipe
    assert parse_recipe(page(data={"source": "digits"})).eta is None


def test_all_problems_come_at_once_in_the_order_of_the_page_with_their_lines() -> None:
    text = (
        GOOD.replace("name: small", "name: Small Study")
        .replace("source: glyphs", "source: glyphs\n  size: tiny")
        .replace("learning_rate: 0.2", "learning_rat: 0.2\n  seed: 1")
        .replace("[1, 2]", "[1, -2]")
    )
    places = [problem.split(": received")[0] for problem in problems_of(text)]
    assert places == [
        "r.yaml:1: name",
        "r.yaml:5: data.size",
        "r.yaml:7: training.learning_rat",
        "r.yaml:8: training.seed",
        "r.yaml:15: grid.temperature[1]",
    ]


def test_a_value_on_a_line_of_its_own_is_named_by_that_line() -> None:
    text = GOOD.replace("temperature: [1, 2]", "temperature:\n    - 1\n    - 2\n    - 2.0")
    assert only_problem(text).startswith("r.yaml:16: grid.temperature[2]: received 2.0 twice")


def test_a_missing_key_is_named_by_the_line_of_its_section() -> None:
    text = GOOD.replace("  temperature: [1, 2]\n", "")
    assert only_problem(text).startswith("r.yaml:11: grid.temperature: received nothing")


def test_an_unquoted_yes_says_why_it_is_no_text() -> None:
    text = GOOD.replace("name: small", "name: yes")
    assert "received true; allowed a name of lower-case letters" in only_problem(text)
    assert "YAML reads an unquoted yes as true. Quote it if text is meant." in only_problem(text)


# ---- pages that are no recipe at all


def test_a_duplicate_key_is_named_with_both_lines() -> None:
    text = GOOD + "name: other\n"
    assert (
        only_problem(text) == "r.yaml:14: name: received the same key again (first on line 1); allowed each key once."
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "r.yaml is empty"),
        ("# only a comment\n", "r.yaml is empty"),
        ("just words", "r.yaml:1: received 'just words'; allowed a mapping with name"),
        ("- a\n- b\n", 'r.yaml:1: received ["a", "b"]; allowed a mapping'),
        ("name: [1, 2\n", "r.yaml:2: received what is not YAML"),
        ("name: a\ngrid:\n\ttemperature: 1\n", "r.yaml:3: received a tab as indentation. Allowed: spaces"),
        ("name: a\n---\nname: b\n", "r.yaml:2: received what is not YAML"),
        ("name: *nowhere\n", "r.yaml:1: received what is not YAML"),
        ("name: &a [*a]\n", "received what is not YAML"),
        ("name: a\x00b\n", "received what is not YAML"),
        ("[" * 5000, "nested too deeply"),
        ("? [1, 2]\n: 3\n", "received a list or mapping as a key; allowed text as a key."),
        ("base: &b {a: 1}\ngrid:\n  <<: *b\n", "r.yaml:3: grid.<<: received a merge key; allowed plain keys."),
        ("name: !!python/object/apply:os.system [ls]\n", "received the tag"),
        ("name: !secret x\n", "r.yaml:1: name: received the tag !secret; allowed plain values."),
    ],
)
def test_a_page_that_is_no_recipe_gets_one_message(text: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_recipe(text, "r.yaml")
    assert expected in str(caught.value)


def test_nested_anchors_that_blow_up_are_refused() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(InputError, match="not YAML"):
        parse_recipe("\n".join(rows))


def test_unreadable_files_get_one_message(tmp_path: Path) -> None:
    (tmp_path / "glyphs.yaml").write_text(GOOD)
    with pytest.raises(InputError, match=r"is a folder.*a recipe file.*It holds glyphs\.yaml"):
        load_recipe(tmp_path)
    with pytest.raises(InputError, match=r"glyfs\.yaml does not exist.*Did you mean .*glyphs\.yaml"):
        load_recipe(tmp_path / "glyfs.yaml")
    with pytest.raises(InputError, match="does not exist"):
        load_recipe(tmp_path / "nowhere" / "glyphs.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(tmp_path / "glyphs.yaml" / "below")
    (tmp_path / "latin.yaml").write_bytes("name: a\ntask: ü\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.yaml:2: received byte 0xfc, which is not UTF-8"):
        load_recipe(tmp_path / "latin.yaml")


def test_a_byte_order_mark_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_recipe(tmp_path / "bom.yaml") == parse_recipe(GOOD)


def test_values_without_a_page_are_named_without_lines() -> None:
    values = parse_recipe(GOOD).to_dict()
    values["grid"]["temperature"] = [0]
    with pytest.raises(RecipeErrors, match=r"^study\.json: grid\.temperature\[0\]: received 0; allowed a finite"):
        recipe_from_dict(values, "study.json")


def test_whatever_stands_where_the_answer_is_a_recipe_or_an_input_error() -> None:
    chance = random.Random(0)
    odd: list[object] = [
        None,
        True,
        -1,
        0,
        1.5,
        float("nan"),
        "",
        "no",
        "x" * 100,
        [],
        [[]],
        {},
        {"a": {}},
        {1: 2},
        [None],
        10**30,
    ]
    outcomes: set[type] = set()
    for _ in range(1500):
        values = yaml.safe_load(PAGES[0].read_text()) if chance.random() < 0.3 else yaml.safe_load(GOOD)
        place = values
        while True:
            key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], (dict, list)) or not place[key] or chance.random() < 0.3:
                break
            place = place[key]
        place[key] = chance.choice(odd)
        try:
            outcomes.add(type(recipe_from_dict(values)))
        except InputError as error:
            outcomes.add(type(error))
    assert outcomes == {Recipe, RecipeErrors}

"""Recipes agree with the rooms that use their values: data, transforms and training arguments."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_lskd.data import cub200 as cub200_source
from hf_lskd.data import digits as digits_source
from hf_lskd.data import glyphs as glyphs_source
from hf_lskd.data import hf as dataset_source
from hf_lskd.data import idx as idx_source
from hf_lskd.data import imagenet as imagenet_source
from hf_lskd.data.transforms import augmentation_of
from hf_lskd.recipe import load_recipe, parse_recipe
from hf_lskd.recipe_data import SOURCES
from hf_lskd.recipe_training import OWNED, RANGES, argument_kinds
from tests.recipe_pages import PAGES, page


@pytest.mark.parametrize(
    ("source", "room"),
    [
        ("glyphs", glyphs_source),
        ("digits", digits_source),
        ("idx", idx_source),
        ("dataset", dataset_source),
        ("imagenet", imagenet_source),
        ("cub200", cub200_source),
    ],
)
def test_data_keys_and_defaults_are_those_of_the_data_room(source: str, room: object) -> None:
    fields = SOURCES["image_classification"][source]
    assert {key: field.default for key, field in fields.items()} == room.DEFAULTS  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "augmentation",
    [
        "none",
        "standard",
        {"random_resized_crop": True, "horizontal_flip": True},
        {"shift": 2, "grayscale": None},
        {"random_resized_crop": {"scale": [0.2, 1]}, "color_jitter": {"hue": 0.1}, "rotation": 45, "grayscale": False},
    ],
)
def test_augmentation_means_the_same_to_the_transforms(augmentation: object) -> None:
    read = parse_recipe(page(data={"source": "digits", "augmentation": augmentation})).data.options["augmentation"]
    lists = json.loads(json.dumps(augmentation_of(read)))
    assert lists == json.loads(json.dumps(augmentation_of(augmentation)))  # type: ignore[arg-type]


def test_names_of_training_arguments_in_our_tables_exist() -> None:
    from dataclasses import fields

    from hf_lskd.arguments import DistillationArguments, Seq2SeqDistillationArguments

    known = {field.name for kind in (DistillationArguments, Seq2SeqDistillationArguments) for field in fields(kind)}
    assert set(OWNED) <= known
    assert set(RANGES) <= known
    assert not set(argument_kinds()) & set(OWNED)


def test_every_default_of_the_training_arguments_passes_its_own_check() -> None:
    from dataclasses import MISSING, fields

    from hf_lskd.arguments import DistillationArguments
    from hf_lskd.recipe_yaml import Document, Problems

    kinds = argument_kinds()
    for field in fields(DistillationArguments):
        default = getattr(field.default, "value", field.default)
        if field.name in kinds and default is not MISSING and default != "":
            problems = Problems(Document("defaults", {}))
            kinds[field.name](problems, default, (field.name,))
            assert not len(problems), field.name


def test_a_checked_training_block_is_taken_by_the_training_arguments(tmp_path: Path) -> None:
    from hf_lskd.arguments import DistillationArguments, Seq2SeqDistillationArguments

    for path in PAGES:
        recipe = load_recipe(path)
        kind: Any = Seq2SeqDistillationArguments if recipe.task == "translation" else DistillationArguments
        for spec in (recipe.teacher, *recipe.students):
            arguments = kind(
                output_dir=str(tmp_path), use_cpu=not torch.cuda.is_available(), **recipe.training_of(spec)
            )
            assert arguments.learning_rate == recipe.training_of(spec)["learning_rate"]

"""A small recipe, with sections replaced, and what is wrong with a page."""

from pathlib import Path

import pytest
import yaml

from hf_lskd.errors import RecipeErrors
from hf_lskd.recipe import parse_recipe

RECIPES = sorted((Path(__file__).parent.parent / "recipes").rglob("*.yaml"))
PAGES = [page for page in RECIPES if page.parent.name != "accelerate"]

GOOD = """\
name: small
task: image_classification
data:
  source: glyphs
training:
  learning_rate: 0.2
teacher:
  model: test_byobnet
students:
  - model: test_byobnet
grid:
  label_smoothing: [0.0, 0.1]
  temperature: [1, 2]
"""


def page(**sections: object) -> str:
    """The small recipe with whole sections replaced; a section of None is left out."""
    values = yaml.safe_load(GOOD) | sections
    return yaml.safe_dump({key: value for key, value in values.items() if value is not None}, sort_keys=False)


def problems_of(text: str) -> list[str]:
    """Every problem of a page that has at least one."""
    with pytest.raises(RecipeErrors) as caught:
        parse_recipe(text, "r.yaml")
    return caught.value.problems


def only_problem(text: str) -> str:
    problems = problems_of(text)
    assert len(problems) == 1, problems
    return problems[0]


def grid(**axes: object) -> str:
    return page(grid={"label_smoothing": [0.0, 0.1], "temperature": [1, 2], **axes})

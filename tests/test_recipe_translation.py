"""What a recipe of translation may say, and what it may not."""

import re

import pytest

from hf_lskd.errors import RecipeErrors
from hf_lskd.recipe import parse_recipe, recipe_from_dict

TRANSLATION = """
name: pairs
task: translation
data: {source: cldr, source_lang: en, target_lang: de}
training: {max_tokens: 100}
teacher: {model: marian}
students:
  - {model: marian}
  - {name: taught, model: marian, targets: teacher}
grid: {label_smoothing: [0], temperature: [1]}
"""


def test_a_translation_recipe_has_decoding_eta_and_projection_by_default() -> None:
    recipe = parse_recipe(TRANSLATION)
    assert recipe.decoding is not None
    assert recipe.decoding.beams == 4
    assert recipe.eta is not None
    assert (recipe.eta.min_count, recipe.eta.sets) == (20, None)  # null: by the teacher's output embedding
    assert recipe.projection is not None
    assert [student.targets for student in recipe.students] == ["gold", "teacher"]
    assert recipe_from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_tokens: 100", "max_tokens: 0", "training.max_tokens"),
        ("max_tokens: 100", "predict_with_generate: true", "decoding"),
        ("targets: teacher", "targets: silver", "gold | teacher | both"),
        ("source_lang: en, ", "", "data.source_lang"),
        ("source: cldr", "source: digits", "cldr | text | dataset | wit3 | fairseq | gettext"),
        ("name: pairs", "name: pairs\nswitches: {channels_last: true}", "it is for images"),
        ("name: pairs", "name: pairs\ndecoding: {beams: 0}", "decoding.beams"),
        ("name: pairs", "name: pairs\neta: {sets: wordnet}", "null, or the path of a JSON file, in translation"),
    ],
)
def test_a_translation_recipe_with_a_mistake_is_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(RecipeErrors, match=re.escape(message)):
        parse_recipe(TRANSLATION.replace(old, new))


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("training: {max_tokens: 5}", "training.max_tokens"),
        ("decoding: {beams: 2}", "decoding for images"),
        ("eta: null\nstudents: [{model: test_byobnet, targets: teacher}]", "students[0].targets"),
    ],
)
def test_keys_of_translation_are_refused_for_images(page: str, message: str) -> None:
    students = "" if "students" in page else "student: {model: test_byobnet}\n"
    text = (
        f"name: t\ndata: {{source: digits}}\nteacher: {{model: test_byobnet}}\n{students}{page}\n"
        "grid: {label_smoothing: 0, temperature: 1}\n"
    )
    with pytest.raises(RecipeErrors) as error:
        parse_recipe(text)
    assert message.replace("[0]", "") in str(error.value).replace("[0]", "").replace(".0.", ".")

"""The paper's nine experiments: planned whole without any data, and trained for two steps on small data in the real format."""

import csv
import json
from pathlib import Path

import pytest

from hf_lskd.analysis.wordnet import usual_places
from hf_lskd.cli import main
from hf_lskd.paper import pair_names, paper_pair
from hf_lskd.recipe import Recipe, load_recipe
from hf_lskd.study.grid import cells, teachers
from tests import imagenet_files
from tests.test_data_cub200 import write_folder
from tests.test_data_wit3 import release

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
NINE = sorted(path for folder in ("imagenet1k", "cub200", "iwslt") for path in (RECIPES / folder).glob("*.yaml"))
SMALL = {  # training arguments: two steps on a processor
    "max_steps": 2,
    "per_device_eval_batch_size": 8,
    "bf16": "false",
    "eval_strategy": '"no"',
    "save_strategy": '"no"',
    "dataloader_num_workers": 0,
    "dataloader_persistent_workers": "false",
    "dataloader_prefetch_factor": "null",
    "dataloader_pin_memory": "false",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A place for each source, in its publisher's own format."""
    folder = tmp_path_factory.mktemp("data")
    for pair in ("en-de", "en-ru"):
        (folder / pair).mkdir()
        for name, content in release(pair).items():
            (folder / pair / name.replace(f"{pair}.de", f"{pair}.{pair[3:]}")).write_bytes(content)
    return {
        "imagenet": imagenet_files.write_tree(folder / "imagenet"),
        "cub200": write_folder(folder / "CUB_200_2011"),
        "en-de": folder / "en-de",
        "en-ru": folder / "en-ru",
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def changes(recipe: Recipe, data: dict[str, Path]) -> list[str]:
    """Another place, random weights, two steps, and one cell of each role."""
    found = [f"training.{key}={value}" for key, value in SMALL.items()]
    found += ["grid.label_smoothing=[0.1]", "grid.temperature=[2]", "eta.min_similar=2"]
    if recipe.task == "translation":
        pair = f"en-{recipe.data.options['target_lang']}"
        return [*found, f"data.path={data[pair]}", "data.vocab_size=120", "training.max_tokens=256", "eta.min_count=1"]
    found += [f"data.path={data[recipe.data.source]}", "training.per_device_train_batch_size=4"]
    found += ["teacher.pretrained=false", "students.0.pretrained=false"]
    if recipe.data.source == "imagenet":
        found += ["data.subset=true", "projection.classes=[golden retriever, Labrador retriever, water snake]"]
        found += [] if any(place.exists() for place in usual_places()) else ["eta=null"]
    return found


def test_nine_recipes_plan_seventy_two_students_and_their_teachers() -> None:
    recipes = {
        path.stem if path.parent.name == "iwslt" else f"{path.parent.name}_{path.stem}": load_recipe(path)
        for path in NINE
    }
    assert len(recipes) == 9
    students, taught, seeds = set(), set(), set()
    for name, recipe in recipes.items():
        seeds |= {len(recipe.grid.seed)}
        for cell in cells(recipe):
            if cell.role == "student":
                students.add((name, cell.label_smoothing, cell.temperature))
        own = json.dumps([recipe.data.to_dict(), recipe.training_of(recipe.teacher), recipe.teacher.model])
        taught |= {(own, cell.label_smoothing, cell.seed) for cell in teachers(recipe)}
    assert len(students) == 72
    assert seeds == {3}
    assert len(taught) == 4 * 2 * 3  # ImageNet, birds and two languages: recipes of one data set share their teachers


def test_each_recipe_names_its_table_and_every_pair_has_a_recipe() -> None:
    named = [student.paper for path in NINE for student in load_recipe(path).students]
    assert sorted(map(str, named)) == sorted(pair_names())
    for path in NINE:
        recipe = load_recipe(path)
        pair = paper_pair(str(recipe.students[0].paper))
        assert pair.top_k == recipe.grid.kd_top_k[0]
        assert recipe.grid.temperature == (1.0, 2.0, 3.0, 64.0)
        control = load_recipe(path, "scale_control")
        assert control.grid.kd_loss_scale == (1.0, "equalised")


def test_a_single_run_as_in_the_paper_is_an_option(capsys: pytest.CaptureFixture) -> None:
    for path in NINE:
        assert main(["study", str(path), "--seeds", "1", "--dry-run"]) == 0
        rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        assert [row[0] for row in rows].count("student") == 8
        assert [row[0] for row in rows].count("teacher") == 2


@pytest.mark.slow
@pytest.mark.parametrize("path", NINE, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_pair_trains_for_two_steps_at_full_size_on_data_in_the_real_format(
    path: Path, data: dict[str, Path], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_LSKD_CACHE", str(runs / "cache"))
    recipe = load_recipe(path)
    folder = runs / recipe.name
    asked = changes(recipe, data)
    words = [word for change in asked for word in ("--set", change)]
    assert main(["study", str(path), "--output-dir", str(folder), "--seeds", "1", *words]) == 0
    records = [json.loads(file.read_text()) for file in sorted(folder.glob("cells/*/record.json"))]
    assert sorted(record["role"] for record in records) == ["student", "teacher"]
    for record in records:
        assert record["status"] == "complete"
        assert record["recipe"]["changes"] == asked
        assert record["recipe"]["data"].get("image_size", 224) == 224
    assert main(["compare", str(folder)]) == 0
    with (folder / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} == {"cell", "claim"}
    earlier = [
        other for other in NINE[: NINE.index(path)] if other.parent == path.parent and path.parent.name != "iwslt"
    ]
    if any((runs / load_recipe(other).name).is_dir() for other in earlier):
        assert any("taken_from" in record for record in records)  # its teacher was finished already


def test_the_page_of_the_experiments_has_a_row_for_each_recipe() -> None:
    page = (RECIPES.parent / "docs" / "paper.md").read_text(encoding="utf-8")
    for path in NINE:
        recipe = load_recipe(path)
        place = path.relative_to(RECIPES.parent)
        row = (
            f"| [{path.parent.name}/{path.stem}](../{place}) | {recipe.teacher.model} | {recipe.students[0].model} | 8 × 3 | 6 | "
            f"`hf-lskd study {place}` |"
        )
        assert row in page

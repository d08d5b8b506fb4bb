"""A study's S1 and S2 by `eta.sets`: what eta.csv names and measures for each source, on cells that are trained once."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_lskd.analysis import ClassStatistics, diffusion_index
from hf_lskd.analysis.wordnet import Nouns
from hf_lskd.cli import main
from hf_lskd.data.images import ArrayImages, ImageSource
from hf_lskd.errors import InputError
from hf_lskd.recipe import recipe_from_dict
from hf_lskd.study.classes import sets_of_study, similar_sets, synsets_of
from hf_lskd.tasks import open_task
from tests.tiny_study import CLASSES, changed, dump, values, write_images
from tests.wordnet_files import Entry, noun_file

# Six classes by their ids: two kinds of three.
ENTRIES: dict[str, Entry] = {
    "thing": (["thing"], []),
    "left": (["left"], ["thing"]),
    "right": (["right"], ["thing"]),
    **{f"l{i}": ([f"l{i}"], ["left"]) for i in range(3)},
    **{f"r{i}": ([f"r{i}"], ["right"]) for i in range(3)},
}
NOUNS, IDS = noun_file(ENTRIES)
NAMES = [IDS[name] for name in ("l0", "r0", "l1", "r1", "l2", "r2")]


def with_sets(recipe: dict[str, Any], sets: str | None) -> dict[str, Any]:
    return changed(recipe, "eta.sets", sets)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Without groups; class names are synset ids."""
    recipe = values(write_images(tmp_path_factory.mktemp("images")))
    del recipe["data"]["groups"], recipe["projection"]
    recipe = changed(changed(recipe, "data.class_names", NAMES), "grid.label_smoothing", [0.1])
    return recipe | {"eta": {"min_similar": 2, "dissimilar": 2, "sets": "centroids"}, "projection": None}


@pytest.fixture(scope="module")
def run(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., int]:
    """The study with another eta.sets: cells are made by the first call, the others only write tables."""
    folder = tmp_path_factory.mktemp("study")
    torch.set_num_threads(1)

    def study(sets: str, **others: Any) -> int:
        page = dump(with_sets(recipe, sets) | others, folder / "recipe.yaml")
        return main(["study", str(page), "--output-dir", str(folder / "run")])

    study.folder = folder / "run"  # type: ignore[attr-defined]
    assert study("centroids") == 0
    return study


def eta_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "eta.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def source(folder: Path) -> str:
    """What every row of eta.csv names as the source of its sets."""
    (signature,) = {row["sets"] for row in eta_rows(folder)}
    return signature.split("|")[0]


def test_each_source_is_named_with_its_eta(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run.folder
    assert source(folder) == "sets:centroids@teacher-a0.1-s0"
    (tmp_path / "data.noun").write_bytes(NOUNS)
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    made = (folder / "cells" / "teacher-a0.1-s0" / "record.json").read_bytes()
    assert run("wordnet") == 0
    assert source(folder) == "sets:wordnet-3.0"
    assert len({row["target"] for row in eta_rows(folder)}) == 6
    page = tmp_path / "sets.json"
    page.write_text(json.dumps({NAMES[2]: {"similar": [NAMES[0]], "dissimilar": [NAMES[1], NAMES[5]]}}))
    assert run(str(page)) == 0
    assert source(folder) == "sets:file"
    assert {row["target"] for row in eta_rows(folder)} == {NAMES[2]}
    assert (folder / "cells" / "teacher-a0.1-s0" / "record.json").read_bytes() == made  # no cell was made again
    assert "sets:file|targets:1" in (folder / "report.html").read_text(encoding="utf-8")


def test_centroids_are_those_of_the_teachers_training_split(run: Any) -> None:
    folder = run.folder
    place = folder / "cells" / "teacher-a0.1-s0" / "statistics.safetensors"
    kept = load_file(place)
    drawn = ClassStatistics(6, 16).update(torch.randn(60, 16, generator=torch.manual_seed(3)), torch.arange(60) % 6)
    save_file(kept | drawn.to_tensors("train."), place)  # so that the two splits have other neighbours
    assert run("centroids") == 0
    means = {
        name: ClassStatistics.from_tensors(load_file(folder / "cells" / name / "statistics.safetensors"), "train.").mean
        for name in ("teacher-a0.1-s0", "student-a0.1-T1-s0", "student-a0.1-T2-s0")
    }
    teacher, low, high = means.values()
    for row in [row for row in eta_rows(folder) if row["split"] == "train"]:
        target = NAMES.index(row["target"])
        order = sorted((c for c in range(6) if c != target), key=lambda c: float((teacher[c] - teacher[target]).norm()))
        eta = diffusion_index(low, high, target, order[:2], order[-2:])
        assert float(row["eta_similar"]) == pytest.approx(eta.similar, rel=1e-4)
        assert float(row["eta_dissimilar"]) == pytest.approx(eta.dissimilar, rel=1e-4)
    save_file(kept, place)


def test_confusion_is_that_of_the_teachers_predictions(
    run: Any, recipe: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    folder = run.folder
    place = folder / "cells" / "teacher-a0.1-s0" / "predictions.safetensors"
    said = load_file(place)
    labels = said["label"]
    save_file(said | {"prediction": torch.where(labels == 0, torch.tensor(4), labels)}, place)
    ours = recipe_from_dict(changed(with_sets(recipe, "confusion"), "eta.min_similar", 1))
    records = [{"role": "teacher", "name": "teacher-a0.1-s0"}]
    sets = sets_of_study(folder, ours, open_task(ours), records)
    assert sets is not None
    assert (sets.source, list(sets)) == ("confusion@teacher-a0.1-s0", [0, 4])
    assert sets[0].similar == (4,)
    assert set(sets[0].dissimilar) < {1, 2, 3, 5}
    # with two similar classes asked for there is no target: the study has its other tables, and says why η is missing
    assert run("confusion") == 0
    assert "no class that the teacher confuses with 2 others" in caplog.text
    assert (folder / "results.csv").is_file()
    assert not (folder / "eta.csv").exists()
    assert main(["eta", str(folder)]) == 2
    save_file(said, place)


def test_wordnet_that_is_not_there_costs_no_training(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    page = dump(with_sets(recipe, "wordnet"), tmp_path / "recipe.yaml")
    assert main(["study", str(page), "--output-dir", str(tmp_path / "run")]) == 2
    assert "wordnet-base" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_class_names_that_are_no_ids_need_the_datas_synsets(recipe: dict[str, Any]) -> None:
    ours = recipe_from_dict(changed(with_sets(recipe, "wordnet"), "data.class_names", CLASSES))
    task = open_task(ours)
    with pytest.raises(InputError, match=r"class 'a' is no WordNet id.*synsets"):
        similar_sets(ours, task)
    task.synsets = tuple(NAMES)
    assert synsets_of(task) == tuple(NAMES)
    assert [Nouns(NOUNS).synset(int(name[1:])).words for name in synsets_of(task)][1] == ("r0",)


def test_a_source_of_images_has_a_synset_for_each_class_or_none() -> None:
    images = ArrayImages(torch.zeros(2, 4, 4, dtype=torch.uint8).numpy(), torch.arange(2).numpy())
    assert ImageSource(images, images, ("a", "b"), None, "f", "d").synsets is None
    with pytest.raises(InputError, match=r"1 synsets.*one a class: 2"):
        ImageSource(images, images, ("a", "b"), None, "f", "d", synsets=("n00000001",))


def test_targets_that_the_file_leaves_out_are_refused(recipe: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "sets.json"
    page.write_text(json.dumps({name: {"similar": [NAMES[0]], "dissimilar": [NAMES[1]]} for name in NAMES[2:4]}))
    ours = changed(with_sets(recipe, str(page)), "eta.targets", [NAMES[3]])
    sets = similar_sets(recipe_from_dict(ours), open_task(recipe_from_dict(ours)))
    assert sets is not None
    assert list(sets) == [3]
    ours = recipe_from_dict(changed(ours, "eta.targets", [NAMES[3], NAMES[5]]))
    with pytest.raises(InputError, match=f"{NAMES[5]}.*does not name"):
        similar_sets(ours, open_task(ours))

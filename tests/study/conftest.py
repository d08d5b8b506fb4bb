"""A recipe of tiny cells, its finished study, and a command that runs a study."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from hf_lskd.cli import main
from tests.study.files import Study
from tests.tiny_study import changed, dump, finished_study, values, write_images


@pytest.fixture(scope="package")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="package")
def recipe(images: Path) -> dict[str, Any]:
    return values(images)


@pytest.fixture(scope="package")
def quick(recipe: dict[str, Any]) -> dict[str, Any]:
    """The same study without projections, which cost as much as its cells."""
    return changed(recipe, "projection", None)


@pytest.fixture(scope="package")
def done(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study; tests that change it take a copy."""
    return finished_study(recipe, tmp_path_factory.mktemp("study"))


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "run"))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Run `hf-lskd study` on recipe values; the folder is the same in one test."""

    def run(recipe: dict[str, Any], *options: str, folder: Path | None = None) -> int:
        path = dump(recipe, tmp_path / "recipe.yaml")
        return main(["study", str(path), "--output-dir", str(folder or tmp_path / "run"), *options])

    return run

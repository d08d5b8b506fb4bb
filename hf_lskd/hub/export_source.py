"""What is exported: a finished model's folder, its record, and the data that judge it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lskd.errors import InputError
from hf_lskd.models.files import folder_config
from hf_lskd.record import FILE, Cell, file_sha256, model_folder, read_record

if TYPE_CHECKING:
    from hf_lskd.recipe import ModelSpec, Recipe
    from hf_lskd.tasks.task import Task

IMAGES, TRANSLATION = "image_classification", "translation"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class Source:
    """A model's folder, what kind of work it does, the record of its cell and the recipe of its data, where there are any."""

    folder: Path
    name: str
    kind: str
    config: Mapping[str, Any]
    record: Mapping[str, Any] | None = None
    recipe: "Recipe | None" = None
    own_data: bool = False  # the recipe is the cell's

    @cached_property
    def task(self) -> "Task | None":
        """The recipe's data, opened; None where no recipe says which."""
        from hf_lskd.tasks import open_task

        return None if self.recipe is None else open_task(self.recipe)

    @property
    def spec(self) -> "ModelSpec":
        """How the recipe's data are prepared for this model: as in its cell, else as its own folder says."""
        assert self.recipe is not None
        assert self.task is not None
        if self.record is not None and self.own_data:
            return self.task.spec(Cell.of(self.record))
        return replace(self.recipe.students[0], model=str(self.folder), model_args={})

    @property
    def size(self) -> int:
        """Bytes of the weights' files."""
        return sum(file.stat().st_size for file in self.weight_files)

    @property
    def weight_files(self) -> list[Path]:
        return sorted(file for pattern in WEIGHTS for file in self.folder.glob(pattern))

    def facts(self) -> dict[str, Any]:
        """What an export came from, by name, hash and recorded metrics."""
        cell = None if self.record is None else self.folder.parent / FILE
        metrics = {} if self.record is None else self.record["metrics"]
        return {
            "name": self.name,
            "architecture": self.config.get("architecture") or (self.config.get("architectures") or ["unknown"])[0],
            "weights_sha256": {file.name: file_sha256(file) for file in self.weight_files},
            "record_sha256": None if cell is None else file_sha256(cell),
            "recorded": {key: metrics[key] for key in ("top1", "bleu") if key in metrics},
        }


def open_source(path: Path, data: Path | None = None) -> Source:
    """The model in a cell's folder or in its own, with the data of the recipe `data`, else of the cell's record.

    Raises InputError for a folder that is not there, holds no model or an unfinished cell, and for data of another task.
    """
    if not path.is_dir():
        raise InputError(
            f"{path} {'is a file' if path.is_file() else 'does not exist'}",
            "the folder of a finished cell, or one written by save_pretrained",
        )
    folder = model_folder(path).resolve()
    config = folder_config(folder)
    cell = folder.parent if (folder.parent / FILE).is_file() and model_folder(folder.parent) == folder else None
    record = None if cell is None else read_record(cell)
    kind = TRANSLATION if config.get("is_encoder_decoder") else IMAGES
    name = folder.name if cell is None else cell.name
    return Source(folder, name, kind, config, record, recipe_of(record, data, kind), data is None)


def recipe_of(record: Mapping[str, Any] | None, data: Path | None, kind: str) -> "Recipe | None":
    from hf_lskd.recipe import load_recipe, recipe_from_dict

    if data is None and record is None:
        return None
    recipe = load_recipe(data) if data is not None else recipe_from_dict((record or {})["recipe"], "the cell's record")
    if recipe.task != kind:
        raise InputError(f"--data {data} is a recipe of {recipe.task}", f"one of {kind}, as the model is")
    return recipe

"""YAML <-> typed recipe: what is studied, on which data, with which teacher and students, over which grid.

The only reader of recipes. It opens no data, no model and no Hub: `hf-lskd validate` and `--dry-run` work anywhere.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from hf_lskd.errors import InputError
from hf_lskd.recipe_changes import alternatives_of, with_changes
from hf_lskd.recipe_data import has_groups
from hf_lskd.recipe_schema import read_recipe
from hf_lskd.recipe_yaml import Document, read_document, read_page


@dataclass(frozen=True)
class DataSpec:
    """The data block: `options` are the keys of this source and those that every source knows, defaults filled in."""

    source: str
    options: Mapping[str, Any]

    @property
    def has_groups(self) -> bool:
        """Whether classes come in semantic groups, which η and an automatic projection need."""
        return has_groups(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        return {"source": self.source, **self.options}


@dataclass(frozen=True)
class ModelSpec:
    """A model by name or path. `pretrained`: true, false or a path of weights; `model_args` go to timm.create_model;
    `training` are the role's own training arguments, on top of the recipe's."""

    model: str | None
    pretrained: bool | str = False
    model_args: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TeacherSpec(ModelSpec):
    """The teacher. `path` maps each label smoothing of the grid to a finished teacher; None: teachers are trained.
    `shared`: one that a study beside this one has finished with the same signature is taken over in place of training.
    `seed`: that of the one teacher that the students of all seeds learn from; None: each from that of its own seed.
    `ensemble`: the seeds of the teachers that each student of their α learns from, all at once. Its targets are the mean of
    what `ensemble_of` says, the tempered "probabilities" or the "logits"."""

    path: Mapping[float, str] | None = None
    shared: bool = False
    seed: int | None = None
    ensemble: tuple[int, ...] | None = None
    ensemble_of: str = "probabilities"


@dataclass(frozen=True)
class StudentSpec(ModelSpec):
    """A student; `name` tells students of one study apart. `targets`: what it learns to say, the data's own ("gold"), its
    teacher's translations of the training text ("teacher"; Kim & Rush 2016), or both. `paper`: the pair of the paper's tables
    that it is compared with (hf_lskd.paper), which changes nothing of how it is trained."""

    name: str = "student"
    targets: str = "gold"
    paper: str | None = None


@dataclass(frozen=True)
class Grid:
    """The axes of a study. `label_smoothing` is the teacher's α, `student_label_smoothing` the student's own."""

    label_smoothing: tuple[float, ...]
    temperature: tuple[float, ...]
    seed: tuple[int, ...] = (0,)
    kd_weight: tuple[float, ...] = (1.0,)
    kd_loss_scale: tuple[float | str, ...] = (1.0,)
    scale_student: tuple[bool, ...] = (True,)
    student_label_smoothing: tuple[float, ...] = (0.0,)
    kd_top_k: tuple[int | None, ...] = (None,)


@dataclass(frozen=True)
class EtaSpec:
    """How η is taken: `targets` are "all" or class names, `reference` the normaliser of `diffusion_index`.

    `sets` is where S1 and S2 come from: of images the data's "groups", "wordnet", the first teacher's "centroids" or
    "confusion", or the path of a JSON file. In translation classes are target tokens with at least `min_count` occurrences
    in each split; S1 are the `min_similar` nearest and S2 the `dissimilar` farthest of them by the teacher's output
    embedding (`sets` None), or what the file `sets` says."""

    targets: str | tuple[str, ...] = "all"
    min_similar: int = 4
    dissimilar: int = 20
    seed: int = 0
    reference: str = "sets"
    min_count: int = 20
    sets: str | None = None


@dataclass(frozen=True)
class DecodingSpec:
    """How translations are made: beam search of `beams`, scores divided by length**`length_penalty`, at most `max_length`
    tokens (None: by the source's length)."""

    beams: int = 4
    length_penalty: float = 1.0
    max_length: int | None = None


@dataclass(frozen=True)
class ProjectionSpec:
    """Which three classes are projected: "auto" or (target, similar, dissimilar)."""

    classes: str | tuple[str, ...] = "auto"


@dataclass(frozen=True)
class Switches:
    """Options of training that are no training arguments of transformers, or that hold for all cells alike.

    `data_seed`: the seed that every cell, whatever its own, draws the order and the augmentation of its data from; None: from
    its own."""

    ema: float | None = None
    sync_batchnorm: bool = False
    channels_last: bool = False
    teacher_cache: str | int = "none"  # or "logits", or how many classes are kept
    data_seed: int | None = None


@dataclass(frozen=True)
class Recipe:
    """A checked recipe with every default of ours filled in. `training` holds what the page gives, sorted by name;
    the rest are transformers' defaults."""

    name: str
    task: str
    data: DataSpec
    training: Mapping[str, Any]
    teacher: TeacherSpec
    students: tuple[StudentSpec, ...]
    grid: Grid
    eta: EtaSpec | None
    projection: ProjectionSpec | None
    switches: Switches
    decoding: DecodingSpec | None = None  # of translation
    changes: tuple[
        str, ...
    ] = ()  # what was laid over the page: an alternative of its own, settings of the command line

    def training_of(self, spec: ModelSpec) -> dict[str, Any]:
        """Training arguments of the teacher or of a student: the recipe's, overridden by the role's own."""
        return {**self.training, **spec.training}

    def data_seed(self, seed: int) -> int:
        """What a cell of this seed draws the order and the augmentation of its data from."""
        return seed if self.switches.data_seed is None else self.switches.data_seed

    def replace_seeds(self, count: int) -> "Recipe":
        """The recipe with `count` seeds: the first of its own, then those that follow its largest.

        Raises InputError for less than one.
        """
        if count < 1:
            raise InputError(f"{count} seeds", "at least 1")
        given = self.grid.seed
        seeds = (*given, *range(max(given) + 1, max(given) + 1 + count))[:count]
        return replace(self, grid=replace(self.grid, seed=seeds))

    def to_dict(self) -> dict[str, Any]:
        """Fully resolved and JSON-able; `recipe_from_dict` and `parse_recipe(to_yaml())` give an equal recipe back."""
        paths = self.teacher.path
        return {
            "name": self.name,
            "task": self.task,
            "data": self.data.to_dict(),
            "training": dict(self.training),
            "teacher": {
                **_model_dict(self.teacher),
                "path": paths and {str(a): path for a, path in paths.items()},
                **({"shared": True} if self.teacher.shared else {}),
                **({"seed": self.teacher.seed} if self.teacher.seed is not None else {}),
                **({"ensemble": list(self.teacher.ensemble)} if self.teacher.ensemble else {}),
                **({"ensemble_of": self.teacher.ensemble_of} if self.teacher.ensemble_of != "probabilities" else {}),
            },
            "students": [
                {
                    "name": student.name,
                    **_model_dict(student),
                    **({"targets": student.targets} if student.targets != "gold" else {}),
                    **({"paper": student.paper} if student.paper is not None else {}),
                }
                for student in self.students
            ],
            "grid": {key: list(values) for key, values in vars(self.grid).items()},
            "eta": None if self.eta is None else _plain(_eta_dict(self.eta, self.task)),
            "projection": None if self.projection is None else _plain(vars(self.projection)),
            "switches": {
                key: value for key, value in vars(self.switches).items() if key != "data_seed" or value is not None
            },
            **({} if self.decoding is None else {"decoding": dict(vars(self.decoding))}),
            **({"changes": list(self.changes)} if self.changes else {}),
        }

    def to_yaml(self) -> str:
        """`to_dict` as a YAML page."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


def load_recipe(path: str | Path, alternative: str | None = None, settings: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe file, with one of its alternatives and `settings` (KEY=VALUE) laid over it.

    Raises InputError for a file that cannot be read or is no YAML, RecipeErrors with every problem of its content.
    """
    return _recipe_of(with_changes(read_document(read_page(path), str(path)), alternative, settings))


def recipe_alternatives(path: str | Path) -> list[str]:
    """Names of the alternatives that a recipe file has. Errors as `load_recipe`."""
    return alternatives_of(read_document(read_page(path), str(path)))


def parse_recipe(text: str, path: str = "<string>") -> Recipe:
    """A recipe from YAML text; `path` names it in messages. Errors as `load_recipe`."""
    return _recipe_of(with_changes(read_document(text, path)))


def recipe_from_dict(values: Mapping[str, Any], path: str = "<recipe>") -> Recipe:
    """A recipe from values, such as a study.json holds. Errors as `load_recipe`, without line numbers."""
    return _recipe_of(Document(path, values))


def same_in_all_seeds(page: Mapping[str, Any]) -> list[str]:
    """In words, what a student's seeds have in common by a resolved recipe, so that no interval over them holds its change."""
    teacher, switches = page.get("teacher") or {}, page.get("switches") or {}
    taught = any(teacher.get(key) is not None for key in ("seed", "ensemble", "path"))
    ordered = switches.get("data_seed") is not None
    teachers = "the teachers" if len(teacher.get("ensemble") or ()) > 1 else "the teacher"
    return ["the order of the data"] * ordered + [teachers] * taught


def _recipe_of(document: Document) -> Recipe:
    page = read_recipe(document)
    options = dict(page["data"])
    return Recipe(
        name=page["name"],
        task=page["task"],
        data=DataSpec(options.pop("source"), options),
        training=page["training"],
        teacher=TeacherSpec(**_tuples(page["teacher"])),
        students=tuple(StudentSpec(**student) for student in page["students"]),
        grid=Grid(**_tuples(page["grid"])),
        eta=None if page["eta"] is None else EtaSpec(**_tuples(page["eta"])),
        projection=None if page["projection"] is None else ProjectionSpec(**_tuples(page["projection"])),
        switches=Switches(**page["switches"]),
        decoding=None if page["decoding"] is None else DecodingSpec(**page["decoding"]),
        changes=tuple(page["changes"]),
    )


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def signature(mapping: Mapping[Any, Any]) -> str:
    """SHA-256 (hex) over canonical JSON: sorted keys, and numbers by value, so 1 and 1.0 have the same signature.

    Raises ValueError for NaN and infinities, TypeError for what JSON cannot hold.
    """
    page = json.dumps(_canonical(mapping), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(page.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(_canonical(key)): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _eta_dict(eta: EtaSpec, task: str) -> dict[str, Any]:
    ours = {} if task == "translation" else {"min_count"}  # tokens only
    return {key: value for key, value in vars(eta).items() if key not in ours}


def _model_dict(spec: ModelSpec) -> dict[str, Any]:
    given = {"model_args": dict(spec.model_args), "training": dict(spec.training)}
    return {"model": spec.model, "pretrained": spec.pretrained, **given}

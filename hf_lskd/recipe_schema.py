"""The keys of a recipe and what each may be; and the checks that look at several keys together."""

from collections.abc import Mapping
from typing import Any

from hf_lskd.errors import nearest
from hf_lskd.paper import pair_names
from hf_lskd.recipe_data import SOURCES, has_groups, read_data
from hf_lskd.recipe_fields import (
    INVALID,
    Field,
    Kind,
    block,
    boolean,
    choice,
    either,
    free_mapping,
    integer,
    label,
    listed,
    name,
    number,
    optional,
    read_mapping,
    text,
    to_number,
)
from hf_lskd.recipe_training import check_together, training_block
from hf_lskd.recipe_yaml import Document, KeyPath, Problems, describe


def _pretrained(problems: Problems, value: Any, at: KeyPath, allowed: str) -> Any:
    if isinstance(value, str) and value.lower() not in ("true", "false", "yes", "no"):
        return text(problems, value, at, allowed)
    return boolean(problems, value, at, allowed)


def _teacher_paths(problems: Problems, value: Any, at: KeyPath, allowed: str) -> Any:
    """One path, kept as text until the grid is known, or {label smoothing: path}."""
    if not isinstance(value, dict) or not value:
        return text(problems, value, at, allowed)
    found = {}
    for key, path in value.items():
        place = (*at, str(key))
        try:
            smoothing = float(to_number(key))
        except ValueError:
            problems.add(place, describe(key), "a label smoothing of the grid as key", key=True)
        else:
            found[smoothing] = text(problems, path, place)
    return found


def _paper(problems: Problems, value: Any, at: KeyPath, allowed: str) -> Any:
    """A pair of the paper's tables; their file is read only where a recipe names one."""
    return choice(*pair_names())(problems, value, at)


SEED = integer(0, 2**32 - 1)
MODEL: dict[str, Field] = {
    "model": Field(text, required=True),
    "pretrained": Field(Kind("true, false, or the path of weights", _pretrained), False),
    "model_args": Field(free_mapping, {}),
    "training": Field(training_block, {}),
}
TEACHER: dict[str, Field] = {
    **MODEL,
    "model": Field(optional(text)),
    "path": Field(optional(Kind("the path of a finished teacher, or {label smoothing: path}", _teacher_paths))),
    "shared": Field(boolean, False),
    "seed": Field(optional(SEED)),
    "ensemble": Field(optional(listed(SEED, unique=True))),
    "ensemble_of": Field(choice("probabilities", "logits"), "probabilities"),
}
STUDENT: dict[str, Field] = {
    "name": Field(name, "student"),
    **MODEL,
    "targets": Field(choice("gold", "teacher", "both"), "gold"),
    "paper": Field(optional(Kind("a pair of the paper's tables", _paper))),
}
DECODING: dict[str, Field] = {
    "beams": Field(integer(1), 4),
    "length_penalty": Field(number(), 1.0),
    "max_length": Field(optional(integer(1))),
}
GRID: dict[str, Field] = {
    "label_smoothing": Field(listed(number(0, below=1), unique=True), [], required=True),
    "temperature": Field(listed(number(above=0), unique=True), [], required=True),
    "seed": Field(listed(SEED, unique=True), [0]),
    "kd_weight": Field(listed(number(0, 1), unique=True), [1.0]),
    "kd_loss_scale": Field(listed(either(number(above=0), choice("equalised")), unique=True), [1.0]),
    "scale_student": Field(listed(boolean, unique=True), [True]),
    "student_label_smoothing": Field(listed(number(0, below=1), unique=True), [0.0]),
    "kd_top_k": Field(listed(optional(integer(1)), unique=True), [None]),
}
GRID_ELSEWHERE = {
    **dict.fromkeys(("alpha", "smoothing", "label_smoothing_factor"), "Use label_smoothing."),
    **dict.fromkeys(("T", "t", "tau", "kd_temperature"), "Use temperature."),
    "kd_scale_student": "Use scale_student.",
    "data_seed": "Use switches.data_seed: it is one for all cells.",
    "student": "Use students, beside grid.",
}
ETA: dict[str, Field] = {
    "targets": Field(either(choice("all"), listed(label, unique=True, single=False)), "all"),
    "min_similar": Field(integer(1), 4),
    "dissimilar": Field(integer(1), 20),
    "seed": Field(integer(0), 0),
    "reference": Field(choice("sets", "all", "none"), "sets"),
    "min_count": Field(integer(1), 20),
    "sets": Field(optional(text, "groups | wordnet | centroids | confusion, or the path of a JSON file")),
}
SETS = ("groups", "wordnet", "centroids", "confusion")  # of images; what is none of these is a path
THREE_CLASSES = listed(label, length=3, unique=True, single=False)
PROJECTION: dict[str, Field] = {
    "classes": Field(Kind("auto, or [target, similar, dissimilar]", either(choice("auto"), THREE_CLASSES).read), "auto")
}
SWITCHES: dict[str, Field] = {
    "ema": Field(optional(number(above=0, below=1))),
    "sync_batchnorm": Field(boolean, False),
    "channels_last": Field(boolean, False),
    "teacher_cache": Field(either(integer(1), choice("none", "logits")), "none"),
    "data_seed": Field(optional(SEED)),
}
_kept = Kind("a mapping", lambda problems, value, at, allowed: value)


def _read_switches(problems: Problems, value: Any, at: KeyPath, allowed: str) -> Any:
    return block(SWITCHES)(problems, {} if value is None else value, at)


_switches = Kind("a mapping", _read_switches)
STUDENT_ELSEWHERE = {
    "seed": "Use grid.seed; teacher.seed gives the students of all seeds one teacher.",
    "data_seed": "Use switches.data_seed: it is one for all cells.",
    **dict.fromkeys(("path", "shared", "ensemble", "ensemble_of"), "It belongs to teacher."),
}
_student = block(STUDENT, elsewhere=STUDENT_ELSEWHERE)
_students = listed(_student, single=False)
TOP: dict[str, Field] = {
    "name": Field(name, "", required=True),
    "task": Field(choice(*SOURCES), "image_classification"),
    "data": Field(_kept, required=True),  # read by the task's own schema
    "training": Field(training_block, {}),
    "teacher": Field(block(TEACHER), required=True),
    "students": Field(_students),
    "student": Field(_student),
    "grid": Field(block(GRID, elsewhere=GRID_ELSEWHERE), required=True),
    "eta": Field(optional(block(ETA))),
    "projection": Field(optional(block(PROJECTION))),
    "decoding": Field(optional(block(DECODING))),
    "switches": Field(_switches, {key: field.default for key, field in SWITCHES.items()}),
    "changes": Field(listed(text, single=False), []),  # noted by what changes a page
}
TOP_ELSEWHERE = {
    "model": "Use teacher.model and students.",
    **{key: f"Use grid.{key}." for key in GRID},
    **{key: f"Use switches.{key}." for key in SWITCHES},
    **dict.fromkeys(("mixup", "cutmix", "augmentation", "augmentation_versions"), "It belongs to data."),
    **dict.fromkeys(("epochs", "learning_rate", "optim", "batch_size"), "It belongs to training."),
}


def read_recipe(document: Document) -> dict[str, Any]:
    """A checked page with every default filled in: name, task, data, training, teacher, students, grid, switches as
    plain values; eta and projection null when they are off. Raises RecipeErrors with all problems at once."""
    problems, page = Problems(document), document.values
    if not isinstance(page, Mapping):
        problems.add((), describe(page), "a mapping with name, task, data, teacher, students and grid")
        problems.raise_if_any()
    found = read_mapping(problems, page, (), TOP, elsewhere=TOP_ELSEWHERE)
    found["data"] = read_data(problems, page["data"], found["task"]) if "data" in page else {}
    students = _one_or_more_students(problems, page, found)
    _check_teacher(problems, found["teacher"] or {}, found["grid"] or {})
    _check_ensemble(problems, found)
    roles = [(("teacher",), found["teacher"]), *students]
    for at, role in roles:
        own = (role or {}).get("training") or {}
        if own or found["training"]:
            check_together(problems, found["training"], own, (*at, "training"))
    _check_sets(problems, found)
    _check_groups(problems, page, found)
    _check_task(problems, page, found)
    problems.raise_if_any()
    del found["student"]
    return {**found, "students": [student for _, student in students]}


SENTENCES = ("max_tokens",)  # training arguments that only sentences have


def _one_or_more(found: Mapping[str, Any]) -> list[tuple[KeyPath, Any]]:
    places: list[tuple[KeyPath, Any]] = [(("students", i), one) for i, one in enumerate(found["students"] or [])]
    return [(at, one) for at, one in [*places, (("student",), found["student"])] if isinstance(one, dict)]


def _check_cache(problems: Problems, found: Mapping[str, Any]) -> None:
    """A teacher's logits can be kept for data that look the same in every epoch only, those of one teacher, and enough of them."""
    data, grid = found["data"] or {}, found["grid"] or {}
    kept = (found["switches"] or {}).get("teacher_cache", "none")
    if kept != "none" and (found["teacher"] or {}).get("ensemble"):
        problems.add(("switches", "teacher_cache"), f"{kept} with an ensemble", "none, or one teacher", key=True)
    wanted = max((k for k in grid.get("kd_top_k") or () if isinstance(k, int)), default=0)
    if isinstance(kept, int) and wanted > kept:
        problems.add(
            ("switches", "teacher_cache"), f"{kept} with kd_top_k {wanted}", f"{wanted} or more, or logits", key=True
        )
    if kept != "none" and (found["training"] or {}).get("dataloader_drop_last"):
        problems.add(("switches", "teacher_cache"), f"{kept} with dataloader_drop_last", "one of the two", key=True)
    versions = data.get("augmentation_versions")
    for key in ("mixup", "cutmix") if versions is not None else ("augmentation", "mixup", "cutmix"):
        if kept != "none" and data.get(key) not in (None, "none", 0):
            allowed = f"none, or no {key}" + ", or data.augmentation_versions beside it" * (key == "augmentation")
            problems.add(("switches", "teacher_cache"), f"{kept} with data.{key}", allowed, key=True)


def _check_task(problems: Problems, page: Mapping[str, Any], found: dict[str, Any]) -> None:
    """Keys that one kind of work has and another has not; decoding is on for translation."""
    for at, own in [((), found), (("teacher",), found["teacher"]), *_one_or_more(found)]:
        for key in (own or {}).get("training") or {}:
            if key in SENTENCES and found["task"] != "translation":
                problems.add(
                    (*at, "training", key), "a training argument of translation", "task: translation", key=True
                )
    for at, student in _one_or_more(found):
        if student["paper"] is not None and student["paper"] not in pair_names(found["task"]):
            allowed = ", ".join(pair_names(found["task"]))
            problems.add((*at, "paper"), f"{student['paper']}, a pair of another task", allowed)
    _check_cache(problems, found)
    if found["task"] == "translation":
        for key in ("sync_batchnorm", "channels_last"):
            if found["switches"] and found["switches"][key]:
                problems.add(("switches", key), "true", "false: it is for images", key=True)
        found["decoding"] = found["decoding"] or read_mapping(problems, {}, ("decoding",), DECODING)
        return
    if "decoding" in page:
        problems.add(("decoding",), "decoding for images", "task: translation beside it", key=True)
    found["decoding"] = None
    for i, student in enumerate(found["students"] or []):
        if isinstance(student, dict) and student["targets"] != "gold":
            problems.add(("students", i, "targets"), describe(student["targets"]), "gold, in image classification")
    if isinstance(page.get("eta"), Mapping) and "min_count" in page["eta"]:
        problems.add(("eta", "min_count"), "a key of translation", "task: translation beside it", key=True)


def _check_sets(problems: Problems, found: Mapping[str, Any]) -> None:
    """Where S1 and S2 come from fits the task; a word that is neither a source nor looks like a path is a slip."""
    sets = (found["eta"] or {}).get("sets")
    if sets is None:
        return
    if found["task"] == "translation":
        if sets in SETS:
            problems.add(("eta", "sets"), describe(sets), "null, or the path of a JSON file, in translation")
    elif sets not in SETS and not any(mark in sets for mark in "./\\"):
        problems.add(("eta", "sets"), describe(sets), ETA["sets"].kind.allowed, nearest(sets, SETS))


def _check_groups(problems: Problems, page: Mapping[str, Any], found: dict[str, Any]) -> None:
    """η and an automatic projection need groups, or S1 and S2 from elsewhere: where there are some, both are on unless the
    page says null. The sets of images are the groups unless the page says otherwise."""
    if not found["data"]:
        return  # a data block that could not be read says nothing about groups
    known = has_groups(found["data"])
    for key, fields in (("eta", ETA), ("projection", PROJECTION)):
        if key not in page and known:
            found[key] = read_mapping(problems, {}, (key,), fields)
        if key == "eta" and found["eta"] and found["task"] != "translation":
            found["eta"]["sets"] = found["eta"]["sets"] or "groups"
            known = known or found["eta"]["sets"] != "groups"
        if found[key] is not None and not known and found[key].get("classes", "auto") == "auto":
            others = f"data.groups beside it, or eta.sets: {' | '.join(SETS[1:])} | a JSON file"
            allowed = f"null, or {others}" if key == "eta" else f"null, three classes, {others}"
            problems.add((key,), "a setting for data without groups", allowed, key=True)


def _one_or_more_students(
    problems: Problems, page: Mapping[str, Any], found: Mapping[str, Any]
) -> list[tuple[KeyPath, dict[str, Any]]]:
    """The students of `students:` (a list) or `student:` (one mapping) and where they stand; their names differ."""
    if "student" in page and "students" in page:
        problems.add(("student",), "student beside students", "one of the two", key=True)
    if "student" not in page and "students" not in page:
        problems.add(("students",), "nothing", "a list of at least one student", "This key is required.")
    students: list[tuple[KeyPath, dict[str, Any]]] = []
    places: list[KeyPath] = [("students", i) for i in range(len(found["students"] or []))] or [("student",)]
    for at, student in zip(places, found["students"] or [found["student"]]):
        if student is INVALID or student is None:
            continue
        named = not problems.concerns((*at, "name"))
        if named and student["name"] in [other["name"] for _, other in students]:
            hint = "Give each student a name of its own."
            problems.add((*at, "name"), f"{describe(student['name'])} twice", "each name once", hint)
        students.append((at, student))
    return students


def _check_ensemble(problems: Problems, found: Mapping[str, Any]) -> None:
    """Several teachers are trained ones, and they say no translation together."""
    teacher = found["teacher"] or {}
    if not teacher.get("ensemble"):
        return
    if teacher["path"] is not None:
        hint = "For finished ones make each a cell, `hf-lskd train --role teacher`, and a student with --teacher A B."
        problems.add(("teacher", "ensemble"), "an ensemble beside path", "one of the two", hint, key=True)
    if teacher["seed"] is not None:
        problems.add(("teacher", "ensemble"), "an ensemble beside seed", "one of the two", key=True)
    for at, student in _one_or_more(found):
        if student["targets"] != "gold":
            hint = "Several teachers give each token's probabilities together; a translation is one teacher's."
            problems.add((*at, "targets"), f"{student['targets']} of an ensemble", "gold", hint)


def _check_teacher(problems: Problems, teacher: dict[str, Any], grid: Mapping[str, Any]) -> None:
    """A model to train, or a finished teacher for each label smoothing of the grid. Turns one path into a mapping."""
    smoothings = [a for a in grid.get("label_smoothing", []) if a is not INVALID]
    path = teacher.get("path")
    unnamed = teacher and teacher["model"] is None and not problems.concerns(("teacher", "model"))
    if unnamed and path is None and not problems.concerns(("teacher", "path")):
        problems.add(
            ("teacher", "model"), "nothing", "text", "Name a model to train, or give the path of a finished teacher."
        )
    if isinstance(path, str):
        if len(smoothings) > 1:
            wanted = "{" + ", ".join(f"{a}: path" for a in smoothings) + "}"
            problems.add(("teacher", "path"), "one path for several label smoothings", wanted)
        teacher["path"] = dict.fromkeys(smoothings, path)
    elif path is not None:
        for a in sorted(path.keys() - set(smoothings)):
            problems.add(
                ("teacher", "path", str(a)), "a label smoothing outside the grid", f"one of {describe(smoothings)}"
            )
        for a in sorted(set(smoothings) - path.keys()):
            problems.add(("teacher", "path"), f"no path for label smoothing {a}", "a path for each of the grid's")
        teacher["path"] = {a: path[a] for a in smoothings if a in path}

"""The `data:` block of a recipe, source by source. What the samples are is `hf_lskd.data`'s business; here are the keys."""

from collections.abc import Mapping
from typing import Any

from hf_lskd.errors import nearest
from hf_lskd.recipe_fields import (
    INVALID,
    Field,
    Kind,
    block,
    boolean,
    choice,
    either,
    integer,
    label,
    listed,
    number,
    optional,
    read_mapping,
    text,
)
from hf_lskd.recipe_yaml import KeyPath, Problems, describe


def _groups_by_class(problems: Problems, value: Any, at: KeyPath, allowed: str) -> Any:
    """{class: group}; both may look like numbers."""
    if not isinstance(value, dict) or not value:
        problems.add(at, describe(value), allowed)
        return INVALID
    return {str(key): label(problems, group, (*at, str(key))) for key, group in value.items()}


groups = optional(
    either(Kind("a mapping {class: group}", _groups_by_class), listed(label, single=False), text),
    "a list of groups in the order of the classes, a mapping {class: group}, a JSON file with one of these, or null",
)

_files = either(text, listed(text, length=2, single=False))

SOURCES: dict[str, dict[str, dict[str, Field]]] = {
    "image_classification": {
        "glyphs": {
            "fonts": Field(text, "matplotlib"),
            "letters": Field(optional(text)),
            "size": Field(integer(8), 20),
            "variants": Field(integer(0), 7),
            "held_out": Field(optional(either(number(above=0, below=1), listed(text, unique=True, single=False)))),
            "seed": Field(integer(0), 0),
            "min_group": Field(integer(1), 5),
        },
        "digits": {"validation": Field(number(above=0, below=1), 0.2), "seed": Field(integer(0), 0)},
        "idx": {
            "path": Field(text, required=True),
            "class_names": Field(optional(listed(label, unique=True, single=False))),
            "groups": Field(groups),
            "max_train": Field(optional(integer(1))),
            "max_validation": Field(optional(integer(1))),
        },
        "dataset": {
            "name": Field(text, required=True),
            "train_split": Field(text, "train"),
            "validation_split": Field(text, "validation"),
            "image_column": Field(optional(text)),
            "label_column": Field(optional(text)),
            "groups": Field(groups),
        },
        "imagenet": {
            "path": Field(text, required=True),
            "subset": Field(boolean, False),
            "max_train": Field(optional(integer(1))),
            "max_validation": Field(optional(integer(1))),
            "groups": Field(groups),
            "draft": Field(boolean, False),
        },
        "cub200": {
            "path": Field(text, required=True),
            "crop_to_box": Field(boolean, False),
            "groups": Field(groups),
            "draft": Field(boolean, False),
        },
    },
    "translation": {
        "cldr": {
            "scope": Field(choice("everyday", "full"), "everyday"),
            "pairs": Field(integer(1), 20000),
            "validation_pairs": Field(integer(1), 200),
            "test_pairs": Field(integer(1), 400),
            "seed": Field(integer(0), 0),
        },
        "text": {
            "train": Field(_files, required=True),
            "validation": Field(optional(_files)),
            "test": Field(optional(_files)),
            "validation_pairs": Field(integer(1), 500),
            "seed": Field(integer(0), 0),
        },
        "dataset": {
            "name": Field(text, required=True),
            "train_split": Field(text, "train"),
            "validation_split": Field(text, "validation"),
            "test_split": Field(optional(text)),
            "column": Field(optional(text)),
        },
        "wit3": {
            "path": Field(text, required=True),
            "year": Field(integer(2014, 2017), 2014),
            "preparation": Field(choice("paper", "plain"), "paper"),
        },
        "fairseq": {
            "path": Field(text, required=True),
            "subwords": Field(choice("subword_nmt", "sentencepiece", "kept"), "subword_nmt"),
            "tokenised": Field(boolean, False),
        },
        "gettext": {
            "paths": Field(listed(text, unique=True), required=True),
            "validation_pairs": Field(integer(1), 200),
            "seed": Field(integer(0), 0),
        },
    },
}


def _low_high(low: float, high: float) -> Kind:
    """Two numbers, the lower first."""
    pair = listed(number(low, high), length=2, single=False)

    def read(problems: Problems, value: Any, at: KeyPath, allowed: str) -> Any:
        found = pair(problems, value, at, allowed)
        if found is not INVALID and INVALID not in found and found[0] > found[1]:
            problems.add(at, describe(value), "the lower number first")
            return INVALID
        return found

    return Kind(f"[low, high], each in [{low:g}, {high:g}]", read)


def _or_switch(kind: Kind, on: Any) -> Kind:
    """The kind; true stands for a usual setting, false or null for leaving it out."""

    def read(problems: Problems, value: Any, at: KeyPath, allowed: str) -> Any:
        return on if value is True else None if value is False else kind(problems, value, at, allowed)

    return optional(Kind(kind.allowed, read))


_CROP = {"scale": Field(_low_high(1e-3, 1), [0.08, 1.0]), "ratio": Field(_low_high(1e-3, 100), [3 / 4, 4 / 3])}
_JITTER = {
    key: Field(number(0, 0.5 if key == "hue" else 10), 0.0) for key in ("brightness", "contrast", "saturation", "hue")
}
AUGMENTATION: dict[str, Field] = {
    "random_resized_crop": Field(_or_switch(block(_CROP), {key: field.default for key, field in _CROP.items()})),
    "horizontal_flip": Field(_or_switch(number(0, 1), 0.5)),
    "rotation": Field(optional(number(0, 180))),
    "grayscale": Field(_or_switch(number(0, 1), 0.5)),
    "color_jitter": Field(optional(block(_JITTER))),
    "shift": Field(optional(integer(0))),
}


def _augmentation(problems: Problems, value: Any, at: KeyPath, allowed: str) -> Any:
    """none, standard, or the transforms by name; those left out stay out."""
    found = either(choice("none", "standard"), block(AUGMENTATION))(problems, value, at, allowed)
    return {key: item for key, item in found.items() if item is not None} if isinstance(found, dict) else found


augmentation = Kind(f"none, standard, or a mapping with {', '.join(AUGMENTATION)}", _augmentation)

COMMON: dict[str, dict[str, Field]] = {
    "image_classification": {
        "image_size": Field(optional(integer(1))),
        "mean": Field(optional(listed(number(), length=3))),
        "std": Field(optional(listed(number(above=0), length=3))),
        "crop_pct": Field(optional(number(above=0, high=1))),
        "augmentation": Field(augmentation, "none"),
        "augmentation_versions": Field(optional(integer(1))),
        "mixup": Field(number(0), 0.0),
        "cutmix": Field(number(0), 0.0),
    },
    "translation": {
        "source_lang": Field(text, required=True),
        "target_lang": Field(text, required=True),
        "tokenizer": Field(optional(text)),
        "vocab_size": Field(integer(16), 8000),
        "max_length": Field(integer(2), 175),
    },
}


def read_data(problems: Problems, value: Any, task: str) -> dict[str, Any]:
    """The data block of a task with every default filled in; the source decides which keys there are."""
    sources = SOURCES[task]
    name = value.get("source") if isinstance(value, dict) else None
    if not isinstance(value, dict):
        problems.add(("data",), describe(value), f"a mapping with source: {' | '.join(sources)}")
        return {}
    if not isinstance(name, str) or name not in sources:
        received = "nothing" if "source" not in value else describe(name)
        hint = nearest(name, list(sources)) if isinstance(name, str) else ""
        problems.add(("data", "source"), received, " | ".join(sources), hint)
        return {}
    fields = {"source": Field(choice(*sources)), **sources[name], **COMMON[task]}
    others = {key for keys in sources.values() for key in keys if key not in fields and not nearest(key, list(fields))}
    elsewhere = {
        key: f"It belongs to source: {', '.join(other for other, keys in sources.items() if key in keys)}."
        for key in others
    }
    found = read_mapping(problems, value, ("data",), fields, elsewhere=elsewhere)
    _check_groups(problems, found)
    _check_versions(problems, found)
    return found


def has_groups(data: Mapping[str, Any]) -> bool:
    """Whether the data come with semantic groups, without which there is no S1 and S2."""
    in_data = data.get("source") in ("glyphs", "cub200") or data.get("groups") is not None
    return in_data or "target_lang" in data  # tokens are near and far in the teacher's own embedding


def _check_versions(problems: Problems, data: dict[str, Any]) -> None:
    """Versions are of an augmentation, unmixed. A page without the key stays as it was before there was one."""
    at = ("data", "augmentation_versions")
    if data.get(at[1]) is None:
        data.pop(at[1], None)
        return
    if data.get("augmentation") in (None, "none", {}) and not problems.concerns(("data", "augmentation")):
        problems.add(at, "versions without augmentation", "data.augmentation beside it, or no versions", key=True)
    for key in ("mixup", "cutmix"):
        if data.get(key):
            problems.add(at, f"versions with data.{key}", f"no {key}, or no versions", key=True)


def _check_groups(problems: Problems, data: Mapping[str, Any]) -> None:
    """Groups and class names that are both written out have to fit."""
    names, groups = data.get("class_names"), data.get("groups")
    if names is None or groups is None or isinstance(groups, str):
        return
    at = ("data", "groups")
    if isinstance(groups, list) and len(groups) != len(names):
        problems.add(at, f"{len(groups)} groups", f"one a class: {len(names)}")
    if isinstance(groups, dict):
        for key in sorted(groups.keys() - set(names)):
            problems.add(
                (*at, key), f"the unknown class {describe(key)}", "names in data.class_names", nearest(key, names)
            )
        for key in sorted(set(names) - groups.keys()):
            problems.add(at, f"no group for {describe(key)}", "a group for each class")

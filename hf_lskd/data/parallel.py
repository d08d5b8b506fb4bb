"""From a recipe's data block to parallel text, whatever it is read from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_lskd.data.pairs import Pairs, ParallelSource
from hf_lskd.data.text_files import checked, load_text, warn_if_swapped
from hf_lskd.errors import InputError


def load_parallel(data: Mapping[str, Any], *, cache_dir: Path | None = None) -> ParallelSource:
    """The splits of the source that `data` names. Raises InputError for what cannot be read, with file and line."""
    source = data["source"]
    if source == "text":
        return load_text(data)
    if source == "dataset":
        return load_dataset_pairs(data, cache_dir)
    if source == "cldr":
        from hf_lskd.data.cldr import load_cldr

        return load_cldr(data)
    if source == "wit3":
        from hf_lskd.data.wit3 import load_wit3

        return load_wit3(data, cache_dir)
    if source == "gettext":
        from hf_lskd.data.gettext import load_gettext

        return load_gettext(data)
    raise InputError(f"data.source: {source}", "cldr, text, dataset, wit3 or gettext")


def load_dataset_pairs(data: Mapping[str, Any], cache_dir: Path | None = None) -> ParallelSource:
    """Pairs of a dataset of the Hub, a folder, or a parquet or arrow file: its column of type Translation, or any that holds a
    mapping of both languages, or `data["column"]`."""
    from hf_lskd.data.hf import open_dataset, take_split

    name = str(data["name"])
    splits = open_dataset(name, cache_dir)

    def pairs(spec: str, split: str) -> Pairs:
        rows = take_split(splits, spec, split, name)
        column = translation_column(rows, data)
        sides: tuple[list[str], list[str]] = ([], [])
        for number, row in enumerate(rows.select_columns([column])[column]):
            for side, language in zip(sides, (data["source_lang"], data["target_lang"])):
                side.append(checked(str(row.get(language) or ""), f"{name}, {spec}, row {number}", language))
        return Pairs(*sides)

    train = pairs(data["train_split"], "train")
    warn_if_swapped(train, data["source_lang"], data["target_lang"])
    validation = pairs(data["validation_split"], "validation")
    test = None if data["test_split"] is None else pairs(data["test_split"], "test")
    return ParallelSource(train, validation, data["source_lang"], data["target_lang"], test, {"corpus": name})


def translation_column(rows: Any, data: Mapping[str, Any]) -> str:
    """The column that holds both languages. Raises InputError when there is none, or several."""
    languages = {data["source_lang"], data["target_lang"]}
    able = [column for column, feature in rows.features.items() if languages <= languages_of(feature)]
    wanted = data.get("column")
    found = able if wanted is None else [column for column in able if column == wanted]
    if len(found) != 1:
        columns = ", ".join(f"{column} ({feature})" for column, feature in rows.features.items())
        raise InputError(
            f"{len(found)} columns with {' and '.join(sorted(languages))} among: {columns}",
            "one column of type Translation, or a mapping of both languages",
            "Name it by data.column.",
        )
    return found[0]


def languages_of(feature: Any) -> set[str]:
    """The languages that a column holds, by what `datasets` says of it."""
    return set(getattr(feature, "languages", None) or (feature if isinstance(feature, Mapping) else ()))

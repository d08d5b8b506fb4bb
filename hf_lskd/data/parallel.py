"""From a recipe's data block to parallel text, whatever it is read from."""

import logging
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hf_lskd.data.pairs import Pairs, ParallelSource
from hf_lskd.data.text_files import checked, counted, load_text, shared_sources
from hf_lskd.errors import InputError, nearest

logger = logging.getLogger(__name__)

SAMPLE = 2000  # sentences that the languages are guessed from
SCRIPTS = {
    "CYRILLIC": {"be", "bg", "kk", "ky", "mk", "mn", "ru", "tg", "uk"},
    "ARABIC": {"ar", "fa", "ps", "ur"},
    "GREEK": {"el"},
    "HEBREW": {"he", "yi"},
    "DEVANAGARI": {"hi", "mr", "ne"},
    "BENGALI": {"as", "bn"},
    "TAMIL": {"ta"},
    "TELUGU": {"te"},
    "THAI": {"th"},
    "HANGUL": {"ko"},
    "CJK": {"ja", "zh"},
    "GEORGIAN": {"ka"},
    "ARMENIAN": {"hy"},
}
# Letters by which a language is told from others of its script; English has none.
LETTERS = {
    "be": "ўі", "bg": "ъщ", "cs": "áčďéěíňóřšťúůýž", "da": "æøå", "de": "äöüß", "es": "áéíóúñ", "fi": "äö", "fr": "éèêëàâçîïôûùœ",
    "hu": "áéíóöőúüű", "it": "àèéìòù", "nb": "æøå", "no": "æøå", "pl": "ąćęłńóśźż", "pt": "ãõçáéíóúâê", "ro": "ăâîșțşţ",
    "ru": "ыэъё", "sk": "áäčďéíľňóôšťúýž", "sv": "åäö", "tr": "çğıöşü", "uk": "іїєґ",
}  # fmt: skip
JSON_KINDS = (".json", ".jsonl")


def load_parallel(data: Mapping[str, Any], *, cache_dir: Path | None = None) -> ParallelSource:
    """The splits of the source that `data` names.

    `cache_dir` is where what was unpacked is kept (default: $HF_LSKD_CACHE, else ~/.cache/hf_lskd). Warns when source and
    target of a user's own files look swapped. Raises InputError for what cannot be read, with file and line.
    """
    source = data["source"]
    if source in ("text", "dataset"):
        found = load_text(data) if source == "text" else load_dataset_pairs(data, cache_dir)
        warn_if_swapped(found.train, found.source_lang, found.target_lang)
        return found
    if source == "cldr":
        from hf_lskd.data.cldr import load_cldr

        return load_cldr(data)
    if source == "wit3":
        from hf_lskd.data.wit3 import load_wit3

        return load_wit3(data, cache_dir)
    if source == "gettext":
        from hf_lskd.data.gettext import load_gettext

        return load_gettext(data)
    if source == "fairseq":
        from hf_lskd.data.fairseq_binary import load_fairseq

        return load_fairseq(data)
    raise InputError(f"data.source: {source}", "cldr, text, dataset, wit3, gettext or fairseq")


# ---- Datasets


def load_dataset_pairs(data: Mapping[str, Any], cache_dir: Path | None = None) -> ParallelSource:
    """Pairs of a dataset of the Hub, a folder, or one file: its column of type Translation or a struct with both languages.

    `column` names it where there are several. Raises InputError for what cannot be opened, and for rows without text.
    """
    from hf_lskd.data.hf import take_split

    name = str(data["name"])
    splits = open_splits(name, cache_dir)

    def pairs(split: str) -> Pairs:
        rows = take_split(splits, data[f"{split}_split"], split, name)
        column = translation_column(rows, data)
        sides: tuple[list[str], list[str]] = ([], [])
        for number, row in enumerate(rows.select_columns([column])[column]):
            for side, language in zip(sides, (data["source_lang"], data["target_lang"])):
                side.append(text_of(row, language, f"{name}, {data[f'{split}_split']}, row {number}"))
        if not sides[0]:
            raise InputError(f"{name}: no rows in {data[f'{split}_split']}", "at least one pair")
        return Pairs(*sides)

    train, validation = pairs("train"), pairs("validation")
    test = None if data["test_split"] is None else pairs("test")
    read = len(train) + len(validation) + len(test or ())
    facts = {
        "corpus": name,
        **counted(read, train, validation, test, {}),
        **shared_sources(train, validation, test),
    }
    return ParallelSource(train, validation, data["source_lang"], data["target_lang"], test, facts)


def open_splits(name: str, cache_dir: Path | None) -> Any:
    """The splits of a dataset; one JSON-lines file too, which images never come in."""
    from hf_lskd.data.hf import open_dataset

    path = Path(name).expanduser()
    if not (path.is_file() and path.name.removesuffix(".gz").endswith(JSON_KINDS)):
        return open_dataset(name, cache_dir)
    import datasets

    kept = None if cache_dir is None else str(cache_dir / "datasets")
    try:
        return datasets.load_dataset("json", data_files=str(path), cache_dir=kept)
    # Whatever the builder and pyarrow raise is about this file.
    except Exception as error:
        lines = str(error.__cause__ or error).strip().splitlines() or [""]
        raise InputError(f"data.name: {name!r} cannot be opened ({lines[0]})", "JSON, an object a line") from error


def text_of(row: Any, language: str, where: str) -> str:
    text = row.get(language) if isinstance(row, Mapping) else None
    if text is not None and not isinstance(text, str):
        raise InputError(f"{where}: {language} is {type(text).__name__}", "text")
    return checked(text or "", where, language)


def translation_column(rows: Any, data: Mapping[str, Any]) -> str:
    """The column that holds both languages. Raises InputError when there is none, or several."""
    languages = {data["source_lang"], data["target_lang"]}
    able = [column for column, feature in rows.features.items() if languages <= languages_of(feature)]
    wanted = data["column"]
    found = able if wanted is None else [column for column in able if column == wanted]
    if len(found) != 1:
        columns = ", ".join(f"{column} ({feature})" for column, feature in rows.features.items())
        hint = "Name it by data.column." if wanted is None else nearest(wanted, list(rows.features))
        named = "" if wanted is None else f" of the name {wanted!r}"
        raise InputError(
            f"{len(found)} columns{named} with {' and '.join(sorted(languages))} among: {columns}",
            "one column of type Translation, or a struct of both languages",
            hint,
        )
    return found[0]


def languages_of(feature: Any) -> set[str]:
    """The languages that a column has a text in, by its type."""
    import datasets

    if isinstance(feature, datasets.Translation):
        return set(feature.languages)
    return set(feature) if isinstance(feature, Mapping) else set()


# ---- Source and target the wrong way round


def warn_if_swapped(pairs: Pairs, source: str, target: str) -> None:
    """Warn when the script, or else the letters, of one language stand on the side of the other."""
    texts = [evenly(side) for side in (pairs.sources, pairs.targets)]
    right, wrong = [], []
    for language, what, sign in signs(base(source), base(target)):
        shares = [share(side, sign) for side in texts]
        own, other = shares if language == base(source) else shares[::-1]
        floor = 0.1 if what == "script" else 0.002
        if own > 5 * other + floor:
            right.append(language)
        if other > 5 * own + floor:
            wrong.append(
                f"{what} of {language!r} is {100 * other:.1f} % of the other side and {100 * own:.1f} % of its own"
            )
    if wrong and not right:
        logger.warning(
            "Source and target look swapped: the %s. Is source_lang %s and target_lang %s?",
            *("; the ".join(wrong), source, target),
        )


def signs(source: str, target: str) -> list[tuple[str, str, Callable[[str], bool]]]:
    """(language, "script" or "share of letters", test of a letter) for what tells the two languages apart."""
    scripts = {language: script_of(language) for language in (source, target)}
    if scripts[source] != scripts[target]:
        return [(key, "script", written_in(name)) for key, name in scripts.items() if name is not None]
    found = []
    for language, other in ((source, target), (target, source)):
        own = set(LETTERS.get(language, "")) - set(LETTERS.get(other, ""))
        if own:
            found.append((language, "share of own letters", among(own | {letter.upper() for letter in own})))
    return found


def base(language: str) -> str:
    return language.replace("-", "_").split("_")[0].lower()


def script_of(language: str) -> str | None:
    """None stands for Latin and for languages that are not listed."""
    return next((script for script, languages in SCRIPTS.items() if language in languages), None)


def written_in(script: str) -> Callable[[str], bool]:
    return lambda letter: script_of_letter(letter) == script


def among(letters: Collection[str]) -> Callable[[str], bool]:
    return lambda letter: letter in letters


@cache
def script_of_letter(letter: str) -> str:
    name = unicodedata.name(letter, "").split(" ")[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA") else name


def evenly(texts: Sequence[str]) -> Sequence[str]:
    """At most about `SAMPLE` texts from everywhere."""
    return texts[:: max(1, len(texts) // SAMPLE)]


def share(texts: Sequence[str], sign: Callable[[str], bool]) -> float:
    """The part of all letters that `sign` holds for."""
    letters = [character for text in texts for character in text if character.isalpha()]
    return sum(map(sign, letters)) / max(len(letters), 1)

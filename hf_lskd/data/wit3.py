"""The TED archives of IWSLT 2014 and 2017 (WIT3), as published: a folder, a pair's .tgz, or a year's archive around it."""

import hashlib
import html
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from hf_lskd.data.archives import archive_members, folder_members, keep_files
from hf_lskd.data.cache import cache_folder
from hf_lskd.data.pairs import Pairs, ParallelSource
from hf_lskd.data.text_files import checked, counted, lines_in
from hf_lskd.errors import InputError

Rows = list[tuple[str, str]]
NAME = re.compile(
    r"train\.tags\.(?P<train>[a-z-]+)\.(?P<side>[a-z-]+)"
    r"|IWSLT(?P<year>\d\d)\.(?P<set>TEDX?\.(?:dev|tst)\d{4})\.(?P<pair>[a-z-]+)\.(?P<language>[a-z-]+)\.xml"
)
ESCAPED = re.compile(r"&(?:amp|lt|gt|quot|apos|#\d+);")  # and no bare &
TAGGED = re.compile(r"\s*</?[A-Za-z]+(?:\s[^>]*)?/?>")
KEPT_TAGS = re.compile(r"</?(?:title|description)>")  # by fairseq: the text between them is trained on
SEGMENT = re.compile(r"<seg\b[^>]*>(.*?)(?=</seg>|<seg\b|</doc>|\Z)", re.DOTALL)
PAPER_TEST = ("dev2010", "dev2012", "tst2010", "tst2011", "tst2012")
LONGEST, LONGEST_WORD, RATIO, EVERY = 175, 1000, 1.5, 23


@dataclass(frozen=True)
class Release:
    """The files of one pair by their names, as they are; `label` is the pair as the archive writes it, either way round."""

    place: str
    label: str
    languages: tuple[str, str]
    files: Mapping[str, bytes]

    def lines(self, name: str) -> list[str]:
        return [line for _, line in lines_in(self.files[name], f"{self.place}: {name}")]


def load_wit3(data: Mapping[str, Any], cache_dir: Path | None = None) -> ParallelSource:
    """TED talks of `year` from `path`, prepared as `preparation` says.

    plain: text as it is, without titles; dev2010 (else the first dev set) for validation, all tst sets for the test.
    paper: as fairseq's prepare-iwslt14: titles stay, Moses tokens in lower case, training of 1–175 tokens a side and at most
    1.5 times as many as the other, of which every 23rd line is for validation; dev2010, dev2012, tst2010–2012 for the test.
    What is read from an archive is kept below `cache_dir`. Raises InputError for a pair or a set that is not there, an
    archive that is cut off or hostile, and files that do not fit each other.
    """
    languages = (wit3_code(data["source_lang"]), wit3_code(data["target_lang"]))
    year = int(data["year"])
    release = open_release(Path(data["path"]).expanduser(), languages, year, cache_dir)
    left_out = Counter[str]()
    prepare = paper if data["preparation"] == "paper" else plain
    train, validation, test, facts = prepare(release, year, left_out)
    splits = [Pairs([s for s, _ in rows], [t for _, t in rows]) for rows in (train, validation, test)]
    held = splits[2] if test else None
    read = sum(map(len, splits)) + left_out.total()
    own = {"corpus": f"WIT3 {year}", "archive": release.label, "preparation": data["preparation"], **facts}
    counts = counted(read, splits[0], splits[1], held, left_out)
    return ParallelSource(
        splits[0],
        splits[1],
        data["source_lang"],
        data["target_lang"],
        held,
        {**own, **counts},
        tokenised=data["preparation"] == "paper",
    )


def unescaped(text: str) -> str:
    return ESCAPED.sub(lambda found: html.unescape(found[0]), text)


def wit3_code(language: str) -> str:
    return language.replace("_", "-").lower()


# ---- Preparation


def plain(release: Release, year: int, left_out: Counter[str]) -> tuple[Rows, Rows, Rows, dict[str, Any]]:
    """(training, validation, test, facts) with the text as it is."""
    sets, missing = read_sets(release, year, left_out, unescaped)
    dev = sorted((name for name in sets if ".dev" in name), key=lambda name: ("dev2010" not in name, name))
    if not dev:
        raise no_sets(release, year, "a dev set in both languages")
    tests = sorted((name for name in sets if ".tst" in name), key=lambda name: (name.split(".")[1], name))
    train = training_rows(release, left_out, titles=False)
    facts = {"validation_sets": dev[:1], "test_sets": tests, "missing": missing}
    return train, sets[dev[0]], [row for name in tests for row in sets[name]], facts


def paper(release: Release, year: int, left_out: Counter[str]) -> tuple[Rows, Rows, Rows, dict[str, Any]]:
    """(training, validation, test, facts) as fairseq prepares IWSLT'14."""
    tokenizers, version = moses(release.languages)
    sets, _ = read_sets(release, year, left_out, lambda text: text.replace("’", "'"), PAPER_TEST)
    tests = [name for wanted in PAPER_TEST for name in sorted(sets) if name.endswith(wanted)]
    if not tests:
        raise no_sets(release, year, f"one of {', '.join(PAPER_TEST)} in both languages")
    raw = training_rows(release, left_out, titles=True)
    tokens: Iterator[tuple[str, str]] = ((tokenizers[0](source), tokenizers[1](target)) for source, target in raw)
    kept = [(source.lower(), target.lower()) for source, target in tokens if is_clean(source, target, left_out)]
    if len(kept) < EVERY:
        raise InputError(f"{release.place}: {len(kept)} training lines", f"{EVERY}: every {EVERY}rd is for validation")
    train = [row for number, row in enumerate(kept, start=1) if number % EVERY]
    test = [(tokenizers[0](s).lower(), tokenizers[1](t).lower()) for name in tests for s, t in sets[name]]
    missing = [name for name in PAPER_TEST if not any(found.endswith(name) for found in tests)]
    facts = {"tokenizer": f"sacremoses {version}, escaped", "validation_sets": [f"every {EVERY}rd training line"],
             "test_sets": tests, "missing": missing}  # fmt: skip
    return train, kept[EVERY - 1 :: EVERY], test, facts


def moses(languages: Sequence[str]) -> tuple[list[Callable[[str], str]], str]:
    """A tokenizer a language, and the version."""
    try:
        import sacremoses
    except ImportError as error:
        raise InputError("preparation: paper without sacremoses", "sacremoses", "pip install sacremoses") from error
    made = [sacremoses.MosesTokenizer(lang=language.split("-")[0]) for language in languages]
    return [partial(tokenizer.tokenize, return_str=True) for tokenizer in made], sacremoses.__version__


def is_clean(source: str, target: str, left_out: Counter[str]) -> bool:
    """Whether Moses' clean-corpus keeps the pair with 1–175 tokens and ratio 1.5; the reason is counted if not."""
    words = source.split(), target.split()
    shorter, longer = sorted(map(len, words))
    reasons = (
        (shorter < 1, "empty"),
        (longer > LONGEST, f"over {LONGEST} tokens"),
        (longer > RATIO * shorter, f"ratio over {RATIO}"),
        (any(len(word) > LONGEST_WORD for side in words for word in side), f"a word over {LONGEST_WORD} characters"),
    )
    reason = next((name for failed, name in reasons if failed), None)
    if reason:
        left_out[reason] += 1
    return reason is None


# ---- The two formats


def training_rows(release: Release, left_out: Counter[str], *, titles: bool) -> Rows:
    """Sentences of train.tags.*: lines that begin with a tag are metadata, though titles and descriptions stay if asked for.

    A line that is metadata on either side is left out on both. Raises InputError when the sides have different lengths.
    """
    names = [f"train.tags.{release.label}.{language}" for language in release.languages]
    sides = [[sentence(line, titles) for line in release.lines(name)] for name in names]
    if len(sides[0]) != len(sides[1]):  # one side may lack metadata lines
        left_out["metadata"] += max(side.count(None) for side in sides)
        sides = [[text for text in side if text is not None] for side in sides]
    if len(sides[0]) != len(sides[1]):
        counts = " and ".join(f"{len(side)} sentences in {name}" for side, name in zip(sides, names))
        raise InputError(f"{release.place}: {counts}", "as many in both", "The archive is damaged: fetch it again.")
    rows: Rows = []
    for number, (source, target) in enumerate(zip(*sides), start=1):
        if source is None or target is None:
            left_out["metadata"] += 1
        elif not source or not target:
            left_out["empty"] += 1
        else:
            where = f"{release.place}: {names[0]}, sentence {number}"
            rows.append((checked(source, where), checked(target, where)))
    if not rows:
        raise InputError(f"{release.place}: no sentences in {names[0]}", "lines of text between the tags")
    return rows


def sentence(line: str, titles: bool) -> str | None:
    """The line's text; None for metadata."""
    text = KEPT_TAGS.sub("", line) if titles else line
    return None if TAGGED.match(text) else text.strip()


def read_sets(
    release: Release, year: int, left_out: Counter[str], clean: Callable[[str], str], only: Sequence[str] = ()
) -> tuple[dict[str, Rows], list[str]]:
    """Rows of each dev and tst set, and the sets that have one language only. Pairs with an empty side are counted."""
    names: dict[str, dict[str, str]] = {}
    for name in release.files:
        match = NAME.fullmatch(name)
        fits = match and match["year"] == f"{year % 100:02d}" and match["language"] in release.languages
        if match and fits and (not only or match["set"].endswith(tuple(only))):
            names.setdefault(match["set"], {})[match["language"]] = name
    sets: dict[str, Rows] = {}
    for key, files in names.items():
        if len(files) == 2:
            sides = [[clean(text) for text in segments(release, files[language])] for language in release.languages]
            if len(sides[0]) != len(sides[1]):
                counts = " and ".join(f"{len(side)} in {files[lang]}" for side, lang in zip(sides, release.languages))
                raise InputError(f"{release.place}: segments: {counts}", "as many in both")
            sets[key] = [row for row in zip(*sides) if all(row)]
            left_out["empty"] += len(sides[0]) - len(sets[key])
    return sets, sorted(f"{key} ({next(iter(files))} only)" for key, files in names.items() if len(files) == 1)


def segments(release: Release, name: str) -> list[str]:
    """What stands in each <seg>, also where the rest is no XML (bare &)."""
    found = SEGMENT.findall("\n".join(release.lines(name)))
    if not found:
        raise InputError(f"{release.place}: {name} has no <seg>", 'IWSLT\'s XML: <seg id="1"> … </seg>')
    return [re.sub(r"\s*\n\s*", " ", text.strip()) for text in found]


def no_sets(release: Release, year: int, allowed: str) -> InputError:
    others = ", ".join(sorted(name for name in release.files if name.endswith(".xml"))) or "none"
    return InputError(
        f"{release.place} has no fitting sets of {year} for {release.label} (XML files found: {others})", allowed
    )


# ---- Where the files are


def open_release(path: Path, languages: tuple[str, str], year: int, cache_dir: Path | None) -> Release:
    """The pair's files from a folder or an archive; what an archive held is kept in the cache, whole or not at all."""
    labels = labels_of(languages)
    try:
        if path.is_dir():
            return collected(folder_members(path, wanted(labels)), languages, str(path))
        state = path.stat()
        identity = repr((str(path.resolve()), state.st_size, state.st_mtime_ns, languages, year))
        kept = cache_folder(cache_dir, "wit3") / hashlib.sha256(identity.encode()).hexdigest()[:20]
        if kept.is_dir():
            return collected(folder_members(kept, wanted(labels)), languages, str(path))
        with path.open("rb") as stream:
            members = archive_members(stream, state.st_size, str(path), wanted(labels))
            release = collected(members, languages, str(path))
    except OSError as error:
        raise InputError(f"data.path: {path}: {error.strerror or error}", "a folder or a .tgz of WIT3") from error
    keep_files(release.files, kept)  # NAME's names: no folders in them
    return release


def collected(members: Iterable[tuple[str, bytes | None]], languages: tuple[str, str], place: str) -> Release:
    """The files of the pair, as it is asked for or the other way round, else those of its .tgz among the members."""
    labels = labels_of(languages)
    found: dict[str, bytes] = {}
    seen: set[str] = set()
    for path, content in members:
        name = PurePosixPath(path).name
        seen |= {name if label_of(name) in labels else label_of(name)}
        if content is not None and name in found:
            raise InputError(
                f"{place} has {name} twice, again as {path}", "one of each", "Name the folder of one year."
            )
        if content is not None:
            found[name] = content
    for label in labels:
        if all(f"train.tags.{label}.{language}" in found for language in languages):
            files = {
                name: content for name, content in found.items() if NAME.fullmatch(name) and label_of(name) == label
            }
            return Release(place, label, languages, files)
    for inner in (f"{label}.tgz" for label in labels if f"{label}.tgz" in found):
        where, packed = f"{place}: {inner}", found[inner]
        files_only = wanted(labels, nested=False)
        return collected(archive_members(io.BytesIO(packed), len(packed), where, files_only), languages, where)
    held = sorted(seen - {""})
    listed = ", ".join(held[:20]) + (", …" if len(held) > 20 else "")
    raise InputError(
        f"{place} has no training text of {' or '.join(labels)} (found: {listed or 'nothing of WIT3'})",
        f"train.tags.{labels[0]}.{languages[0]} and .{languages[1]}, or {labels[0]}.tgz",
    )


def labels_of(languages: tuple[str, str]) -> tuple[str, str]:
    """How an archive may call the pair: talks of either direction have both languages."""
    return "-".join(languages), "-".join(languages[::-1])


def wanted(labels: Sequence[str], nested: bool = True) -> Callable[[str], bool]:
    """Whether a member is to be read, by its name."""

    def test(path: str) -> bool:
        name = PurePosixPath(path).name
        return label_of(name) in labels and (nested or not name.endswith(".tgz"))

    return test


def label_of(name: str) -> str:
    """The pair that a file's name speaks of; empty when it is none of WIT3's."""
    match = NAME.fullmatch(name)
    if match:
        return match["train"] or match["pair"]
    packed = re.fullmatch(r"([a-z]{2,3}(?:-[a-z]+){1,3})\.tgz", name)
    return packed[1] if packed else ""

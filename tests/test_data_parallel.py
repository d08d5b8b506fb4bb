"""Parallel text from disk: what is read, and that every mistake names its file and line."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from hf_lskd.data.parallel import load_parallel
from hf_lskd.errors import InputError

PAIRS = [("the house", "das Haus"), ("a green tree", "ein grüner Baum"), ("two doors", "zwei Türen"), ("old", "alt")]


def text(train: Any, **more: Any) -> dict[str, Any]:
    return {"source": "text", "source_lang": "en", "target_lang": "de", "train": train, "validation": None, "test": None,
            "validation_pairs": 1, "seed": 0, **more}  # fmt: skip


def write(path: Path, content: str | bytes) -> str:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def tsv(pairs: list[tuple[str, str]], end: str = "\n") -> str:
    return "".join(f"{source}\t{target}{end}" for source, target in pairs)


def rows(pairs: Any) -> list[tuple[str, str]]:
    return list(zip(pairs.sources, pairs.targets))


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz", "a.jsonl", "b.jsonl", "c.jsonl.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_one_file_in_every_format(tmp_path: Path, name: str, end: str) -> None:
    styles = {"a": lambda s, t: {"source": s, "target": t}, "b": lambda s, t: {"en": s, "de": t},
              "c": lambda s, t: {"translation": {"en": s, "de": t}}}  # fmt: skip
    lines = [json.dumps(styles[name[0]](*pair), ensure_ascii=False) + end for pair in PAIRS]
    content = tsv(PAIRS, end) if ".tsv" in name else "".join(lines)
    path = write(tmp_path / name, b"\xef\xbb\xbf" + content.encode())
    found = load_parallel(text(path, validation=path, test=path))
    assert rows(found.train) == rows(found.validation) == rows(found.test) == PAIRS


def test_two_files_line_by_line(tmp_path: Path) -> None:
    left = write(tmp_path / "t.en", "\n".join(source for source, _ in PAIRS))  # no newline at the end
    right = write(tmp_path / "t.de.gz", "\n".join(target for _, target in PAIRS) + "\n")
    found = load_parallel(text([left, right], validation=[left, right]))
    assert rows(found.train) == PAIRS


def test_lines_end_with_newlines_only(tmp_path: Path) -> None:
    odd = [("one\u2028line", "eine\x0bZeile"), ("two\x85lines", "zwei")]
    path = write(tmp_path / "a.tsv", tsv(odd))
    assert rows(load_parallel(text(path, validation=path)).train) == odd


def test_validation_is_drawn_by_the_seed_and_leaves_nothing_behind(tmp_path: Path) -> None:
    many = [(f"sentence {i // 2}", f"Satz {i // 2} {i % 2}") for i in range(40)] + [("other", "Satz 3 0")]
    path = write(tmp_path / "a.tsv", tsv(many))
    draws = [load_parallel(text(path, validation_pairs=5, seed=seed)) for seed in (0, 0, 1)]
    assert rows(draws[0].validation) == rows(draws[1].validation) != rows(draws[2].validation)
    for found in draws:
        assert len(found.validation) == 5
        assert not set(found.validation.sources) & set(found.train.sources)
        assert not set(found.validation.targets) & set(found.train.targets)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tb\n\tc\n", r"a.tsv:2: an empty source"),
        (b"a\tb\nc\t \n", r"a.tsv:2: an empty target"),
        (b"a\tb\n\nc\td\n", r"a.tsv:2: an empty line"),
        (b"a\tb\n \t \n", r"a.tsv:2: an empty line"),
        (b"a\tb\nc d\n", r"a.tsv:2: 0 tabs"),
        (b"\xef\xbb\xbf\n", r"a.tsv is empty"),
        (b"a\tb\tc\n", r"a.tsv:1: 2 tabs"),
        (b"a\tb\nc\xff\td\n", r"a.tsv:2: byte 0xff is not UTF-8"),
        (b"a\tb\nc\x00\td\n", r"a.tsv:2: a NUL byte"),
        (b"", r"a.tsv is empty"),
        (b"a\t" + b"b " * 10_001 + b"\n", r"a.tsv:1: a target of 1000\d words"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path / "a.tsv", content)
    with pytest.raises(InputError, match=message):
        load_parallel(text(path, validation=path))


def test_unequal_line_counts_name_the_shorter_file(tmp_path: Path) -> None:
    left, right = write(tmp_path / "t.en", "a\nb\nc\n"), write(tmp_path / "t.de", "a\nb\n")
    with pytest.raises(InputError, match=r"with 3 lines and .*t\.de with 2.*t\.de ends at line 2"):
        load_parallel(text([left, right], validation=[left, right]))


def test_a_damaged_gzip_and_a_missing_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress(tsv(PAIRS).encode())[:-12])
    with pytest.raises(InputError, match=r"a\.tsv\.gz is damaged or cut off"):
        load_parallel(text(str(path)))
    with pytest.raises(InputError, match=r"none\.tsv cannot be read"):
        load_parallel(text(str(tmp_path / "none.tsv")))


def test_an_empty_line_of_two_files_is_named(tmp_path: Path) -> None:
    left, right = write(tmp_path / "t.en", "a\nb\nc\n"), write(tmp_path / "t.de", "a\n\nc\n")
    with pytest.raises(InputError, match=r"t\.de:2: an empty line"):
        load_parallel(text([left, right], validation=[left, right]))


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        '{"en": "a"}',
        '{"en": "a", "de": 3}',
        '{"en": "a", "de": "b"',
        "[" * 100_000,
        '{"translation": null}',
    ],
)
def test_a_json_line_without_a_pair_is_named(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"en": "a", "de": "b"}}\n{line}\n')
    with pytest.raises(InputError, match=r"a\.jsonl:2: no"):
        load_parallel(text(path, validation=path))


@pytest.mark.parametrize("escape", ["\\u0000", "\\ud800"])
def test_json_escapes_that_are_no_text_are_named(tmp_path: Path, escape: str) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"en": "a", "de": "b{escape}"}}\n')
    with pytest.raises(InputError, match=r"a\.jsonl:1: a de with NUL or half a surrogate pair"):
        load_parallel(text(path, validation=path))


def test_facts_count_what_was_read_and_left_out(tmp_path: Path) -> None:
    train = write(
        tmp_path / "a.tsv", tsv([("one", "eins"), ("one", "ein"), ("a", "ein"), ("two", "zwei"), ("2", "zwei")])
    )
    test = write(tmp_path / "t.tsv", tsv(PAIRS))
    found = load_parallel(text(train, test=test, validation_pairs=1, seed=0))
    shared = found.facts["left_out"]["shares a sentence with validation"]
    assert found.facts["pairs"] == {"train": len(found.train), "validation": 1, "test": 4}
    assert found.facts["read"] == 9
    assert shared == 5 - len(found.train) - 1 > 0


def test_seeds_draw_independently(tmp_path: Path) -> None:
    """64 of 256 sentences: two draws have 16 in common on average."""
    path = write(tmp_path / "a.tsv", tsv([(f"sentence {i:03}", f"Satz {i:03}") for i in range(256)]))
    draws = [set(load_parallel(text(path, validation_pairs=64, seed=seed)).validation.sources) for seed in range(10)]
    common = [len(one & other) for i, one in enumerate(draws) for other in draws[:i]]
    assert 12 < sum(common) / len(common) < 20
    assert min(common) > 0


def test_too_many_validation_pairs_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", tsv(PAIRS))
    for count in (4, 5):
        with pytest.raises(InputError, match=f"validation_pairs: {count} of 4 different sentences"):
            load_parallel(text(path, validation_pairs=count))


@pytest.mark.parametrize(
    ("source_lang", "target_lang", "source", "target"),
    [
        ("en", "de", "a green house and a tree", "Größe und Höhe ändern"),
        ("de", "en", "Größe und Höhe ändern", "a green house and a tree"),
        ("en", "ru", "a green house and a tree", "зелёный дом и Linux"),
        ("ru", "uk", "это был большой дом", "це був її будинок"),
        ("ja", "ko", "緑の家です", "초록색 집"),
        ("de", "fi", "Die Größe und Länge müssen stimmen", "hän pitää tästä talosta"),
        ("en", "fr", "the house was built", "la maison a été bâtie"),
    ],
)
def test_swapped_languages_are_warned_of_and_right_ones_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, source_lang: str, target_lang: str, source: str, target: str
) -> None:
    options = {"source_lang": source_lang, "target_lang": target_lang}
    for pair, warned in (((source, target), False), ((target, source), True)):
        path = write(tmp_path / "a.tsv", tsv([pair] * 5))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "hf_lskd"):
            load_parallel(text(path, validation=path, **options))
        assert ("look swapped" in caplog.text) == warned


@pytest.mark.parametrize(
    ("target_lang", "sources", "targets"),
    [
        ("de", ["the naïve user of the Müller house"] + ["a house"] * 20, ["Die Größe der Häuser"] * 21),
        ("de", ["open the file"] * 5, ["die Datei"] * 5),
        ("ru", ["the word дом means house"] * 5, ["слово дом"] * 5),
        ("ru", ["the small letter д of the alphabet"] * 5, ["Linux"] * 5),
        ("xx", ["Größe"] * 5, ["size"] * 5),
    ],
)
def test_foreign_letters_and_no_letters_are_no_swap(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, target_lang: str, sources: list[str], targets: list[str]
) -> None:
    path = write(tmp_path / "a.tsv", tsv(list(zip(sources, targets))))
    with caplog.at_level(logging.WARNING, "hf_lskd"):
        load_parallel(text(path, validation=write(tmp_path / "b.tsv", tsv([("c", "d")])), target_lang=target_lang))
    assert caplog.text == ""


def test_held_out_sentences_that_are_in_training_are_counted_and_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [(f"house {i}", f"Haus {i}") for i in range(10)]
    train, test = write(tmp_path / "train.tsv", tsv(rows)), write(tmp_path / "test.tsv", tsv([*rows[:3], ("a", "b")]))
    clean = write(tmp_path / "clean.tsv", tsv([("c", "d")]))
    with caplog.at_level(logging.WARNING, "hf_lskd"):
        found = load_parallel(text(train, validation=clean, test=test))
    assert "3 of 4 sentences of test are in the training text too" in caplog.text
    assert found.facts["test sentences in training"] == 3
    assert "validation sentences in training" not in found.facts


def test_a_dataset_folder_with_a_translation_feature(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"id": datasets.Value("string"), "pair": datasets.Translation(languages=["en", "de"])})
    rows_ = {"id": [str(i) for i in range(4)], "pair": [{"en": source, "de": target} for source, target in PAIRS]}
    made = datasets.Dataset.from_dict(rows_, features=features)
    datasets.DatasetDict(train=made, validation=made.select([0, 1])).save_to_disk(str(tmp_path / "d"))
    data = {"source": "dataset", "source_lang": "en", "target_lang": "de", "name": str(tmp_path / "d"),
            "train_split": "train", "validation_split": "validation", "test_split": "train[2:]", "column": None}  # fmt: skip
    found = load_parallel(data)
    assert rows(found.train) == PAIRS
    assert rows(found.validation) == PAIRS[:2]
    assert rows(found.test) == PAIRS[2:]
    with pytest.raises(InputError, match="0 columns with en and ru"):
        load_parallel({**data, "target_lang": "ru"})
    with pytest.raises(InputError, match=r"0 columns of the name 'pairs' with .*Did you mean 'pair'"):
        load_parallel({**data, "column": "pairs"})


def dataset(name: Path, **more: Any) -> dict[str, Any]:
    return {"source": "dataset", "source_lang": "en", "target_lang": "de", "name": str(name), "train_split": "train",
            "validation_split": "train", "test_split": None, "column": None, **more}  # fmt: skip


@pytest.mark.parametrize("place", ["d", "d/train.jsonl", "d/train.jsonl.gz", "d/train.parquet"])
def test_a_struct_of_both_languages_in_files_of_any_kind(tmp_path: Path, place: str) -> None:
    import datasets

    (tmp_path / "d").mkdir()
    lines = [{"id": i, "translation": {"en": source, "de": target}} for i, (source, target) in enumerate(PAIRS)]
    if place.endswith(".parquet"):
        datasets.Dataset.from_list(lines).to_parquet(str(tmp_path / place))
    else:
        name = "train.jsonl" if place == "d" else Path(place).name
        write(tmp_path / "d" / name, "".join(json.dumps(line) + "\n" for line in lines))
    found = load_parallel(dataset(tmp_path / place), cache_dir=tmp_path / "cache")
    assert rows(found.train) == PAIRS
    assert found.test is None


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ({"en": "a", "de": None}, "row 4: an empty de"),
        ({"en": " ", "de": "b"}, "row 4: an empty en"),
        (None, "row 4: an empty en"),
    ],
)
def test_a_row_without_text_is_named(tmp_path: Path, pair: Any, message: str) -> None:
    lines = [{"translation": {"en": source, "de": target}} for source, target in PAIRS] + [{"translation": pair}]
    write(tmp_path / "a.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=message):
        load_parallel(dataset(tmp_path / "a.jsonl"), cache_dir=tmp_path / "cache")


def test_several_columns_with_both_languages_have_to_be_told_apart(tmp_path: Path) -> None:
    lines = [
        {"raw": {"en": source.upper(), "de": target}, "clean": {"en": source, "de": target}} for source, target in PAIRS
    ]
    write(tmp_path / "a.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=r"2 columns with de and en.*data\.column"):
        load_parallel(dataset(tmp_path / "a.jsonl"), cache_dir=tmp_path / "cache")
    found = load_parallel(dataset(tmp_path / "a.jsonl", column="clean"), cache_dir=tmp_path / "cache")
    assert rows(found.train) == PAIRS

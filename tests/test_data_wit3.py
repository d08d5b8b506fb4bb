"""TED archives of IWSLT in their own format: both preparations, folders and archives, and archives that mean harm."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_lskd.data.parallel import load_parallel
from hf_lskd.errors import InputError

HEAD = ("<url>http://www.ted.com/talks/1.html</url>", "<keywords>talks, music</keywords>", "<talkid>1</talkid>")
TITLES = {"en": ("<title>Music & time</title>", "<description>TED Talk: On music.</description>"),
          "de": ("<title>Musik & Zeit</title>", "<description>TED-Vortrag: Über Musik.</description>")}  # fmt: skip
SENTENCES = {"en": "Good Morning, number {}!", "de": "Guten Morgen, Nummer {}!"}
SETS = {"TED.dev2010": 3, "TEDX.dev2012": 2, "TED.tst2010": 4, "TED.tst2011": 2, "TED.tst2013": 1}


def xml(language: str, name: str, count: int) -> str:
    segments = "\n".join(
        f'<seg id="{i}"> {SENTENCES[language].format(f"{i} of {name}")} R&D </seg>' for i in range(1, count + 1)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<mteval>\n<refset setid="x">\n<doc docid="1" genre="lectures">\n'
        f"<title>A talk & more</title>\n{segments}\n</doc>\n</refset>\n</mteval>\n"
    )


def release(pair: str = "en-de", year: int = 14, sentences: int = 48, **changes: str | None) -> dict[str, bytes]:
    """The files of a pair as they are published; `changes` by name with _ for . and -; None takes a file out."""
    files = {}
    for language in ("en", "de"):
        lines = [SENTENCES[language].format(i) for i in range(1, sentences + 1)]
        files[f"train.tags.{pair}.{language}"] = "\n".join([*HEAD, *TITLES[language], *lines]) + "\n"
        for name, count in SETS.items():
            files[f"IWSLT{year}.{name}.{pair}.{language}.xml"] = xml(language, name, count)
    for name, content in changes.items():
        key = next(key for key in files if key.replace(".", "_").replace("-", "_") == name)
        if content is None:
            del files[key]
        else:
            files[key] = content
    return {name: content.encode() for name, content in files.items()}


def packed(files: dict[str, bytes], folder: str = "en-de") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in {**files, "README": b"TED talks"}.items():
            member = tarfile.TarInfo(f"{folder}/{name}" if folder else name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def as_folder(tmp_path: Path, files: dict[str, bytes]) -> Path:
    folder = tmp_path / "en-de"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def as_tgz(tmp_path: Path, files: dict[str, bytes]) -> Path:
    (tmp_path / "en-de.tgz").write_bytes(packed(files))
    return tmp_path / "en-de.tgz"


def as_year(tmp_path: Path, files: dict[str, bytes]) -> Path:
    inner = {"en/de/en-de.tgz": packed(files), "en/ru/en-ru.tgz": b"not read"}
    (tmp_path / "2014-01.tgz").write_bytes(packed(inner, "2014-01/texts"))
    return tmp_path / "2014-01.tgz"


def as_year_folder(tmp_path: Path, files: dict[str, bytes]) -> Path:
    place = tmp_path / "2014-01" / "texts" / "en" / "de"
    place.mkdir(parents=True)
    (place / "en-de.tgz").write_bytes(packed(files))
    return tmp_path / "2014-01"


def load(path: Path, cache: Path | None = None, **more: Any) -> Any:
    data = {"source": "wit3", "source_lang": "en", "target_lang": "de", "path": str(path), "year": 2014,
            "preparation": "plain", **more}  # fmt: skip
    return load_parallel(data, cache_dir=cache or path.parent / "cache")


def rows(pairs: Any) -> list[tuple[str, str]]:
    return list(zip(pairs.sources, pairs.targets))


@pytest.mark.parametrize("made", [as_folder, as_tgz, as_year, as_year_folder])
def test_plain_text_from_every_kind_of_place(tmp_path: Path, made: Callable[..., Path]) -> None:
    found = load(made(tmp_path, release()))
    assert rows(found.train) == [(f"Good Morning, number {i}!", f"Guten Morgen, Nummer {i}!") for i in range(1, 49)]
    assert rows(found.validation)[1] == (
        "Good Morning, number 2 of TED.dev2010! R&D",
        "Guten Morgen, Nummer 2 of TED.dev2010! R&D",
    )
    assert (len(found.validation), len(found.test)) == (3, 4 + 2 + 1)
    assert found.facts["left_out"] == {"metadata": 5}
    assert found.facts["read"] == 48 + 3 + 7 + 5
    assert found.facts["validation_sets"] == ["TED.dev2010"]
    assert found.facts["test_sets"] == ["TED.tst2010", "TED.tst2011", "TED.tst2013"]


@pytest.mark.parametrize("made", [as_folder, as_tgz, as_year])
def test_the_papers_preparation(tmp_path: Path, made: Callable[..., Path]) -> None:
    """48 sentences with title and description are 50 lines, of which lines 23 and 46 are for validation."""
    found = load(made(tmp_path, release()), preparation="paper")
    assert rows(found.train)[:3] == [
        ("music &amp; time", "musik &amp; zeit"),
        ("ted talk : on music .", "ted-vortrag : über musik ."),
        ("good morning , number 1 !", "guten morgen , nummer 1 !"),
    ]
    assert rows(found.validation) == [
        (f"good morning , number {i} !", f"guten morgen , nummer {i} !") for i in (21, 44)
    ]
    assert len(found.train) == 48
    assert len(found.test) == 3 + 2 + 4 + 2
    assert found.test.sources[3] == "good morning , number 1 of tedx.dev2012 ! r &amp; d"
    assert found.facts["test_sets"] == ["TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011"]
    assert found.facts["missing"] == ["tst2012"]
    assert found.facts["left_out"] == {"metadata": 3}


def test_the_paper_cleans_the_training_text_by_length_and_ratio(tmp_path: Path) -> None:
    """Kept: 175 tokens, and 3 for 2. Left out: 176 tokens, 4 for 2, an empty side, a word of over 1,000 characters."""
    english = ["a " * 175, "a b c", "a " * 176, "a b c d", "", "x" * 1001] + ["One."] * 30
    german = ["b " * 175, "d e", "b " * 175, "e f", "leer", "y"] + ["Eins."] * 30
    files = release(train_tags_en_de_en="\n".join(english) + "\n", train_tags_en_de_de="\n".join(german) + "\n")
    found = load(as_folder(tmp_path, files), preparation="paper")
    assert [len(source.split()) for source in found.train.sources[:3]] == [175, 3, 2]
    assert len(found.train) + len(found.validation) == 32
    assert found.facts["left_out"] == {
        "over 175 tokens": 1, "ratio over 1.5": 1, "empty": 1, "a word over 1000 characters": 1}  # fmt: skip


def test_the_papers_sets_have_straight_apostrophes_and_the_training_text_keeps_its_own(tmp_path: Path) -> None:
    sets = {f"IWSLT14_TED_dev2010_en_de_{key}_xml": '<seg id="1">It’s</seg>\n' for key in ("en", "de")}
    lines = "It’s one.\n" * 30
    files = release(train_tags_en_de_en=lines, train_tags_en_de_de=lines, **sets)
    found = load(as_folder(tmp_path, files), preparation="paper")
    assert found.test.sources[0] == "it &apos;s"
    assert found.train.sources[0] == "it ’ s one ."


def test_the_archive_of_the_other_direction_serves_too_and_2017_has_its_own_sets(tmp_path: Path) -> None:
    path = as_folder(tmp_path, release("de-en", year=17))
    found = load(path, year=2017)
    assert found.train.sources[0] == "Good Morning, number 1!"
    assert found.facts["archive"] == "de-en"
    with pytest.raises(InputError, match=r"no fitting sets of 2014 .*IWSLT17\.TED\.dev2010\.de-en\.de\.xml"):
        load(path, year=2014)


def test_a_year_archive_gives_the_direction_that_is_asked_for(tmp_path: Path) -> None:
    inner = {f"{pair}.tgz": packed(release(pair)) for pair in ("de-en", "en-de")}
    path = tmp_path / "2014-01.tgz"
    path.write_bytes(packed(inner, "texts"))
    assert load(path).facts["archive"] == "en-de"
    assert load(path, source_lang="de", target_lang="en").facts["archive"] == "de-en"


def test_metadata_of_one_side_only_keeps_the_sides_together(tmp_path: Path) -> None:
    english = "<url>u</url>\n<speaker>Ann</speaker>\nOne.\n\nThree.\n<reviewer></reviewer>\nFour.\n"
    german = "<url>u</url>\nEins.\nZwei.\nDrei.\nVier.\n"
    files = release(train_tags_en_de_en=english, train_tags_en_de_de=german)
    found = load(as_folder(tmp_path, files))
    assert rows(found.train) == [("One.", "Eins."), ("Three.", "Drei."), ("Four.", "Vier.")]
    assert found.facts["left_out"] == {"metadata": 3, "empty": 1}


def test_a_line_that_is_metadata_on_one_side_leaves_both(tmp_path: Path) -> None:
    files = release(
        train_tags_en_de_en="One.\n<speaker>Ann</speaker>\nThree.\n", train_tags_en_de_de="Eins.\nAnn\nDrei.\n"
    )
    found = load(as_folder(tmp_path, files))
    assert rows(found.train) == [("One.", "Eins."), ("Three.", "Drei.")]
    assert found.facts["left_out"] == {"metadata": 1}


def test_sets_of_one_language_are_named_and_not_used(tmp_path: Path) -> None:
    found = load(as_folder(tmp_path, release(IWSLT14_TED_tst2013_en_de_de_xml=None)))
    assert found.facts["missing"] == ["TED.tst2013 (en only)"]
    assert len(found.test) == 6


def test_segments_are_read_from_what_is_no_xml(tmp_path: Path) -> None:
    broken = (
        '<seg id="1"> R&D <b> &amp; x &copy </seg> <seg id="2">two\nlines</seg>\n<seg id="3">open\n<seg id="4">end\n'
    )
    files = release(IWSLT14_TED_dev2010_en_de_en_xml=broken, IWSLT14_TED_dev2010_en_de_de_xml=broken)
    found = load(as_folder(tmp_path, files))
    assert found.validation.sources == ["R&D <b> & x &copy", "two lines", "open", "end"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"IWSLT14_TED_dev2010_en_de_de_xml": "<doc>\n</doc>\n"}, r"dev2010\.en-de\.de\.xml has no <seg>"),
        (
            {"IWSLT14_TED_dev2010_en_de_de_xml": '<seg id="1">Eins</seg>\n'},
            r"3 in IWSLT14\.TED\.dev2010\.en-de\.en\.xml and 1 in IWSLT14\.TED\.dev2010\.en-de\.de\.xml",
        ),
        ({"train_tags_en_de_de": "Eins.\nZwei.\n"}, r"48 sentences in train\.tags\.en-de\.en and 2 sentences in"),
        ({"train_tags_en_de_de": None}, r"no training text of en-de or de-en \(found: .*train\.tags\.en-de\.en"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path: Path, changes: dict[str, str | None], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(as_folder(tmp_path, release(**changes)))


@pytest.mark.parametrize("made", [as_folder, as_tgz, as_year])
def test_a_missing_pair_says_which_there_are(tmp_path: Path, made: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"no training text of en-fr or fr-en \(found: en-de"):
        load(made(tmp_path, release()), target_lang="fr")


# ---- The cache


def test_an_archive_is_kept_and_read_from_the_cache(tmp_path: Path) -> None:
    cache, path = tmp_path / "cache", as_tgz(tmp_path, release())
    first = load(path, cache)
    [kept] = (cache / "wit3").iterdir()
    assert sorted(file.name for file in kept.iterdir()) == sorted(release())
    (kept / "train.tags.en-de.en").write_bytes((kept / "train.tags.en-de.en").read_bytes().replace(b"Good", b"Kept"))
    assert load(path, cache).train.sources[0] == "Kept Morning, number 1!"
    path.write_bytes(packed(release(sentences=30)))  # another archive in its place is read anew
    assert len(load(path, cache).train) == 30
    assert len(first.train) == 48


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    assert len(load(as_tgz(tmp_path, release()), tmp_path / "file" / "cache").train) == 48
    assert "HF_LSKD_CACHE" in caplog.text


# ---- Archives that mean harm


def hostile(kind: str) -> bytes:
    """A whole release, and one member that is not to be there."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in release().items():
            member = tarfile.TarInfo(f"en-de/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        names = {"traversal": "en-de/../../evil", "absolute": "/tmp/evil", "drive": "C:evil", "backslash": "..\\evil"}
        member = tarfile.TarInfo(names.get(kind, "en-de/evil"))
        types = {
            "symlink": tarfile.SYMTYPE,
            "hardlink": tarfile.LNKTYPE,
            "device": tarfile.CHRTYPE,
            "fifo": tarfile.FIFOTYPE,
            "sparse": tarfile.GNUTYPE_SPARSE,
        }
        member.type = types.get(kind, tarfile.REGTYPE)
        member.linkname = "/etc/passwd" if "link" in kind else ""
        archive.addfile(member)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("traversal", r"'en-de/\.\./\.\./evil' has a name that leads out"),
        ("absolute", r"'/tmp/evil' has an absolute name"),
        ("drive", "'C:evil' has an absolute name"),
        ("backslash", "evil' has a name that leads out"),
        ("symlink", "'en-de/evil' is a link to '/etc/passwd'"),
        ("hardlink", "'en-de/evil' is a link to '/etc/passwd'"),
        ("device", "'en-de/evil' is neither a file nor a folder"),
        ("fifo", "'en-de/evil' is neither a file nor a folder"),
        ("sparse", "'en-de/evil' is neither a file nor a folder"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_hostile_member_is_refused_and_nothing_is_written(
    tmp_path: Path, kind: str, message: str, nested: bool
) -> None:
    content = hostile(kind)
    path = tmp_path / "x.tgz"
    path.write_bytes(packed({"en-de.tgz": content}, "texts") if nested else content)
    with pytest.raises(InputError, match=message):
        load(path)
    assert [file.name for file in tmp_path.rglob("*")] == ["x.tgz"]


def test_a_bomb_is_refused_by_what_it_unpacks_to(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=9) as zipped,
        tarfile.open(fileobj=zipped, mode="w|") as tar,
    ):
        member = tarfile.TarInfo("en-de/README")
        member.size = 80 << 20
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    path = tmp_path / "en-de.tgz"
    path.write_bytes(stream.getvalue())
    assert path.stat().st_size < 1 << 20
    with pytest.raises(InputError, match="unpacks to over 64 MiB"):
        load(path)


def test_a_bomb_is_refused_by_the_size_that_it_declares(tmp_path: Path) -> None:
    member = tarfile.TarInfo("en-de/train.tags.en-de.en")
    member.size = 1 << 40
    path = tmp_path / "en-de.tgz"
    path.write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT)))
    with pytest.raises(InputError, match=r"train\.tags\.en-de\.en of 1099511627776 bytes"):
        load(path)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_that_would_fill_the_memory_is_refused_unread(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = kind, 32 << 20
    path = tmp_path / "en-de.tgz"
    path.write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(member.size)))
    with pytest.raises(InputError, match="a header of 33554432 bytes"):
        load(path)


@pytest.mark.parametrize("kept", [0, 1, 10, 0.3, 0.9, -9, -1])
def test_an_archive_that_is_cut_off_is_refused_and_nothing_is_kept(tmp_path: Path, kept: float) -> None:
    content = packed(release())
    path = tmp_path / "en-de.tgz"
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match=r"en-de\.tgz is damaged, cut off or no \.tgz"):
        load(path)
    assert [file.name for file in tmp_path.rglob("*")] == ["en-de.tgz"]


def test_a_lost_checksum_is_noticed_behind_the_last_member(tmp_path: Path) -> None:
    """Also where the archive fills whole blocks, so that reading its members does not come to the end."""
    tar = gzip.decompress(packed(release()))
    content = gzip.compress(tar + bytes(-len(tar) % (1 << 20)))
    path = tmp_path / "en-de.tgz"
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"en-de\.tgz is damaged"):
        load(path)
    path.write_bytes(content)
    assert len(load(path).train) == 48


def test_a_nested_archive_that_is_cut_off_names_both(tmp_path: Path) -> None:
    path = tmp_path / "2014-01.tgz"
    path.write_bytes(packed({"en-de.tgz": packed(release())[:-200]}, "texts"))
    with pytest.raises(InputError, match=r"2014-01\.tgz: en-de\.tgz is damaged"):
        load(path)


def test_no_archive_and_no_place_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.tgz").write_text("no archive")
    with pytest.raises(InputError, match=r"no \.tgz"):
        load(tmp_path / "text.tgz")
    with pytest.raises(InputError, match=r"none\.tgz: No such file"):
        load(tmp_path / "none.tgz")


def test_the_same_file_twice_is_ambiguous(tmp_path: Path) -> None:
    path = tmp_path / "two.tgz"
    path.write_bytes(
        packed({f"{year}/{name}": content for year in (2014, 2017) for name, content in release().items()}, "")
    )
    with pytest.raises(InputError, match=r"has train\.tags\.en-de\.en twice"):
        load(path)

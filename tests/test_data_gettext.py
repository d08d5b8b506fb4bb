"""Messages of gettext catalogues: which files are read, and which of their entries are pairs."""

from pathlib import Path
from typing import Any

import polib
import pytest

from hf_lskd.data.parallel import load_parallel
from hf_lskd.errors import InputError

MESSAGES = {"_File": "_Datei", "Open…": "Öffnen …", "Save": "Speichern", "Close": "Schließen"}


def catalogue(path: Path, messages: dict[str, str] = MESSAGES, language: str | None = "de", **header: str) -> Path:
    """A .po or .mo file, by its name."""
    made = polib.POFile()
    made.metadata = {
        "Content-Type": "text/plain; charset=UTF-8",
        **({"Language": language} if language else {}),
        **header,
    }
    made.extend(polib.POEntry(msgid=source, msgstr=target) for source, target in messages.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    (made.save_as_mofile if path.suffix == ".mo" else made.save)(str(path))
    return path


def load(*paths: Path | str, **more: Any) -> Any:
    data = {"source": "gettext", "source_lang": "en", "target_lang": "de", "paths": [str(path) for path in paths],
            "validation_pairs": 1, "seed": 0, **more}  # fmt: skip
    return load_parallel(data)


def every(found: Any) -> dict[str, str]:
    return {
        source: target for part in (found.train, found.validation) for source, target in zip(part.sources, part.targets)
    }


def options(paths: list[Path], **more: Any) -> dict[str, Any]:
    return {"source": "gettext", "source_lang": "en", "target_lang": "de", "paths": [str(path) for path in paths],
            "validation_pairs": 2, "seed": 0, **more}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "locale" / "de" / "LC_MESSAGES"
    place.mkdir(parents=True)
    catalogue = polib.POFile()
    catalogue.metadata = {"Content-Type": "text/plain; charset=utf-8"}
    for i in range(8):
        catalogue.append(polib.POEntry(msgid=f"file {i} not found", msgstr=f"Datei {i} nicht gefunden"))
    catalogue.append(polib.POEntry(msgid="untranslated", msgstr=""))
    catalogue.append(polib.POEntry(msgid="fuzzy", msgstr="vielleicht", flags=["fuzzy"]))
    catalogue.append(
        polib.POEntry(msgid="{n} file", msgid_plural="{n} files", msgstr_plural={0: "a", 1: "b"}, msgstr="x")
    )
    catalogue.save(str(place / "app.po"))
    catalogue.save_as_mofile(str(place / "app.mo"))
    return tmp_path / "locale"


@pytest.mark.parametrize("name", ["app.po", "app.mo"])
def test_a_file_gives_its_translated_messages(folder: Path, name: str) -> None:
    found = load_parallel(options([folder / "de" / "LC_MESSAGES" / name]))
    assert (len(found.train), len(found.validation)) == (6, 2)
    everything = dict(
        zip([*found.train.sources, *found.validation.sources], [*found.train.targets, *found.validation.targets])
    )
    assert everything == {f"file {i} not found": f"Datei {i} nicht gefunden" for i in range(8)}


def test_a_folder_is_searched_for_the_language(folder: Path) -> None:
    assert len(load_parallel(options([folder])).train) == 6
    with pytest.raises(InputError, match="ru"):
        load_parallel(options([folder], target_lang="ru"))


def test_a_missing_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is no file"):
        load_parallel(options([tmp_path / "nowhere"]))


@pytest.mark.parametrize("name", ["x.po", "x.mo"])
def test_both_forms_give_the_messages_as_they_are(tmp_path: Path, name: str) -> None:
    found = load(catalogue(tmp_path / name))
    assert every(found) == MESSAGES
    assert (len(found.train), len(found.validation), found.test) == (3, 1, None)
    assert found.facts == {"corpus": "gettext", "catalogues": 1, "pairs": {"train": 3, "validation": 1, "test": 0},
                           "read": 4, "left_out": {}}  # fmt: skip


def test_entries_that_are_no_pair_are_left_out_and_counted(tmp_path: Path) -> None:
    path = catalogue(tmp_path / "x.po")
    made = polib.pofile(str(path))
    made.append(polib.POEntry(msgid="Print", msgstr="Drücken", flags=["fuzzy"]))
    made.append(polib.POEntry(msgid="Undo"))
    made.append(polib.POEntry(msgid="%d file", msgid_plural="%d files", msgstr_plural={0: "%d Datei", 1: "%d Dateien"}))
    made.append(polib.POEntry(msgid="Old", msgstr="Alt", obsolete=True))
    made.append(polib.POEntry(msgid="Save", msgstr="Speichern", msgctxt="button"))
    made.append(polib.POEntry(msgid="Save", msgstr="Sichern", msgctxt="menu"))
    made.save(str(path))
    found = load(path, validation_pairs=1)
    reasons = {"fuzzy": 1, "untranslated": 1, "plural": 1, "obsolete": 1, "repeated": 1}
    left_out = dict(found.facts["left_out"])
    shared = left_out.pop("shares a sentence with validation", 0)
    assert left_out == reasons
    assert found.facts["read"] == 10
    assert len(found.train) + len(found.validation) == 5 - shared
    assert not {"Print", "Undo", "%d file", "Old"} & every(found).keys()


def test_plural_entries_of_a_compiled_catalogue_are_left_out(tmp_path: Path) -> None:
    made = polib.pofile(str(catalogue(tmp_path / "x.po")))
    made.append(polib.POEntry(msgid="%d file", msgid_plural="%d files", msgstr_plural={0: "%d Datei", 1: "%d Dateien"}))
    made.save_as_mofile(str(tmp_path / "x.mo"))
    found = load(tmp_path / "x.mo")
    assert every(found) == MESSAGES
    assert found.facts["left_out"] == {"plural": 1}


def test_a_folder_gives_the_catalogues_of_the_language_only(tmp_path: Path) -> None:
    catalogue(tmp_path / "locale/de/LC_MESSAGES/a.mo", {"one": "eins", "two": "zwei"}, None)
    catalogue(tmp_path / "locale/fr/LC_MESSAGES/a.mo", {"one": "un"}, None)
    catalogue(tmp_path / "po/de.po", {"three": "drei"}, None)
    catalogue(tmp_path / "po/pt_BR.po", {"three": "três"}, None)
    catalogue(tmp_path / "po/app.po", {"four": "vier"}, "de_DE")
    catalogue(tmp_path / "po/wrong.po", {"four": "quatre"}, "fr")
    catalogue(tmp_path / "po/none.po", {"five": "fünf"}, None)
    found = load(tmp_path)
    assert every(found) == {"one": "eins", "two": "zwei", "three": "drei", "four": "vier"}
    assert found.facts["catalogues"] == 3
    assert every(load(tmp_path / "locale/de/LC_MESSAGES")) == {"one": "eins", "two": "zwei"}


def test_a_catalogue_of_another_language_is_not_even_opened(tmp_path: Path) -> None:
    catalogue(tmp_path / "de/LC_MESSAGES/a.mo")
    (tmp_path / "fr/LC_MESSAGES").mkdir(parents=True)
    (tmp_path / "fr/LC_MESSAGES/a.mo").write_bytes(b"damaged")
    assert every(load(tmp_path)) == MESSAGES
    with pytest.raises(InputError, match=r"has no \.po or \.mo file of ru"):
        load(tmp_path, target_lang="ru")


def test_a_source_catalogue_stands_before_what_is_compiled_from_it(tmp_path: Path) -> None:
    path = catalogue(tmp_path / "de/LC_MESSAGES/a.po")
    polib.pofile(str(path)).save_as_mofile(str(path.with_suffix(".mo")))
    assert load(tmp_path).facts["catalogues"] == 1


def test_an_installed_python_package_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue(tmp_path / "some_program/locale/de/LC_MESSAGES/messages.mo")
    (tmp_path / "some_program/__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert every(load("some_program")) == MESSAGES


def test_an_installed_domain_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue(tmp_path / "pt_BR/LC_MESSAGES/some-program.mo", {"one": "um", "two": "dois"}, "pt_BR")
    monkeypatch.setattr("hf_lskd.data.gettext.SHARES", (tmp_path,))
    assert every(load("some-program", target_lang="pt_BR")) == {"one": "um", "two": "dois"}
    with pytest.raises(InputError, match="some-program is no file, folder, package or installed domain with de"):
        load("some-program")


def test_validation_is_drawn_by_the_seed_and_shares_no_message(tmp_path: Path) -> None:
    path = catalogue(tmp_path / "x.po", {f"message {i}": f"Meldung {i // 2}" for i in range(40)})
    draws = [load(path, validation_pairs=5, seed=seed) for seed in (0, 0, 1)]
    assert draws[0].fingerprint == draws[1].fingerprint != draws[2].fingerprint
    for found in draws:
        assert not set(found.train.targets) & set(found.validation.targets)
        left_out = found.facts["left_out"]["shares a sentence with validation"]
        assert len(found.train) + len(found.validation) + left_out == 40


def test_messages_in_another_language_than_english_need_a_header_that_says_so(tmp_path: Path) -> None:
    plain = catalogue(tmp_path / "plain.po")
    with pytest.raises(InputError, match=r"plain\.po has messages in en, and source_lang is fr"):
        load(plain, source_lang="fr")
    french = catalogue(
        tmp_path / "french.po", {"Fermer": "Schließen", "Ouvrir": "Öffnen"}, **{"X-Source-Language": "fr"}
    )
    assert every(load(french, source_lang="fr")) == {"Fermer": "Schließen", "Ouvrir": "Öffnen"}
    with pytest.raises(InputError, match=r"french\.po has messages in fr, and source_lang is en"):
        load(french)


def test_a_named_file_of_another_language_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.po is a catalogue of fr"):
        load(catalogue(tmp_path / "x.po", language="fr"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.po", b'msgid "a"\nmsgstr "b"\nnonsense\n', r"x\.po cannot be read \(.*line 3"),
        ("x.po", b'msgid "a"\nmsgstr "\xff"\n', r"x\.po cannot be read"),
        ("x.mo", b"no catalogue", r"x\.mo begins with 6e 6f"),
        ("x.mo", b"", r"x\.mo begins with nothing"),
        ("x.txt", b"", r"x\.txt.*a file ending in \.po or \.mo"),
        ("x.po", b"", r"no message from en to de"),
    ],
)
def test_what_is_no_catalogue_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load(tmp_path / name)


def test_a_compiled_catalogue_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = catalogue(tmp_path / "x.mo")
    content = path.read_bytes()
    assert content[-1] == 0  # after the last text: nothing is lost without it
    for kept in range(len(content) - 1):
        path.write_bytes(content[:kept])
        with pytest.raises(InputError, match=r"x\.mo (is cut off|cannot be read|begins with)"):
            load(path)


def test_a_place_without_catalogues_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no \.po or \.mo file of de"):
        load(tmp_path)

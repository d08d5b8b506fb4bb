"""Catalogues written by polib, read as parallel text."""

from pathlib import Path
from typing import Any

import polib
import pytest

from hf_lskd.data.parallel import load_parallel
from hf_lskd.errors import InputError


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

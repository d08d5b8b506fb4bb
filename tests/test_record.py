"""Cells and records: names, JSON in and out, versions, memory."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import hf_lskd
from hf_lskd.errors import InputError
from hf_lskd.record import (
    Cell,
    exact,
    hardware,
    model_folder,
    read_record,
    versions,
    write_json,
)


@pytest.mark.parametrize("value", [0.0, 1.0, 2.0, 64.0, 0.1, 1e-5, 1 / 3, 0.1000001, 123456789.0, 1e300])
def test_exact_reads_back_as_the_very_same_number(value: float) -> None:
    assert float(exact(value)) == value


def test_exact_is_short_where_it_can_be() -> None:
    assert [exact(x) for x in (2.0, 0.1, 64, 1e-5, "equalised", None, True)] == [
        *("2", "0.1", "64", "1e-05", "equalised", "None", "True")
    ]


def test_a_name_spells_out_what_differs_from_the_papers_loss() -> None:
    assert Cell("teacher", 0.1, 3).name == "teacher-a0.1-s3"
    usual = Cell("student", 0.1, 0, "vit", 2.0, 1.0, 1.0, True, 0.0, None)
    assert usual.name == "vit-a0.1-T2-s0"
    unusual = Cell("student", 0.1, 0, "vit", 2.5, 0.5, "equalised", False, 0.05, 10)
    assert unusual.name == "vit-a0.1-T2.5-w0.5-xequalised-unscaled-own0.05-k10-s0"
    assert unusual.teacher == Cell("teacher", 0.1, 0)


def test_a_cell_comes_back_from_its_record(tmp_path: Path) -> None:
    cell = Cell("student", 0.1, 0, "vit", 2.5, 0.5, "equalised", False, 0.05, 10)
    write_json(tmp_path / "record.json", {"format": 1, **cell.to_dict(), "name": cell.name})
    assert Cell.of(read_record(tmp_path) or {}) == cell


def test_records_that_are_missing_damaged_or_foreign(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    for text, message in (
        ('{"format": 1', "is no JSON"),
        ('{"format": 99}', "another format"),
        ("[]", "another format"),
    ):
        (tmp_path / "record.json").write_text(text)
        with pytest.raises(InputError, match=message):
            read_record(tmp_path)


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "page.json"
    write_json(path, {"letter": "ö"})
    with pytest.raises(TypeError):
        write_json(path, {"letter": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"letter": "ö"}


def test_versions_are_those_installed() -> None:
    found = versions()
    assert found["hf_lskd"] == hf_lskd.__version__
    assert found["torch"] == version("torch")
    assert found["transformers"] == version("transformers")


def test_hardware_names_the_machine() -> None:
    found = hardware(2)
    assert found["world_size"] == 2
    assert found["cpu"]
    assert found["threads"] == 1


PEAKS = """
import numpy as np
from hf_lskd.record import peak_memory_mb, reset_peak_memory
reset_peak_memory()
print(peak_memory_mb())
block = np.ones(64 * 2**20, np.uint8)
print(peak_memory_mb())
del block
reset_peak_memory()
print(peak_memory_mb())
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux lets a process begin a new peak")
def test_each_cell_has_a_peak_of_its_own() -> None:
    """In a process of its own: the pages of a big one that has run tests for minutes come and go."""
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    before, within, after = (float(word) for word in done.stdout.split())
    assert within > before + 50
    assert after < before + 50


def test_a_finished_cells_model_is_found_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert model_folder(tmp_path) == tmp_path
    (tmp_path / "record.json").write_text("{}")
    assert model_folder(tmp_path) == tmp_path / "model"
    assert model_folder(Path("owner/name")) == Path("owner/name")

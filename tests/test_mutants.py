"""Every mutant can still be made, and the tests that it must break are still there; `make mutants` sees them fail."""

import ast
from pathlib import Path

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant, mutated, run_test

TESTS = Path(__file__).parent
every_mutant = pytest.mark.parametrize("mutant", MUTANTS, ids=[f"{m.trap}: {m.cause}" for m in MUTANTS])


def quick_tests(file: str) -> list[str]:
    """The names of a file's tests, without those marked slow (alone or all at once), which no mutant's run would start."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    if any("mark.slow" in ast.unparse(line) for line in tree.body if isinstance(line, ast.Assign)):
        return []
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return [test.name for test in found if not any("mark.slow" in ast.unparse(mark) for mark in test.decorator_list)]


@every_mutant
def test_its_text_stands_once_in_its_file_and_what_replaces_it_is_python(mutant: Mutant) -> None:
    ast.parse(mutated(mutant, ROOT / "hf_lskd"))


@every_mutant
def test_the_tests_that_it_must_break_are_there(mutant: Mutant) -> None:
    file, part = mutant.test.split("::")
    assert any(part in name for name in quick_tests(file)), mutant.test


def test_no_mutant_stands_twice() -> None:
    assert len({(mutant.file, mutant.old, mutant.new, mutant.test) for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("def test_trap_99_x():\n    assert 1 == 2", "failed: test_trap_99_x"),
        ("def test_trap_99_x():\n    assert 1 == 1", "passed"),
        (
            "import nothing_of_that_name\ndef test_trap_99_x(): pass",
            "not run: pytest ended with 2; ERROR tests/test_it.py",
        ),
        ("def test_other():\n    assert 1 == 2", "not run: pytest ended with 5"),
        (
            "import pytest\n@pytest.fixture\ndef made():\n    raise ValueError\ndef test_trap_99_x(made): pass",
            "not run: pytest ended with 1; ERROR tests/test_it.py::test_trap_99_x",
        ),
    ],
    ids=["failed", "passed", "not collected", "not there", "not set up"],
)
def test_only_a_test_that_ran_and_failed_kills(code: str, outcome: str, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(f"{code}\n")
    assert run_test(tmp_path, "test_it.py::test_trap_99") == outcome

"""What importing costs and sets, and which room may import from which."""

import ast
import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_lskd

PACKAGE = Path(hf_lskd.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in PACKAGE.rglob("*.py")
)
HEAVY = (
    "timm",
    "datasets",
    "transformers",
    "torch",
    "torchvision",
    "numpy",
    "sklearn",
    "matplotlib",
    "yaml",
    "accelerate",
)

# From left to right: a room imports from groups further right only. A folder or a family of files is one room.
LAYOUT = [
    {"cli"},
    {"study", "hub"},
    {"tasks"},
    {"trainer"},
    {"generation", "teacher"},
    {"teacher_cache", "models", "analysis", "data", "metrics", "card"},
    {"record", "recipe", "arguments"},
    {"losses", "paper"},
    {"errors"},
]
FAMILIES = {"evaluation": "trainer", "checkpoints": "trainer",
            "__main__": "cli", "cli_publish": "cli",
            "card_data": "card", "card_facts": "card", "card_licences": "card", "card_tables": "card", "card_words": "card",
            "losses_blocked": "losses", "losses_rows": "losses", "losses_triton": "losses", "losses_kernel": "losses",
            "pushing": "trainer", "clock": "trainer", "host_memory": "trainer",
            "translation_files": "generation", "distillation": "trainer", "seq2seq": "trainer",
            "ema": "trainer", "schedule": "trainer", "penultimate": "trainer", "stock": "trainer", "teacher_accuracy": "trainer",
            "teacher_pass": "trainer", "sharding": "trainer", "shared": "trainer", "caching": "trainer",
            "recipe_changes": "recipe", "recipe_data": "recipe", "recipe_fields": "recipe", "recipe_schema": "recipe",
            "recipe_training": "recipe", "recipe_yaml": "recipe"}  # fmt: skip
NAMED = {
    ("recipe", "arguments")
}  # the schema of `training:` is the fields of DistillationArguments, read when a recipe has any


def room(module: str) -> str:
    """The room of `hf_lskd.<…>`; empty for the package itself."""
    first = module.split(".")[1] if "." in module else ""
    return FAMILIES.get(first, first)


def place(name: str) -> int:
    found = [index for index, group in enumerate(LAYOUT) if name in group]
    assert found, f"{name} has no place in the layout: docs and LAYOUT must say where it belongs"
    return found[0]


def source(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imported(module: str, text: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, module) for each import of ours, at any depth: in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(text)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*parts, *filter(None, [node.module])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            if name in MODULES:
                yield node.lineno, name


def violations(module: str, text: str, is_package: bool = False) -> list[str]:
    """Imports of `module` that go left, or sideways into another room of its group."""
    own, found = room(module), []
    for line, name in imported(module, text, is_package):
        other = room(name)
        if not own or not other or other == own or (own, other) in NAMED:
            continue  # the package itself may name every room: it imports none until a name is used
        if place(other) <= place(own):
            found.append(f"{module}:{line} ({own}) imports {name} ({other})")
    return found


def python(code: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_contributing_has_the_layout() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("    cli → ")]
    assert [set(group.split(", ")) for group in line.strip().split(" → ")] == LAYOUT


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_to_rooms_further_right_only(module: str) -> None:
    file = source(module)
    assert violations(module, file.read_text(), file.name == "__init__.py") == []
    if room(module):
        place(room(module))


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("hf_lskd.losses", "def f():\n    from hf_lskd.trainer import DistillationTrainer"),
        ("hf_lskd.models", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from hf_lskd import teacher"),
        ("hf_lskd.data.dataset", "from ..analysis import statistics"),
        ("hf_lskd.record", "import hf_lskd.recipe"),
        ("hf_lskd.errors", "from . import losses"),
    ],
)
def test_an_import_in_the_wrong_direction_is_seen(module: str, text: str) -> None:
    assert len(violations(module, text)) >= 1


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, time, json; start = time.perf_counter(); import hf_lskd; took = time.perf_counter() - start\n"
        f"print(json.dumps([took, [name for name in {HEAVY!r} if name in sys.modules], dir(hf_lskd)]))"
    )
    took, loaded, names = json.loads(python(code))
    print(f"import hf_lskd: {1000 * took:.1f} ms")
    assert loaded == []
    assert set(hf_lskd.__all__) <= set(names)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, json\nfrom hf_lskd.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as end: assert not end.code\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    assert json.loads(python(code).splitlines()[-1]) == []


@pytest.mark.parametrize("name", hf_lskd.__all__)
def test_public_names_come_from_the_package(name: str) -> None:
    found = getattr(hf_lskd, name)
    if name != "__version__":
        assert found is getattr(importlib.import_module(found.__module__), name)
        assert found.__module__.startswith("hf_lskd.")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="DistilationTrainer"):
        hf_lskd.DistilationTrainer  # noqa: B018


def test_importing_a_module_neither_sets_the_environment_nor_configures_logging() -> None:
    """Of every module of ours; the libraries that they use are loaded first, since what those do is theirs."""
    code = f"""
import json, logging, os, random, sys, warnings
import accelerate, datasets, matplotlib, numpy, safetensors.torch, sklearn.datasets
import timm, torch, torchvision, transformers, yaml, PIL.Image
from transformers import Seq2SeqTrainer, Trainer, AutoModelForImageClassification, AutoImageProcessor
from transformers.utils import logging as theirs
import importlib

def state():
    loggers = [logging.getLogger(), logging.getLogger("hf_lskd"), logging.getLogger("transformers"), logging.getLogger("datasets")]
    return {{
        "environment": dict(os.environ),
        "logging": [(logger.level, [repr(h) for h in logger.handlers], logger.propagate, logger.disabled) for logger in loggers],
        "warnings": [repr(entry) for entry in warnings.filters],
        "threads": torch.get_num_threads(),
        "seed": torch.initial_seed(),
        "random": [repr(random.getstate()), torch.get_rng_state().tolist()],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "default": str(torch.get_default_dtype()),
    }}

before = state()
for module in {MODULES!r}:
    importlib.import_module(module)
after = state()
ours = [name for name in logging.root.manager.loggerDict if name.startswith("hf_lskd.")]
configured = [name for name in ours if logging.getLogger(name).handlers or logging.getLogger(name).level]
print(json.dumps([[key for key in before if before[key] != after[key]], configured]))
"""
    changed, configured = json.loads(python(code).splitlines()[-1])
    assert changed == []
    assert configured == []


def public_things() -> Iterator[tuple[str, object]]:
    """What the package, `analysis` and `data` offer, and the public methods that their classes do not inherit from others."""
    for home in map(importlib.import_module, ("hf_lskd", "hf_lskd.analysis", "hf_lskd.data")):
        for name, thing in ((name, getattr(home, name)) for name in home.__all__):
            if inspect.isclass(thing):
                yield from ((f"{name}.{key}", method) for key, method in own_methods(thing))
            if callable(thing):
                yield f"{home.__name__}.{name}", thing


def own_methods(kind: type) -> Iterator[tuple[str, object]]:
    """Public methods that are ours and override nobody else's (those are documented where they come from)."""
    ours = [base for base in kind.__mro__ if base.__module__.startswith("hf_lskd.")]
    others = [base for base in kind.__mro__ if base not in ours]
    for base in ours:
        for key, member in vars(base).items():
            method = getattr(member, "__func__", member)
            if (
                inspect.isfunction(method)
                and not key.startswith("_")
                and not any(hasattr(other, key) for other in others)
            ):
                yield key, method


def test_public_functions_and_classes_say_what_they_do() -> None:
    things = dict(public_things())
    assert {
        "DistillationTrainer.class_statistics",
        "hf_lskd.distillation_loss",
        "ClassStatistics.update",
    } <= things.keys()
    silent = [name for name, thing in things.items() if not (thing.__doc__ or "").strip()]
    assert silent == []


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module: str) -> None:
    text = source(module).read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text))

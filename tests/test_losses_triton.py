"""The GPU's kernel of the losses, where there is no GPU: by Triton's interpreter, and by its compiler.

Triton reads TRITON_INTERPRET when it is imported, so the cases run in a process of their own.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("triton")


def run(*words: str, **environment: str) -> str:
    known = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "TRITON"))}
    path = os.pathsep.join([str(ROOT), known.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *words], env={**known, "PYTHONPATH": path, **environment}, cwd=ROOT, capture_output=True, text=True,
        timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def test_trap_04_05_06_15_17_the_kernel_is_the_plain_composition() -> None:
    found = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "tests/kernel_cases.py",
        TRITON_INTERPRET="1", HF_LSKD_TRITON="interpret", OMP_NUM_THREADS="1",
    )  # fmt: skip
    passed = re.search(r"(\d+) passed", found)
    assert passed is not None
    assert int(passed[1]) > 55
    assert "skipped" not in found


@pytest.mark.slow
def test_the_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    found = run("-m", "tests.kernel_compile_run", TRITON_CACHE_DIR=str(tmp_path)).splitlines()
    assert len(found) == 2 * (4 * 5 + 1)
    assert all(" 0 bytes spill stores" in line for line in found), found

"""Training on a CPU does not take its memory anew from the system at each step."""

import os
import platform
import subprocess
import sys

import pytest

from hf_lskd.host_memory import DEFAULT, KEEPING, set_all

FAULTS = """
import resource, sys
import torch
from hf_lskd import DistillationArguments, DistillationTrainer
from tests.conftest import tiny
from tests.test_lean_steps import Rows

def step():  # what a step with large activations does: takes 100 MB piece by piece, and frees them
    pieces = [torch.zeros(2**18) for _ in range(100)]

arguments = DistillationArguments(sys.argv[1], max_steps=1, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True)
DistillationTrainer(tiny(), arguments, train_dataset=Rows()).train()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print("pages", resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(folder: object, program: str = FAULTS, **environment: str) -> int:
    """Pages that a program counts in a process of its own: by default those that the second of two equal steps took from the
    system, behind a training."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUN", "LD_PRE"))
    }
    found = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(found.stdout.split("pages")[-1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library is told to keep memory")
def test_what_a_step_frees_the_next_one_has(tmp_path: object) -> None:
    assert pages(tmp_path) < 1000  # of the 25,600 that are 100 MB


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library is told to keep memory")
def test_an_allocator_that_the_environment_speaks_of_is_left_alone(tmp_path: object) -> None:
    assert pages(tmp_path, MALLOC_TRIM_THRESHOLD_="65536") > 10_000


PEAKS = """
import torch
from hf_lskd.host_memory import keep_freed_memory
from hf_lskd.record import peak_memory_mb, reset_peak_memory
from hf_lskd.study.cell import forget_earlier_cells

keep_freed_memory()
reset_peak_memory()
before = peak_memory_mb()
pieces = [torch.ones(2**18) for _ in range(100)]
del pieces
forget_earlier_cells()  # as each cell begins
reset_peak_memory()
print("pages", int(256 * (peak_memory_mb() - before)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library is told to keep memory")
def test_what_one_cell_has_freed_is_not_of_the_next_ones_peak(tmp_path: object) -> None:
    assert pages(tmp_path, PEAKS) < 10_000  # of the 25,600 that are 100 MB


@pytest.mark.parametrize("refused", range(len(KEEPING)))
def test_a_setting_that_is_refused_leaves_none_behind(refused: int) -> None:
    """Of a C library that takes all settings but one."""
    values = {parameter: DEFAULT for parameter, _ in KEEPING}
    asked: list[int] = []

    def mallopt(parameter: int, value: int) -> int:
        asked.append(parameter)
        if parameter == KEEPING[refused][0]:
            return 0
        values[parameter] = value
        return 1

    assert not set_all(mallopt, KEEPING)
    assert values == {parameter: DEFAULT for parameter, _ in KEEPING}
    assert len(asked) == 2 * refused + 1


def test_settings_that_are_taken_are_all_made() -> None:
    values: dict[int, int] = {}
    assert set_all(lambda parameter, value: values.update({parameter: value}) or 1, KEEPING)  # type: ignore[func-returns-value]
    assert values == dict(KEEPING)

"""The paper's tables as data: which pairs of teacher and student there are, and the number of each cell.

The only reader of `study/paper_results.json`. Source: Chandrasegaran et al., ICML 2022. Its numbers are single runs, so none
has an interval; those of CUB-200-2011 are of the best epoch on the test set.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from hf_lskd.errors import InputError, nearest

FILE = "study/paper_results.json"
ROUNDING = 1e-9  # of binary fractions: no difference that anybody printed or measured
OUR_COLUMNS = {"bleu": "bleu_tok_lc"}  # its BLEU is over Moses-tokenised, lower-cased text


@dataclass(frozen=True)
class PaperPair:
    """One table: a teacher, a student, a data set. `metrics` are the paper's names (top1 and top5 in percent, or bleu), the
    first the one that its claims are about. `cells` maps (α, T), T None for the teacher, to the number of each metric.
    `top_k`: how many of the teacher's most probable tokens the loss keeps; None: all classes."""

    name: str
    task: str
    data: str
    teacher: str
    student: str
    note: str
    top_k: int | None
    metrics: tuple[str, ...]
    cells: Mapping[tuple[float, float | None], Mapping[str, float]]

    @property
    def main(self) -> str:
        """The metric that the paper's claims are about."""
        return self.metrics[0]

    @property
    def temperatures(self) -> list[float]:
        """The students' temperatures, ascending; empty where no student's number is published."""
        return sorted({t for _, t in self.cells if t is not None})

    def value(self, alpha: float, temperature: float | None, metric: str) -> float | None:
        """The published number; None where there is none."""
        return self.cells.get((alpha, temperature), {}).get(metric)


@cache
def _page() -> Mapping[str, Any]:
    return json.loads(files("hf_lskd").joinpath(FILE).read_text(encoding="utf-8"))


def pair_names(task: str | None = None) -> list[str]:
    """The names of all pairs, or of those of one task, in the file's order."""
    return [name for name, entry in _page()["pairs"].items() if task in (None, entry["task"])]


def paper_pair(name: str) -> PaperPair:
    """A pair by its name. Raises InputError for an unknown one."""
    if name not in pair_names():
        raise InputError(f"paper: {name}", ", ".join(pair_names()), nearest(name, pair_names()))
    entry = dict(_page()["pairs"][name])
    metrics = tuple(entry.pop("metrics"))
    cells = {
        (cell["alpha"], None if cell["T"] is None else float(cell["T"])): {metric: cell[metric] for metric in metrics}
        for cell in entry.pop("cells")
    }
    return PaperPair(name, metrics=metrics, cells=cells, **entry)


def our_column(metric: str) -> str:
    """The column of results.csv that measures what the paper calls `metric`."""
    return OUR_COLUMNS.get(metric, metric)


def source() -> tuple[str, str]:
    """(where the numbers come from, what they are), a sentence each."""
    return f"The paper: {_page()['source']}.", _page()["note"]


def half_a_digit() -> float:
    """Half a unit of the last printed decimal: two numbers closer than this are printed alike."""
    return 0.5 * 10 ** -_page()["decimals"]

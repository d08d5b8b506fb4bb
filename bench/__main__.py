"""Every cost that this project promises, beside its peer; a row's contestants in one run.

    python -m bench [ROW…] [--rounds N] [--threads N] [--curves]
    python -m bench column --recipe FILE [--set KEY=VALUE]…

Rows by name: see ROWS. Writes bench/results.json (rows that were not asked for stay as they are) and docs/bench.md. A column of
another recipe or other settings is shown and written nowhere.
"""

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path

import torch

from bench.measure import Result
from bench.tables import show, write

ROWS = {
    "loss": ("bench.loss", "rows"),
    "kd": ("bench.step", "kd_rows"),
    "trainer": ("bench.step", "trainer_rows"),
    "statistics": ("bench.step", "statistics_rows"),
    "column": ("bench.column", "table_rows"),
    "nmt": ("bench.translation", "step_rows"),
    "nmt-cache": ("bench.translation", "cache_rows"),
    "beam": ("bench.translation", "beam_rows"),
}


def measured(name: str) -> Callable[[int], list[Result]]:
    module, function = ROWS[name]
    return getattr(importlib.import_module(module), function)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which (default: all): {', '.join(ROWS)}")
    parser.add_argument(
        "--rounds", type=int, default=7, help="slices of each contestant, at least 5 (default: 7), more in short rows"
    )
    parser.add_argument("--threads", type=int, default=1, help="of every contestant (default: 1)")
    parser.add_argument("--curves", action="store_true", help="draw docs/bench_*.png, which are not kept")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="column: another recipe than the demo's letters")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="column: as in hf-lskd study")
    args = parser.parse_args()
    if unknown := set(args.rows) - set(ROWS):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    rounds = max(args.rounds, 5)
    torch.set_num_threads(args.threads)
    if args.recipe or args.set:
        if args.rows != ["column"]:
            parser.error("--recipe and --set go with the row column, and no other")
        from bench import column

        show(column.rows(rounds, args.recipe or column.RECIPE, args.set))
        return
    for name in args.rows or ([] if args.curves else ROWS):
        found = measured(name)(rounds)
        show(found)
        write(name, found)
    if args.curves:
        from bench.curves import draw

        draw(rounds)


if __name__ == "__main__":
    main()

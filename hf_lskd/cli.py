"""`hf-lskd`: the command line. What is heavy is imported inside the handlers, so that `--help` answers at once."""

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_lskd.errors import InputError, nearest

EXAMPLES = """examples:
  hf-lskd study recipes/quickstart/digits.yaml                 two teachers, eight students, one report
  hf-lskd study recipes/quickstart/glyphs.yaml --dry-run       what would run, a line a cell
  hf-lskd train recipes/quickstart/glyphs.yaml --label-smoothing 0.1
  hf-lskd report runs/digits                                   the page again, from the study's files
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 2 wrong usage or input, 130 interrupted, 1 anything else."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    args, rest = parser.parse_known_args(arguments)
    if rest and args.command != "train":
        known = [option for action in parser.commands[args.command]._actions for option in action.option_strings]  # type: ignore[attr-defined]
        parser.error(f"unknown argument {rest[0]}. {nearest(rest[0].split('=')[0], known)}".strip())
    args.rest = rest
    try:
        return int(args.run(args) or 0)
    except InputError as error:
        return complain(str(error), 2, args.debug)
    except KeyboardInterrupt:
        return complain("Interrupted. Run the same command again to go on.", 130, False)
    except Exception as error:
        return complain(f"{type(error).__name__}: {error}", 1, args.debug)


def complain(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"hf-lskd: {message}", file=sys.stderr)
    if code == 1 and not debug:
        print("hf-lskd: run again with --debug for the traceback", file=sys.stderr)
    return code


def build_parser() -> argparse.ArgumentParser:
    import hf_lskd

    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="hf-lskd",
        description="Should I smooth my teacher, and at which temperature do I distil?",
        epilog=EXAMPLES,
        formatter_class=shape,
    )
    parser.add_argument("--version", action="version", version=f"hf-lskd {hf_lskd.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Any], int | None], text: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text, epilog=f"example:\n  {example}", formatter_class=shape
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=run)
        return sub

    add_train(command("train", run_train, "train one teacher or student of a recipe",
                      "hf-lskd train recipes/quickstart/glyphs.yaml --role student --temperature 2 --teacher runs/teacher/model"))  # fmt: skip
    add_study(command("study", run_study, "run the α x T (x seed) grid of a recipe; run again, it does what is missing",
                      "hf-lskd study recipes/quickstart/glyphs.yaml --output-dir runs/glyphs"))  # fmt: skip
    for name, run, text, example in (
        ("eta", run_eta, "the diffusion index of a study: eta.csv and a summary", "hf-lskd eta runs/glyphs"),
        ("report", run_report, "tables and pictures of a study on one HTML page", "hf-lskd report runs/glyphs"),
    ):
        command(name, run, text, example).add_argument("dir", type=Path, help="a study's folder")
    project = command(
        "project", run_project, "the penultimate projections of a study", "hf-lskd project runs/glyphs --classes o ö x"
    )
    project.add_argument("dir", type=Path, help="a study's folder")
    project.add_argument(
        "--classes", nargs=3, metavar=("TARGET", "SIMILAR", "DISSIMILAR"), help="class names; default: the recipe's"
    )
    validate = command(
        "validate",
        run_validate,
        "check recipes without training: all errors at once",
        "hf-lskd validate recipes/quickstart/*.yaml",
    )
    validate.add_argument("recipes", nargs="+", type=Path, metavar="RECIPE")
    validate.add_argument("--data", action="store_true", help="open the data too")
    parser.commands = commands.choices  # type: ignore[attr-defined]
    return parser


def add_train(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("recipe", type=Path)
    sub.add_argument(
        "--role", choices=("teacher", "student"), default="teacher", help="what to train (default: teacher)"
    )
    sub.add_argument("--student", help="which student of the recipe (default: its first)")
    sub.add_argument("--label-smoothing", type=float, metavar="α", help="the teacher's α (default: the grid's first)")
    sub.add_argument("--temperature", type=float, metavar="T", help="of a student (default: the grid's first)")
    sub.add_argument("--seed", type=int, help="default: the grid's first")
    sub.add_argument(
        "--teacher", type=Path, help="of a student: the folder of a finished teacher (its cell, or the model in it)"
    )
    sub.add_argument("--output-dir", type=Path, help="the folder to make (default: runs/NAME/cells/CELL)")
    sub.add_argument("--kd-weight", type=float, metavar="W", help="weight of the soft loss, in [0, 1]")
    sub.add_argument("--kd-loss-scale", metavar="X", help="factor on the soft loss: a number, or equalised for 1/g(T)")
    sub.add_argument("--scale-student", choices=("true", "false"), help="whether T divides the student's logits too")
    sub.add_argument("--student-label-smoothing", type=float, metavar="α", help="the student's own α")
    sub.add_argument("--kd-top-k", type=int, metavar="K", help="distil the teacher's K most probable classes only")
    sub.epilog = f"{sub.epilog}\n\nAny training argument may follow: --learning_rate 0.1 --num_train_epochs 3 …"


def add_study(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("recipe", type=Path)
    sub.add_argument("--output-dir", type=Path, help="the study's folder (default: runs/NAME)")
    sub.add_argument("--dry-run", action="store_true", help="print what would run: role, α, T, seed, command")
    sub.add_argument("--seeds", type=int, metavar="N", help="how many seeds, in place of the recipe's")
    sub.add_argument(
        "--launcher", choices=("inline", "accelerate", "slurm"), default="inline", help="how cells are started"
    )


# ---- Handlers


def run_validate(args: Any) -> int:
    from hf_lskd.recipe import load_recipe

    problems: list[str] = []
    for path in args.recipes:
        try:
            recipe = load_recipe(path)
            if args.data:
                from hf_lskd.tasks.image_classification import ImageClassification

                ImageClassification(recipe)
        except InputError as error:
            problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")
        else:
            print(f"{path}: {recipe.task}, {len(planned(recipe))} cells")
    if problems:
        raise InputError("\n".join(problems))
    return 0


def planned(recipe: Any) -> list[Any]:
    from hf_lskd.study.grid import cells

    return cells(recipe)


def recipe_of(args: Any) -> Any:
    from hf_lskd.recipe import load_recipe

    recipe = load_recipe(args.recipe)
    seeds = getattr(args, "seeds", None)
    if seeds is None:
        return recipe
    if seeds < 1:
        raise InputError(f"--seeds {seeds}", "a whole number from 1")
    return recipe.replace_seeds(seeds)


def run_study(args: Any) -> int:
    recipe = recipe_of(args)
    folder = args.output_dir or Path("runs") / recipe.name
    if args.dry_run:
        for cell in planned(recipe):
            temperature = "-" if cell.temperature is None else f"{cell.temperature:g}"
            print(
                cell.role,
                f"{cell.label_smoothing:g}",
                temperature,
                cell.seed,
                command_of(cell, args.recipe, folder),
                sep="\t",
            )
        return 0
    if args.launcher != "inline":
        raise InputError(
            f"--launcher {args.launcher}",
            "inline",
            "This version starts every cell in one process; a single cell runs under `accelerate launch -m hf_lskd.cli train …`.",
        )
    from hf_lskd.study.runner import run_study as run
    from hf_lskd.study.summary import print_summary

    quiet_libraries()
    records = run(recipe, folder)
    print_summary(folder, records)
    return 1 if any(record["status"] == "failed" for record in records) else 0


def command_of(cell: Any, recipe: Path, folder: Path) -> str:
    """The command that makes one cell on its own."""
    import shlex

    parts = [
        "hf-lskd",
        "train",
        str(recipe),
        "--role",
        cell.role,
        "--label-smoothing",
        f"{cell.label_smoothing:g}",
        "--seed",
        str(cell.seed),
    ]
    if cell.role == "student":
        parts += ["--student", cell.student, "--temperature", f"{cell.temperature:g}"]
        parts += ["--teacher", str(folder / "cells" / cell.teacher.name)]
        for option, value, usual in (
            ("--kd-weight", cell.kd_weight, 1.0),
            ("--kd-loss-scale", cell.kd_loss_scale, 1.0),
            ("--scale-student", cell.scale_student, True),
            ("--student-label-smoothing", cell.student_label_smoothing, 0.0),
            ("--kd-top-k", cell.kd_top_k, None),
        ):
            parts += [] if value == usual else [option, str(value).lower()]
    return shlex.join([*parts, "--output-dir", str(folder / "cells" / cell.name)])


def run_train(args: Any) -> int:
    from hf_lskd.study.single import train_one

    quiet_libraries()
    record = train_one(recipe_of(args), args)
    metrics = "  ".join(f"{name} {value:.4g}" for name, value in record["metrics"].items())
    print(f"{record['name']}: {metrics}")
    return 0


def run_eta(args: Any) -> int:
    from hf_lskd.study.runner import retabulate
    from hf_lskd.study.summary import print_eta

    quiet_libraries()
    retabulate(args.dir, "eta")
    print_eta(args.dir)
    return 0


def run_project(args: Any) -> int:
    from hf_lskd.study.runner import retabulate

    quiet_libraries()
    retabulate(args.dir, "projection", args.classes)
    print(args.dir / "projections.json")
    return run_report(args)


def run_report(args: Any) -> int:
    from hf_lskd.study.report import write_report

    print(write_report(args.dir))
    return 0


def quiet_libraries() -> None:
    """Libraries say only what went wrong; the study speaks for itself."""
    import logging
    import warnings

    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("timm").setLevel(logging.ERROR)
    logging.getLogger("hf_lskd").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


if __name__ == "__main__":
    sys.exit(main())

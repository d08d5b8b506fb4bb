"""`hf-lskd`: the command line. What is heavy is imported inside the handlers, so that `--help` answers at once."""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hf_lskd import cli_publish
from hf_lskd.errors import InputError, nearest
from hf_lskd.hub import export_command
from hf_lskd.study.launch_options import add_launch_options, check_launch, launch_words, run_launched

EXAMPLES = """examples:
  hf-lskd study recipes/quickstart/digits.yaml                 two teachers, eight students, one report
  hf-lskd study recipes/quickstart/glyphs.yaml --dry-run       what would run, a line a cell
  hf-lskd train recipes/quickstart/glyphs.yaml --label-smoothing 0.1
  hf-lskd report runs/digits                                   the page again, from the study's files
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 2 wrong usage or input, 130 interrupted, 1 anything else."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser, commands = build_parser()
    args, rest = parser.parse_known_args(words)
    if rest and args.command != "train":
        known = [option for action in commands[args.command]._actions for option in action.option_strings]
        commands[args.command].error(f"unknown argument {rest[0]}. {nearest(rest[0].split('=')[0], known)}".strip())
    args.rest, args.own_process = rest, argv is None
    try:
        code = int(args.run(args) or 0)
        sys.stdout.flush()
        return code
    except InputError as error:
        return complain(str(error), 2, args.debug)
    except KeyboardInterrupt:
        return complain("Interrupted. Run the same command again to go on.", 130, False)
    except BrokenPipeError:  # the reader of our output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return complain(f"{type(error).__name__}: {error}", 1, args.debug)


class Parser(argparse.ArgumentParser):
    """argparse with one message in place of a page of usage, and no guessing of shortened options."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"hf-lskd: {message} See `{self.prog} --help`.\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            hint = nearest(str(value), list(action.choices))
            raise argparse.ArgumentError(action, f"{value!r}. Allowed: {', '.join(action.choices)}. {hint}".rstrip())


def complain(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"hf-lskd: {message}", file=sys.stderr)
    if code == 1 and not debug:
        print("hf-lskd: run again with --debug for the traceback", file=sys.stderr)
    return code


def build_parser() -> tuple[Parser, Mapping[str, argparse.ArgumentParser]]:
    """The parser, and those of its commands by name."""
    import hf_lskd

    parser = Parser(
        prog="hf-lskd",
        description="Should I smooth my teacher, and at which temperature do I distil?",
        epilog=EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"hf-lskd {hf_lskd.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Any], int | None], text: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, epilog=f"example:\n  {example}")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=run)
        return sub

    glyphs = "recipes/quickstart/glyphs.yaml"
    example = f"hf-lskd train {glyphs} --role student --temperature 2 --teacher runs/teacher"
    add_train(command("train", run_train, "train one teacher or student of a recipe", example))
    text = "run the α x T (x seed) grid of a recipe; run again, it does what is missing"
    add_study(command("study", run_study, text, f"hf-lskd study {glyphs} --output-dir runs/glyphs"))
    text = "the diffusion index of a study: eta.csv and a summary"
    add_folder(command("eta", run_eta, text, "hf-lskd eta runs/glyphs"))
    text, example = "the penultimate projections of a study", "hf-lskd project runs/glyphs --classes o ö x"
    add_project(command("project", run_project, text, example))
    text = "tables and pictures of a study on one HTML page"
    add_folder(command("report", run_report, text, "hf-lskd report runs/glyphs"))
    text = "a study beside the paper's tables: difference, interval, verdict; compare.csv"
    add_folder(command("compare", run_compare, text, "hf-lskd compare runs/cub200"))
    text, example = (
        "check recipes and their models' names without training: all errors at once",
        "hf-lskd validate recipes/quickstart/*.yaml",
    )
    add_validate(command("validate", run_validate, text, example))
    text = "translate a file with a model, a finished cell or a recipe's teacher; run again, it goes on"
    example = "hf-lskd translate runs/cldr-en-de/cells/teacher-a0-s0 --input en.txt --output de.tsv"
    add_translate(command("translate", run_translate, text, example))
    from hf_lskd.hub import convert  # its arguments only

    text = "another library's checkpoint as a model's folder, checked: torchvision, timm or fairseq"
    convert.add_convert(command("convert", run_convert, text, convert.EXAMPLE))
    text, example = cli_publish.TEXT, cli_publish.EXAMPLE
    cli_publish.add_publish(command("publish", cli_publish.run_publish, text, example))
    export = command("export", export_command.run_export, export_command.HELP, export_command.EXAMPLE)
    export_command.add_export(export)
    return parser, commands.choices


def add_folder(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("dir", type=Path, help="a study's folder")


def add_project(sub: argparse.ArgumentParser) -> None:
    add_folder(sub)
    names = ("TARGET", "SIMILAR", "DISSIMILAR")
    sub.add_argument("--classes", nargs=3, metavar=names, help="class names; default: the recipe's")


def add_validate(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("recipes", nargs="+", type=Path, metavar="RECIPE")
    add_changes(sub)
    sub.add_argument("--data", action="store_true", help="open the data too")


def add_translate(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", metavar="MODEL|RECIPE", help="a folder or Hub name, a cell's folder, or a recipe")
    sub.add_argument(
        "--input", type=Path, required=True, help=".txt (a sentence a line), .tsv (first column), .jsonl (source)"
    )
    sub.add_argument(
        "--output", type=Path, required=True, help=".tsv (source, translation), .txt, or .jsonl with scores"
    )
    sub.add_argument("--study", type=Path, help="of a recipe: the study's folder (default: runs/NAME)")
    sub.add_argument("--cell", help="of a recipe: which cell translates (default: its first teacher)")
    sub.add_argument("--beams", type=int, help="default: the recipe's, else 4; 1 is greedy")
    sub.add_argument("--length-penalty", type=float, help="default: the recipe's, else 1.0")
    sub.add_argument("--max-length", type=int, help="most tokens of a translation (default: by the source's length)")
    sub.add_argument(
        "--max-tokens", type=int, default=4096, help="source tokens times beams in a batch (default: 4096)"
    )


def add_changes(sub: argparse.ArgumentParser) -> None:
    """What is laid over a recipe before it is read."""
    sub.add_argument("--alternative", metavar="NAME", help="one of the recipe's own alternatives")
    sub.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="another value, such as data.path=/data/cub"
    )


def add_train(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("recipe", type=Path)
    add_changes(sub)
    sub.add_argument(
        "--role", choices=("teacher", "student"), default="teacher", help="what to train (default: teacher)"
    )
    sub.add_argument("--student", help="which student of the recipe (default: its first)")
    sub.add_argument("--label-smoothing", type=float, metavar="α", help="the teacher's α (default: the grid's first)")
    sub.add_argument("--temperature", type=float, metavar="T", help="of a student (default: the grid's first)")
    sub.add_argument("--seed", type=int, help="default: the grid's first")
    sub.add_argument(
        "--teacher",
        type=Path,
        nargs="+",
        help="of a student: the folder of a finished teacher, or of several (ensemble)",
    )
    sub.add_argument("--output-dir", type=Path, help="the folder to make (default: runs/NAME/cells/CELL)")
    sub.add_argument("--kd-weight", type=float, metavar="W", help="weight of the soft loss, in [0, 1]")
    sub.add_argument("--kd-loss-scale", metavar="X", help="factor on the soft loss: a number, or equalised for 1/g(T)")
    sub.add_argument("--scale-student", choices=("true", "false"), help="whether T divides the student's logits too")
    sub.add_argument("--student-label-smoothing", type=float, metavar="α", help="the student's own α")
    sub.add_argument("--kd-top-k", metavar="K", help="distil the teacher's K most probable classes only; none: all")
    sub.add_argument(
        "--processes", type=int, metavar="N", help="how many processes have to be at work, else it is an error"
    )
    sub.epilog = f"{sub.epilog}\n\nAny training argument may follow: --learning_rate 0.1 --num_train_epochs 3 …"


def add_study(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("recipe", type=Path)
    add_changes(sub)
    sub.add_argument("--output-dir", type=Path, help="the study's folder (default: runs/NAME)")
    sub.add_argument("--dry-run", action="store_true", help="print what would run: role, α, T, seed, command")
    sub.add_argument("--seeds", type=int, metavar="N", help="how many seeds, in place of the recipe's")
    sub.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="teachers, each with its students, at once (default: one a core; with a GPU 1)",
    )
    sub.add_argument(
        "--lockstep",
        choices=("on", "off"),
        default="on",
        help="train students of one teacher that read the same batches together, as far as memory allows (the same results, sooner)",
    )
    add_launch_options(sub)


# ---- Handlers


def run_validate(args: Any) -> int:
    from hf_lskd.recipe import load_recipe
    from hf_lskd.tasks.names import check_models

    problems: list[str] = []
    for path in args.recipes:
        unchecked: dict[str, None] = {}  # each once, in order
        try:
            if (launch := launch_config(path)) is not None:
                print(f"{path}: accelerate, {launch}")
                continue
            for alternative in (args.alternative,) if args.alternative else (None, *alternatives(path)):
                recipe = load_recipe(path, alternative, args.set)
                unchecked |= dict.fromkeys(check_models(recipe, str(path)))
                if args.data:
                    from hf_lskd.study.bench import open_bench
                    from hf_lskd.study.ownership import check_given_teachers

                    check_given_teachers(None, open_bench(recipe))
                which = f" ({alternative})" if alternative else ""
                print(f"{path}{which}: {recipe.task}, {len(planned(recipe))} cells")
            for line in () if args.data else unchecked:
                print(f"{path}: {line}")
        except InputError as error:
            problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    if problems:
        raise InputError("\n".join(problems))
    return 0


def launch_config(path: Path) -> str | None:
    """What a configuration of `accelerate launch` starts, in words; None for any other page."""
    from hf_lskd.recipe_yaml import read_document, read_page

    page = read_document(read_page(path), str(path)).values
    if not isinstance(page, Mapping) or "distributed_type" not in page:
        return None
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(path))
    return f"{found.num_processes} processes on {found.num_machines} machines"


def alternatives(path: Path) -> list[str]:
    from hf_lskd.recipe import recipe_alternatives

    return recipe_alternatives(path)


def planned(recipe: Any) -> list[Any]:
    from hf_lskd.study.grid import cells

    return cells(recipe)


def recipe_of(args: Any) -> Any:
    from hf_lskd.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.alternative, args.set)
    seeds = getattr(args, "seeds", None)
    return recipe if seeds is None else recipe.replace_seeds(seeds)


def run_study(args: Any) -> int:
    from hf_lskd.record import exact

    recipe = recipe_of(args)
    folder = args.output_dir or Path("runs") / recipe.name
    if args.dry_run:
        from hf_lskd.tasks.names import check_models

        for line in check_models(recipe, str(args.recipe)):
            print(f"hf-lskd: {line}", file=sys.stderr)
        config = check_launch(recipe, args)
        if config is not None and config.machines > 1:
            print("hf-lskd: on each machine the same line with its own --machine_rank", file=sys.stderr)
        for cell in planned(recipe):
            temperature = "-" if cell.temperature is None else exact(cell.temperature)
            command = command_of(cell, recipe, args, folder, config)
            print(cell.role, exact(cell.label_smoothing), temperature, cell.seed, command, sep="\t")
        return 0
    began, before = time.monotonic(), finished_cells(recipe, folder)
    from hf_lskd.study.claims import is_first
    from hf_lskd.study.quiet import quiet_libraries
    from hf_lskd.study.summary import print_summary, time_taken

    quiet_libraries()
    records = run_launched(recipe, folder, args)
    if records is None:  # jobs are to make them
        return 0
    if is_first(recipe):
        seconds = process_age() if args.own_process else time.monotonic() - began
        print_summary(folder, records, time_taken(folder, records, before, seconds, args.own_process))
    return exit_code(records)


def process_age() -> float:
    """Seconds since this process began, its imports included."""
    import psutil

    return max(time.time() - psutil.Process().create_time(), 0.0)


def finished_cells(recipe: Any, folder: Path) -> set[str]:
    """Names of the grid's cells that are complete in a study's folder."""
    from hf_lskd.record import CELLS, read_record

    found = {cell.name: read_record(folder / CELLS / cell.name) for cell in planned(recipe)}
    return {name for name, record in found.items() if record is not None and record["status"] == "complete"}


def exit_code(records: Sequence[Any]) -> int:
    """1 when a cell failed; 2 when none was finished and it was the input's fault in all of them."""
    failed = [record for record in records if record["status"] == "failed"]
    if len(failed) == len(records) and all(record["error"].get("input") for record in failed):
        return 2
    return 1 if failed else 0


def command_of(cell: Any, recipe: Any, args: Any, folder: Path, config: Any = None) -> str:
    """The command that makes one cell on its own; with a `config` of accelerate, by as many processes or not at all."""
    import shlex

    from hf_lskd.record import CELLS, exact
    from hf_lskd.study.grid import teachers_of

    parts = [*launch_words(args, config), "train", str(args.recipe), "--role", cell.role]
    parts += ["--alternative", args.alternative] if args.alternative else []
    parts += [word for setting in args.set for word in ("--set", setting)]
    parts += ["--label-smoothing", exact(cell.label_smoothing), "--seed", str(cell.seed)]
    if cell.role == "student":
        parts += ["--student", cell.student, "--temperature", exact(cell.temperature)]
        parts += ["--teacher", *(str(folder / CELLS / teacher.name) for teacher in teachers_of(recipe, cell))]
        for option in ("kd_weight", "kd_loss_scale", "scale_student", "student_label_smoothing", "kd_top_k"):
            value = getattr(cell, option)
            if value != getattr(recipe.grid, option)[0]:  # what `train` takes when nothing is said
                parts += [f"--{option.replace('_', '-')}", exact(value).lower()]
    parts += ["--processes", str(config.processes)] if config is not None else []
    return shlex.join([*parts, "--output-dir", str(folder / CELLS / cell.name)])


def run_train(args: Any) -> int:
    from hf_lskd.study.quiet import quiet_libraries
    from hf_lskd.study.single import train_one

    quiet_libraries()
    record = train_one(recipe_of(args), args)
    shown = ("top1", "top5", "ece", "bleu", "chrf", "nll")
    print(f"{record['name']}:", *(f"{k} {record['metrics'][k]:.4g}" for k in shown if k in record["metrics"]))
    return 0


def run_translate(args: Any) -> int:
    from hf_lskd.study.quiet import quiet_libraries
    from hf_lskd.study.translating import translate_file

    quiet_libraries()
    print(f"{args.output}: {translate_file(args)} translations")
    return 0


def run_convert(args: Any) -> int:
    from hf_lskd.hub.convert import run_convert as run
    from hf_lskd.study.quiet import quiet_libraries

    quiet_libraries()
    return run(args)


def run_eta(args: Any) -> int:
    from hf_lskd.study.quiet import quiet_libraries
    from hf_lskd.study.runner import retabulate
    from hf_lskd.study.summary import print_eta

    quiet_libraries()
    retabulate(args.dir, "eta")
    print_eta(args.dir)
    return 0


def run_project(args: Any) -> int:
    from hf_lskd.study.quiet import quiet_libraries
    from hf_lskd.study.runner import retabulate

    quiet_libraries()
    retabulate(args.dir, "projection", args.classes)
    print(args.dir / "projections.json")
    return run_report(args)


def run_compare(args: Any) -> int:
    from hf_lskd.study.compare import COMPARE, write_comparison
    from hf_lskd.study.compare_tables import print_comparison

    print_comparison(*write_comparison(args.dir))
    print(args.dir / COMPARE)
    return 0


def run_report(args: Any) -> int:
    from hf_lskd.study.report import write_report

    print(write_report(args.dir))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`hf-lskd study --launcher`: its options, and the way from them to a study run by process groups or jobs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_lskd.errors import InputError

LAUNCHERS = ("inline", "accelerate", "slurm")
OF_SLURM = ("slurm_template", "slurm_limit", "wait")


def add_launch_options(sub: Any) -> None:
    """Add the options to the parser of `hf-lskd study`."""
    sub.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        default="inline",
        help="how cells are started: in this process (the default), each by `accelerate launch`, or as jobs of a cluster",
    )
    sub.add_argument(
        "--accelerate-config",
        type=Path,
        metavar="FILE",
        help="what makes one cell, such as recipes/accelerate/ddp_8.yaml",
    )
    sub.add_argument(
        "--slurm-template",
        type=Path,
        metavar="FILE",
        help="a job's script with the cluster's own lines (docs/launch.md)",
    )
    sub.add_argument("--slurm-limit", type=int, metavar="N", help="how many elements of one job array run at once")
    sub.add_argument(
        "--wait", action="store_true", help="with slurm: return when the cells are made, not when submitted"
    )


def run_launched(recipe: Any, folder: Path, args: Any) -> Sequence[Any] | None:
    """Run the study by the launcher that `args` name. Returns its records; None when they are for jobs still to come."""
    check_options(args)
    if args.launcher == "slurm":
        from hf_lskd.study.slurm import run_jobs

        return run_jobs(recipe, folder, args)
    from hf_lskd.study.launch import accelerated, check_devices, read_config
    from hf_lskd.study.runner import run_study

    if args.launcher == "inline":
        return run_study(recipe, folder, jobs=args.jobs, lockstep=args.lockstep == "on")
    config = read_config(args.accelerate_config)
    check_devices(config)
    print(f"accelerate: {config.path}, {config.processes} processes a cell")
    return run_study(recipe, folder, jobs=1, launch=accelerated(config))


def launch_words(args: Any) -> list[str]:
    """How the command line is started for one cell alone."""
    if args.accelerate_config is None:
        return ["hf-lskd"]
    return ["accelerate", "launch", "--config_file", str(args.accelerate_config), "-m", "hf_lskd.cli"]


def check_options(args: Any) -> None:
    """Raise InputError for an option that another launcher has."""
    unused = [] if args.launcher == "slurm" else [name for name in OF_SLURM if getattr(args, name) not in (None, False)]
    unused += ["accelerate_config"] if args.launcher == "inline" and args.accelerate_config is not None else []
    if unused:
        option = f"--{unused[0].replace('_', '-')}"
        other = "accelerate or slurm" if unused[0] == "accelerate_config" else "slurm"
        raise InputError(f"{option} with --launcher {args.launcher}", f"{option} with --launcher {other}")
    if args.launcher != "inline" and args.jobs not in (None, 1):
        raise InputError(
            f"--jobs {args.jobs} with --launcher {args.launcher}",
            "one cell at a time of each command",
            "Run the command several times at once: they share the cells. For slurm use --slurm-limit.",
        )

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
    config = check_launch(recipe, args)
    if args.launcher == "slurm":
        from hf_lskd.study.slurm import run_jobs

        return run_jobs(recipe, folder, args, config)
    from hf_lskd.study.launch import accelerated, check_devices
    from hf_lskd.study.runner import run_study

    if config is None:
        return run_study(recipe, folder, jobs=args.jobs, lockstep=args.lockstep == "on")
    check_devices(config)
    print(f"accelerate: {config.path}, {config.processes} processes a cell")
    return run_study(recipe, folder, jobs=1, launch=accelerated(config))


def check_launch(recipe: Any, args: Any) -> Any:
    """What starts a cell: a configuration of `accelerate launch`, or None for one process.

    Raises InputError for everything about launching that is wrong wherever the study is to run: options of another launcher,
    files that cannot be used, a recipe that several processes cannot make. What this machine has is not looked at.
    """
    from hf_lskd.study.bench import check_cache
    from hf_lskd.study.launch import check_machines, read_config
    from hf_lskd.study.side_by_side import jobs_of
    from hf_lskd.study.slurm_script import read_template

    check_options(args)
    jobs_of(recipe, args.jobs)
    if args.slurm_limit is not None and args.slurm_limit < 1:
        raise InputError(f"--slurm-limit {args.slurm_limit}", "a whole number from 1")
    if args.launcher == "slurm":
        read_template(args.slurm_template)
    if args.launcher == "inline" or (args.launcher == "slurm" and args.accelerate_config is None):
        return None
    config = read_config(args.accelerate_config)
    if args.launcher == "accelerate":
        check_machines(config)
    check_cache(recipe, config.processes)
    return config


def launch_words(args: Any, config: Any) -> list[str]:
    """How the command line is started for one cell alone; of several machines, on the first of them."""
    if config is None:
        return ["hf-lskd"]
    from accelerate.utils import parse_flag_from_env

    on_cpu = ["ACCELERATE_USE_CPU=true"] if parse_flag_from_env("ACCELERATE_USE_CPU") else []
    rank = ["--machine_rank", "0"] if config.machines > 1 else []
    return [*on_cpu, "accelerate", "launch", "--config_file", str(args.accelerate_config), *rank, "-m", "hf_lskd.cli"]


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

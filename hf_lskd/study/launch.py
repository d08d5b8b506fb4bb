"""Cells as process groups of their own, started by `accelerate launch` with a configuration that is given by name."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hf_lskd.errors import InputError
from hf_lskd.record import FILE, Cell, read_record, write_json
from hf_lskd.study.bench import Bench
from hf_lskd.study.cell import fail_cell

LOGS = "logs"  # in a study's folder: what each cell's processes said, attempt after attempt
PATIENCE = 10.0  # seconds between asking a process group to end and ending it


@dataclass(frozen=True)
class Config:
    """A configuration of `accelerate launch`, and what it starts for one cell."""

    path: Path
    processes: int
    machines: int


def read_config(path: Path | None) -> Config:
    """The configuration in a file. Raises InputError when none is named, it cannot be read, or it starts something else than
    it says: accelerate has defaults for what is missing, and on a processor begins one process without a word."""
    import yaml
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    if path is None:
        there = f"accelerate's own, {default_config_file}, counts only when it is named"
        raise InputError("no --accelerate-config", "a file", f"Take one of recipes/accelerate; {there}.")
    try:
        found: Any = load_config_from_file(str(path))
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise InputError(
            f"{path}: {error}", "a configuration of `accelerate launch`", "See recipes/accelerate."
        ) from error
    if not isinstance(found.num_processes, int) or found.num_processes < 1:
        raise InputError(f"{path}: num_processes {found.num_processes}", "a whole number from 1: it is part of a cell")
    kind = str(getattr(found.distributed_type, "value", found.distributed_type))
    if found.num_processes > 1 and (kind in ("NO", "MULTI_CPU") or found.use_cpu):
        raise InputError(
            f"{path}: {found.num_processes} processes with distributed_type {kind} and use_cpu {bool(found.use_cpu)}",
            "distributed_type MULTI_GPU: accelerate starts processes that do not know of each other from the rest",
            "On a processor take recipes/accelerate/cpu_2.yaml.",
        )
    return Config(path.resolve(), found.num_processes, found.num_machines or 1)


def check_machines(config: Config) -> None:
    """Raise InputError when the configuration wants other machines too."""
    if config.machines > 1:
        raise InputError(
            f"{config.path}: {config.machines} machines with --launcher accelerate",
            "one machine a cell: the other machine's study would have to start the same cell at the same time",
            "Run the same command on each machine with recipes/accelerate/ddp_8.yaml and one --output-dir that both see: they "
            "share the cells. For a cell over several machines take --launcher slurm, or `accelerate launch … hf-lskd train`.",
        )


def check_devices(config: Config) -> None:
    """Raise InputError when the configuration wants more of this machine than is here."""
    import torch
    from accelerate.utils import parse_flag_from_env

    here = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if config.processes > max(here, 1) and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        raise InputError(
            f"{config.path}: {config.processes} processes on {here} accelerators",
            f"at most {max(here, 1)}",
            "On a processor put ACCELERATE_USE_CPU=true before the command.",
        )


def accelerated(config: Config) -> dict[str, Any]:
    """What a study's bench has to know so that `accelerate launch` makes its cells."""
    return {"processes": config.processes, "make": partial(make_launched, config)}


def command(config: Config, folder: Path, cell: Cell) -> list[str]:
    """What is started for one cell; with several processes on a port of its own that is free now."""
    port = ["--main_process_port", "0"] if config.processes > 1 else []
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config.path), *port]
    words = [str(folder), cell.name, "--processes", str(config.processes), "--claimed", "--end-with-parent"]
    return [*launch, "-m", "hf_lskd.study.launched", *words]


def make_launched(config: Config, bench: Bench, cell: Cell, place: Path, teachers: Sequence[Path]) -> dict[str, Any]:
    """Make a cell by a process group of its own, and return its record: complete, or failed with the group's exit status."""
    folder = place.parent.parent.resolve()
    log = log_of(folder, cell)
    forget_failure(place)
    began = log.stat().st_size if log.is_file() else 0
    status = run_process_group(command(config, folder, cell), log)
    record = read_record(place)
    if record is not None and record["status"] == "complete":
        return record
    lost = lost_rank(log.read_bytes()[began:].decode(errors="replace"))
    if record is None or lost is not None:  # what a rank says of another's end comes second
        said = "none of them said why" if record is None else record["error"]["message"]
        why = GroupLostError(f"{lost or 'its processes ended'}; {said} ({log} has the rest)")
        record = fail_cell(bench.recipe, cell, place, why)
    record = {**record, "exit_status": status, "log": str(log.relative_to(folder))}
    write_json(place / FILE, record)
    return record


class GroupLostError(RuntimeError):
    """A cell's processes ended before it was finished, and not by an error of their own."""


def forget_failure(place: Path) -> None:
    """Remove the record of an earlier attempt that failed, so that what is there afterwards is of this one."""
    failed = read_record(place)
    if failed is not None and failed["status"] == "failed":
        (place / FILE).unlink()


def log_of(folder: Path, cell: Cell) -> Path:
    """The file that everything goes to that a cell's processes say; it stays where it is when the cell's folder is renamed."""
    path = folder / LOGS / f"{cell.name}.log"
    path.parent.mkdir(exist_ok=True)
    return path


def lost_rank(text: str) -> str | None:
    """Which rank a signal ended, by the report of torch's launcher in `text`; None when each ended by itself. The launcher
    ends the others by SIGTERM, so that one is no cause."""
    ended = re.findall(r"rank\s+: (\d+).*?exitcode\s+: (-?\d+)", text, re.DOTALL)
    killed = [(rank, -int(status)) for rank, status in ended if int(status) < 0 and -int(status) != signal.SIGTERM]
    return f"rank {killed[0][0]} was ended by signal {killed[0][1]}" if killed else None


# ---- Process groups


def run_process_group(words: Sequence[str], log: Path) -> int:
    """Run a command and all that it starts, in a session of its own. Returns its exit status: negative, the signal.

    Nothing of it outlives this process: its members end when their standard input does, which only this process holds open.
    """
    with log.open("ab") as output, ending(words, output) as process:
        return process.wait()


@contextlib.contextmanager
def ending(words: Sequence[str], output: Any) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment()
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()  # the ranks, which accelerate puts into sessions of their own, end at this
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)


def environment() -> dict[str, str]:
    """This process's environment, in which Python finds the same modules and does not hold back what it says."""
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}

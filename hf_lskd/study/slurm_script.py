"""The script of a job array: a template with the cluster's own lines, the cells of its elements, and what makes one of them."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_lskd.errors import InputError
from hf_lskd.record import Cell
from hf_lskd.study.launch import LOGS, Config

DEFAULT = Path(__file__).with_name("slurm.sh")
CHOOSE, MAKE = "@CHOOSE_CELL@", "@MAKE_CELL@"
LAUNCHED = '-m hf_lskd.study.launched "$HF_LSKD_STUDY" "$HF_LSKD_CELL" --processes'
ACCELERATE = '"$HF_LSKD_PYTHON" -m accelerate.commands.launch --config_file "$HF_LSKD_CONFIG" --main_process_port'


def read_template(path: Path | None) -> str:
    """A template's text; None: the default one. Raises InputError for one that could not make a cell, or whose lines for
    sbatch would not be read."""
    path = DEFAULT if path is None else path
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--slurm-template {path}: {error}", "a readable script") from error
    lines = text.splitlines()
    if not lines or not lines[0].startswith("#!") or "sh" not in lines[0]:
        raise InputError(f"{path} does not begin with #!", "a script of bash", "Begin it with #!/usr/bin/env bash.")
    for name, what in ((CHOOSE, "which says the element's cell"), (MAKE, "which makes it")):
        if not any(name in line and not line.lstrip().startswith("#") for line in lines):
            raise InputError(f"{path} without {name}, {what}", f"a script with {CHOOSE} and, after it, {MAKE}", EXAMPLE)
    commands = [number for number, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")]
    late = [line for line in lines[commands[0] :] if line.startswith("#SBATCH")]
    if late:
        raise InputError(
            f"{path}: `{late[0]}` below a command", "such lines above the first command: sbatch reads no others"
        )
    return text


EXAMPLE = "See recipes/slurm/gpu.sh."


def script(template: str, folder: Path, cells: Sequence[Cell], config: Config | None) -> str:
    """The script of an array whose element i makes the i-th cell, with what `config` starts for one (None: one process)."""
    return template.replace(CHOOSE, choose(folder, cells, config)).replace(MAKE, make(config))


def choose(folder: Path, cells: Sequence[Cell], config: Config | None) -> str:
    """Lines of bash that tell an element, and every process of its job, what it makes, and where it says what happens."""
    exported = {
        "HF_LSKD_STUDY": shlex.quote(str(folder)),
        "HF_LSKD_CELL": '"${hf_lskd_cells[$SLURM_ARRAY_TASK_ID]}"',
        "HF_LSKD_PYTHON": shlex.quote(sys.executable),
        "HF_LSKD_CONFIG": shlex.quote("" if config is None else str(config.path)),
        "HF_LSKD_HOST": '"$(hostname)"',  # of the first node: the script runs there
        "HF_LSKD_PORT": '"$((20000 + SLURM_JOB_ID % 20000))"',
        "PYTHONPATH": shlex.quote(str(Path(__file__).resolve().parents[2])) + '"${PYTHONPATH:+:$PYTHONPATH}"',
        "PYTHONUNBUFFERED": "1",
    }
    lines = [f"hf_lskd_cells=({' '.join(shlex.quote(cell.name) for cell in cells)})"]
    lines += [f"export {name}={value}" for name, value in exported.items()]
    lines += [f'exec >> "$HF_LSKD_STUDY/{LOGS}/$HF_LSKD_CELL.log" 2>&1']
    return "\n".join(lines)


def make(config: Config | None) -> str:
    """The command that makes the element's cell: one process, several of one machine, or several machines each with some."""
    if config is None:
        return f'"$HF_LSKD_PYTHON" {LAUNCHED} 1'
    if config.machines == 1:
        return f"{ACCELERATE} 0 {LAUNCHED} {config.processes}"
    here = '--machine_rank "$SLURM_NODEID" --main_process_ip "$HF_LSKD_HOST"'
    each = f'exec {ACCELERATE} "$HF_LSKD_PORT" {here} {LAUNCHED} {config.processes}'
    return f"srun --kill-on-bad-exit=1 --nodes={config.machines} --ntasks-per-node=1 bash -c '{each}'"

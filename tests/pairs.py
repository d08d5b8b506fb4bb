"""Two plain python processes that know of each other, and what each of them found."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    quiet = {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return {**os.environ, "PYTHONPATH": path, **quiet, **more}


def finished(processes: list[subprocess.Popen]) -> None:
    """Wait for all; when one fails, end the others, which would wait for it, and show its last words."""
    try:
        ended = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, ended):
        assert process.returncode == 0, errors[-3000:]


def run_pair(module: str, folder: Path) -> None:
    """Run `python -m MODULE FOLDER` as ranks 0 and 1, to the end of both."""
    port, ranks = str(free_port()), []
    for rank in "01":
        variables = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"}
        variables = environment(**variables, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        command = [sys.executable, "-m", module, str(folder)]
        ranks.append(
            subprocess.Popen(
                command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    finished(ranks)


def read(folder: Path) -> list[dict[str, Any]]:
    """What both ranks saved, numpy arrays among it: files of processes that the test itself began."""
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]

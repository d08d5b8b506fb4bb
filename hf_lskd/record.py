"""What a cell of a study is, and the record that a finished (or failed) one leaves: JSON in and out."""

import contextlib
import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import hf_lskd
from hf_lskd.errors import InputError

FORMAT = 1
STUDY = "study.json"  # in a study's folder: its resolved recipe
CELLS = "cells"  # and its cells, a folder each
RESULTS = "results.csv"  # and one row of each finished cell
FILE = "record.json"  # in a cell's folder: there when the cell is finished
MODEL = "model"
STATISTICS = "statistics.safetensors"
PREDICTIONS = "predictions.safetensors"
TRANSLATIONS = "translations.jsonl"  # of the held-out pairs
CACHE = "teacher_cache"  # in a teacher's: its logits, where a recipe keeps them
EXPORT = "export.json"  # in the folder of an export: what it is of and how it compares
TARGETS = "targets.json"  # in a teacher's: g and entropy of what it teaches, by temperature
TIMES = ("runtime", "_per_second")  # how the keys of a trainer's log end that say how long a pass took
PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "accelerate",
    "datasets",
    "tokenizers",
    "sacrebleu",
    "babel",
    "sacremoses",
    "numpy",
    "safetensors",
    "pillow",
    "matplotlib",
)


@dataclass(frozen=True)
class Cell:
    """One point of the grid. `label_smoothing` is the teacher's α; a student's own is `student_label_smoothing`.

    Of a teacher only role, label_smoothing and seed mean anything; the rest stands at None.
    """

    role: str
    label_smoothing: float
    seed: int
    student: str = ""
    temperature: float | None = None
    kd_weight: float | None = None
    kd_loss_scale: float | str | None = None
    scale_student: bool | None = None
    student_label_smoothing: float | None = None
    kd_top_k: int | None = None

    @property
    def name(self) -> str:
        """A folder name that stays the same when the grid grows: what differs from the paper's loss is spelt out."""
        if self.role == "teacher":
            return f"teacher-a{exact(self.label_smoothing)}-s{self.seed}"
        parts = [self.student, f"a{exact(self.label_smoothing)}", f"T{exact(self.temperature)}"]
        parts += [f"w{exact(self.kd_weight)}"] if self.kd_weight != 1 else []
        parts += [f"x{exact(self.kd_loss_scale)}"] if self.kd_loss_scale != 1 else []
        parts += ["unscaled"] if not self.scale_student else []
        parts += [f"own{exact(self.student_label_smoothing)}"] if self.student_label_smoothing else []
        parts += [f"k{self.kd_top_k}"] if self.kd_top_k is not None else []
        return "-".join([*parts, f"s{self.seed}"])

    @property
    def teacher(self) -> "Cell":
        """The cell of the teacher that this student learns from."""
        return Cell("teacher", self.label_smoothing, self.seed)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Cell":
        """The cell that a record is of."""
        return cls(**{field.name: record[field.name] for field in fields(cls)})


def exact(value: float | str | None) -> str:
    """The shortest text of a number that reads back as the very same number (2, 0.1, 1e-05); anything else as text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def target_point(temperature: float, top_k: int | None) -> str:
    """The name of a temperature in `targets.json`, and of how many classes are kept where not all are."""
    return exact(temperature) if top_k is None else f"{exact(temperature)} top {top_k}"


def model_folder(path: Path) -> Path:
    """The model in a finished cell's folder; any other path as it is."""
    return path / MODEL if (path / FILE).is_file() and (path / MODEL).is_dir() else path


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record in a cell's folder, or None when there is none. Raises InputError when it is not one of ours."""
    path = folder / FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise InputError(
            f"{path} is no JSON ({error})", "a record written by hf-lskd", "Delete the folder to run the cell again."
        ) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(
            f"{path} has another format", f"format {FORMAT}", "It was written by another version of hf-lskd."
        )
    return record


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` so that a reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}")
    temporary.write_text(
        json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True, allow_nan=True) + "\n", encoding="utf-8"
    )
    os.replace(temporary, path)


def follow_umask(folder: Path) -> None:
    """Let the tensors in `folder` be read by whom its other files may be read by: safetensors keeps its files to their owner.

    (0.8 renames a temporary file of mode 0600 into place.) The mode is that of a file that is made there now; where modes
    cannot be changed nothing is.
    """
    probe = folder / f".mode.{platform.node()}.{os.getpid()}"
    with contextlib.suppress(OSError):
        with probe.open("w") as file:
            mode = os.fstat(file.fileno()).st_mode
        probe.unlink()
        for path in folder.glob("*.safetensors"):
            path.chmod(mode & 0o777)


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def without_times(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of a trainer's log without how long its pass took, which is no part of a curve or a metric."""
    return {key: value for key, value in entry.items() if not key.endswith(TIMES)}


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what its numbers rest on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "hf_lskd": hf_lskd.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware(world_size: int = 1) -> dict[str, Any]:
    """The machine in words: processor, threads, accelerator, processes."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {"cpu": cpu_name(), "gpu": gpu, "threads": torch.get_num_threads(), "world_size": world_size}


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def reset_peak_memory() -> None:
    """Begin a new peak, so that each cell of a process has its own (where the system lets a process do that)."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # Linux alone has it; elsewhere the peak is the process's so far
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Largest resident size of this process since `reset_peak_memory`, or of the accelerator's allocations, in MiB."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)

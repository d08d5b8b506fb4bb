"""What a cell's exports say of themselves, for its card: judged beside torch when they were made."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_lskd.errors import InputError
from hf_lskd.record import EXPORT, FILE, file_sha256

KEPT = ("format", "int8", "metrics", "size_bytes", "latency_ms", "versions")


def exports_of(cell: Path, folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Format, metrics, size and latency before and after, of each export of the finished cell in a folder.

    Raises InputError for a folder without an export, and for an export of another cell.
    """
    return [export_of(cell, folder) for folder in folders]


def export_of(cell: Path, folder: Path) -> dict[str, Any]:
    try:
        page = json.loads((folder / EXPORT).read_text(encoding="utf-8"))
        made_of = page["source"]["record_sha256"]
        found = {key: page[key] for key in KEPT}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--export {folder}: no {EXPORT} of ours ({type(error).__name__}: {error})",
            "a folder that `hf-lskd export` made",
            f"Run `hf-lskd export {cell} --format onnx` first.",
        ) from error
    if made_of != file_sha256(cell / FILE):
        raise InputError(
            f"--export {folder} is of another cell ({page['source'].get('name')})",
            f"an export of {cell.name}, as it is recorded now",
            f"Run `hf-lskd export {cell}` again.",
        )
    return found

"""Teachers that another study beside this one has finished already: found by signature, taken over, not trained again."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_lskd.record import CACHE, CELLS, FILE, Cell, read_record, write_json

logger = logging.getLogger(__name__)


def take_teacher(cell: Cell, folder: Path, sign: str) -> bool:
    """Take over the teacher `cell` into `folder` from a study that lies beside this one, when one has finished it.

    Its signature says that everything which can change its numbers is the same. Files are linked where the file system can,
    copied where it cannot; the record says where they come from. Returns whether there was one.
    """
    study = folder.parent.parent.resolve()
    for there in finished_elsewhere(cell, study):
        record = read_whole(there)
        if record is not None and record["signature"] == sign:
            adopt(there, folder, record)
            logger.warning("%s is taken from %s, where it was finished with the same signature.", cell.name, there)
            return True
    return False


def finished_elsewhere(cell: Cell, study: Path) -> Iterator[Path]:
    """The folders of the cell's name in the studies beside `study`."""
    for place in sorted(study.parent.glob(f"*/{CELLS}/{cell.name}/{FILE}")):
        if place.parents[2].resolve() != study:
            yield place.parent


def read_whole(folder: Path) -> dict[str, Any] | None:
    """The record of a complete cell; None of any other, and of what is no record of ours: it is not this study's business."""
    from hf_lskd.errors import InputError

    try:
        record = read_record(folder)
    except (InputError, OSError):
        return None
    return record if record is not None and record["status"] == "complete" else None


def adopt(there: Path, folder: Path, record: dict[str, Any]) -> None:
    """Make `folder` hold the finished cell `there`, whole or not at all."""
    work = folder.with_name(f".{folder.name}.taken.{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(there, work, copy_function=link_or_copy, ignore=shutil.ignore_patterns(FILE, CACHE, ".*"))
    write_json(work / FILE, {**record, "taken_from": {"study": record["study"]["name"], "folder": str(there)}})
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(work, folder)


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

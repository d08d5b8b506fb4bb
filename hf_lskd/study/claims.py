"""Who works on what, where processes and machines share one study's folder: locks that die with their process."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from hf_lskd.errors import InputError
from hf_lskd.recipe import Recipe
from hf_lskd.study.bench import process_state, world_size

logger = logging.getLogger(__name__)

BEGIN = ".begin.lock"  # in a study's folder: held while a process compares it with its recipe, and while one writes the tables
AT_WORK = ".work.lock"  # shared by the processes that make its cells


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Take the cell that is to be made in `folder`, when nobody has it: whether this process may make it.

    The file beside the folder goes away with the claim. A process that dies, killed or with its machine, has let go.
    A claim is a process's, not a thread's: one process must not claim a cell twice.
    """
    path = folder.with_name(f".{folder.name}.lock")
    file = locked(path)
    try:
        yield file is not None
    finally:
        if file is not None:
            path.unlink(missing_ok=True)  # while it is still ours: whoever waits for it sees that it is gone
            file.close()


def sweep(folder: Path) -> None:
    """Remove the files of claims on cells in `folder` that died with their process."""
    for path in folder.glob(".*.lock"):
        with claim(folder / path.name[1:].removesuffix(".lock")):
            pass


def locked(path: Path) -> IO[str] | None:
    """The file at `path`, open and locked by this process; None when another process has it."""
    while True:
        file = open_lock(path)
        if not lock(file, wait=False):
            file.close()
            return None
        if still_there(file, path):
            return file
        file.close()  # its last owner removed it between our opening and our locking it


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make the study's folder, and wait until no other process reads or writes what is common in it.

    Raises InputError when it cannot be written.
    """
    with open_lock(folder / BEGIN) as file:
        lock(file)
        yield


@contextlib.contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Show other processes, until the context is left, that cells are being made in `folder`."""
    with open_lock(folder / AT_WORK) as file:
        lock(file, shared=True)
        yield


def others_at_work(folder: Path) -> bool:
    """Whether another process makes cells of the study in `folder`."""
    with open_lock(folder / AT_WORK) as file:
        return not lock(file, wait=False)


def open_lock(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+")
    except OSError as error:
        raise not_writable(path.parent, error) from error


def lock(file: IO[str], *, wait: bool = True, shared: bool = False) -> bool:
    """Lock a file for this process; whether it is locked now. Always so where the system or the file system has no locks."""
    try:
        import fcntl

        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.lockf(file, kind | (0 if wait else fcntl.LOCK_NB))  # not flock: data workers would inherit that one
    except (BlockingIOError, PermissionError):
        return False
    except (ImportError, OSError) as error:
        logger.warning("%s cannot be locked (%s): let one process at a time work in this folder.", file.name, error)
    return True


def still_there(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def not_writable(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"{folder} cannot be written ({error.strerror})",
        "a folder that this user may write to",
        "Choose another --output-dir.",
    )


# ---- Processes that were launched together decide as one


@contextlib.contextmanager
def claim_together(recipe: Recipe, folder: Path) -> Iterator[bool]:
    """`claim` by the first of the processes that were launched together; all of them are told."""
    first = is_first(recipe)
    with claim(folder) if first else contextlib.nullcontext(False) as mine:
        yield agreed(recipe, lambda: mine)
        wait_for_all(recipe)


def agreed(recipe: Recipe, answer: Callable[[], Any]) -> Any:
    """The first process's answer, in all of them: what lies in a folder may change between two of them looking."""
    if world_size() == 1:
        return answer()
    from accelerate.utils import broadcast_object_list

    found = [answer() if is_first(recipe) else None]
    broadcast_object_list(found)
    return found[0]


def wait_for_all(recipe: Recipe) -> None:
    if world_size() > 1:
        process_state(recipe).wait_for_everyone()


def is_first(recipe: Recipe) -> bool:
    return world_size() == 1 or bool(process_state(recipe).is_main_process)

"""Where what was made once is kept: rendered letters, unpacked archives, indexes of files."""

import logging
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """$HF_LSKD_CACHE, else ~/.cache/hf_lskd."""
    return Path(os.environ.get("HF_LSKD_CACHE") or Path.home() / ".cache" / "hf_lskd")


def cache_folder(cache_dir: Path | None, room: str) -> Path:
    """The folder `room` of the cache, which need not exist yet."""
    return (default_cache_dir() if cache_dir is None else cache_dir) / room


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays kept at `path`; None when there are none or they are damaged (zip checks its contents by CRC)."""
    try:
        with path.open("rb") as file, np.load(file) as kept:
            return dict(kept)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        logger.warning("%s is damaged (%s) and is made again", path, error)
        return None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write beside, then rename, so that no reader ever sees half a file; without a place to write, go on uncached."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
            os.chmod(beside, 0o644)  # mkstemp keeps it to its owner, but a cache may be shared
            os.replace(beside, path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
    except OSError as error:
        logger.warning("Not kept in %s (%s); set HF_LSKD_CACHE to a folder that can be written", path, error)

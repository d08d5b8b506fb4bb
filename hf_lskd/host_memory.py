"""Memory that a step on a CPU frees and the next one takes again."""

import ctypes
import os
import platform
from functools import lru_cache
from typing import Any

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h of the GNU C library
LARGEST_FROM_HEAP = 32 * 2**20  # bytes; what M_MMAP_THRESHOLD may be at most
AT_ONCE = 64 * 2**20  # bytes that the heap grows by
NEVER = 2**31 - 1
OWN_WORD = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")  # whoever set these has an allocator in mind


@lru_cache(1)
def keep_freed_memory() -> bool:
    """Let the process keep what it frees, for the next step, until it ends. Returns whether it does.

    The GNU C library gives the top of its heap back to the system whenever much of it is free, so a training step on a CPU
    takes its activations page by page from the system, each time anew. Nothing is changed with another C library, nor where the
    environment says how memory is to be had.
    """
    asked = any(name.startswith(OWN_WORD) for name in os.environ)
    mallopt = None if asked else of_glibc("mallopt")
    if mallopt is None:
        return False
    asked_for = ((M_MMAP_THRESHOLD, LARGEST_FROM_HEAP), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, AT_ONCE))
    return all(mallopt(what, size) == 1 for what, size in asked_for)


def give_back_freed_memory() -> None:
    """Let the system have what this process has freed and kept, so that what is read of either is what is in use."""
    malloc_trim = of_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def of_glibc(name: str) -> Any:
    """A function of the GNU C library; None with another one."""
    return getattr(ctypes.CDLL(None), name, None) if platform.libc_ver()[0] == "glibc" else None

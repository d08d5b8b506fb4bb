"""Memory that a step on a CPU frees and the next one takes again."""

import ctypes
import os
import platform
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h of the GNU C library
LARGEST_FROM_HEAP = 32 * 2**20  # bytes; what M_MMAP_THRESHOLD may be at most
AT_ONCE = 64 * 2**20  # bytes that the heap grows by
NEVER = 2**31 - 1
DEFAULT = 128 * 2**10  # bytes; what each of the three is by itself (mallopt(3))
KEEPING = ((M_MMAP_THRESHOLD, LARGEST_FROM_HEAP), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, AT_ONCE))
OWN_WORD = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")  # whoever set these has an allocator in mind


@lru_cache(1)
def keep_freed_memory() -> bool:
    """Let the process keep what it frees, for the next step, until it ends. Returns whether it does.

    The GNU C library gives the top of its heap back to the system whenever much of it is free, so a training step on a CPU
    takes its activations page by page from the system, each time anew. Nothing is changed with another C library, nor where the
    environment says how memory is to be had: any `MALLOC_…`, `GLIBC_TUNABLES` or `LD_PRELOAD` turns it off.
    """
    asked = any(name.startswith(OWN_WORD) for name in os.environ)
    mallopt = None if asked else of_glibc("mallopt")
    if mallopt is None:
        return False
    return set_all(mallopt, KEEPING)


def set_all(mallopt: Callable[[int, int], int], wanted: Sequence[tuple[int, int]]) -> bool:
    """Set each (parameter, value), or none: one that is refused puts those before it back. Returns whether all were set."""
    for nth, (parameter, value) in enumerate(wanted):
        if mallopt(parameter, value) != 1:
            for earlier, _ in wanted[:nth]:
                mallopt(earlier, DEFAULT)
            return False
    return True


def give_back_freed_memory() -> None:
    """Let the system have what this process has freed and kept, so that what is read of either is what is in use."""
    malloc_trim = of_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def of_glibc(name: str) -> Any:
    """A function of the GNU C library; None with another one."""
    return getattr(ctypes.CDLL(None), name, None) if platform.libc_ver()[0] == "glibc" else None

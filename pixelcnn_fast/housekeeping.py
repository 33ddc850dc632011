"""What Python and the C library do with memory, put off while a program is built."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

# Of glibc's malloc.h: how much may be free at the heap's end, and from which size memory is asked for apart.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
MOST = 1 << 25  # of the latter, where glibc is older than 2.35, which takes no notice of more
KEPT = (MMAP_THRESHOLD, MOST), (MMAP_THRESHOLD, 1 << 30), (TRIM_THRESHOLD, (1 << 31) - 1)
# To which glibc itself comes where tensors are large, unless it has one of these settings.
USUAL = (MMAP_THRESHOLD, MOST), (TRIM_THRESHOLD, 2 * MOST)
ITS_SETTINGS = (
    "GLIBC_TUNABLES",
    *(f"MALLOC_{name}_" for name in ("TRIM_THRESHOLD", "MMAP_THRESHOLD", "MMAP_MAX", "TOP_PAD")),
)


@contextmanager
def gc_paused() -> Iterator[None]:
    """A context without garbage collection, which would take a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """A context in which the process keeps what large tensors leave, for the next ones. Given
    back, it would come anew from the system, which clears each page: a fifth of the time.
    Afterwards it is there for other tensors, and only the heap's end is given back. It has no
    effect where the C library is not glibc, or where the user has set how it does this, and
    little in other threads than the main one."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or not os.environ.keys().isdisjoint(ITS_SETTINGS):
        yield
        return
    for parameter, value in KEPT:
        mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in USUAL:
            mallopt(parameter, value)

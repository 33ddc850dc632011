"""The cores that this process may use, and PyTorch's threads where others have them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

# PyTorch's threads wait for each other at the end of each call that they share. That takes
# microseconds, unless one of them has no core: then it takes a time slice of the system's.
TRIED = 0.006  # seconds of trying: longer than the system favours a process that has just woken
SLOW = 0.002  # seconds of a call; on quiet cores, some 10 microseconds


def usable() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def as_cores_allow() -> Iterator[None]:
    """Within the context, PyTorch computes with one thread if cores are taken."""
    with one_thread() if are_taken() else nullcontext():
        yield


def are_taken() -> bool:
    """Whether PyTorch's threads wait for cores, as two trials find."""
    return torch.get_num_threads() > 1 and _must_wait() and _must_wait()


def _must_wait() -> bool:
    x = torch.zeros(torch.get_num_threads() << 16)  # every thread gets some
    end = time.perf_counter() + TRIED
    while (start := time.perf_counter()) < end:
        x.add_(1)
        if time.perf_counter() - start > SLOW:
            return True
    return False

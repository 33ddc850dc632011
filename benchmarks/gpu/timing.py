"""Seconds of a call on the GPU: the median of a few, after one that warms up."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch.autograd import DeviceType


def wall_seconds(call: Callable[[], object], repeats: int) -> float:
    """As a user sees it: until the result is there."""
    call()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return median(times)


def stream_seconds(call: Callable[[], object], repeats: int) -> float:
    """Between events on the stream, which leaves out what the host takes unless the GPU waits for it."""
    call()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return median(times)


def cycles_a_second() -> float:
    """Of a multiprocessor's clock, while one thread of the GPU waits for so many cycles to pass."""
    cycles = 20_000_000
    return cycles / stream_seconds(lambda: torch.cuda._sleep(cycles), 3)


def kernel_seconds(call: Callable[[], object], name: str) -> float | None:
    """The kernels with that in their names, in one call; None if there are none, or if the profiler can't see them."""
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
        events = [e for e in profile.events() or () if e.device_type == DeviceType.CUDA and name in e.name]
    except RuntimeError as error:  # a second opinion must not cost the first
        print(f"the profiler has failed: {error}", file=sys.stderr)
        return None
    return sum(e.device_time_total for e in events) / 1e6 or None

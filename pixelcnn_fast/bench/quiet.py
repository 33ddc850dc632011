"""Measures how many cores other processes take, and waits until times can be trusted."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pixelcnn_fast.bench.streams import complain

SECONDS = 1.0  # of a measurement
BUSY = 0.3  # cores that other processes may take without spoiling the times
PATIENCE = 15.0  # seconds; installing a package is over by then

_COUNTERS = Path("/proc/stat")


def taken_cores() -> float | None:
    """How many of our cores others take now; None where the system doesn't count that."""
    before = _ticks(), sum(os.times()[:2]), time.perf_counter()
    time.sleep(SECONDS)
    after = _ticks(), sum(os.times()[:2]), time.perf_counter()
    if before[0] is None or after[0] is None:
        return None
    others = (after[0] - before[0]) / os.sysconf("SC_CLK_TCK") - (after[1] - before[1])
    return max(0.0, others / (after[2] - before[2]))


def awaited() -> float | None:
    """``taken_cores`` once it is quiet, or after PATIENCE; the user is told of the wait."""
    start, wait = time.perf_counter(), f"waiting for up to {PATIENCE:.0f} s until it is quiet"
    while (taken := taken_cores()) is not None and taken > BUSY and time.perf_counter() - start < PATIENCE:
        if wait:
            complain(f"other processes take {taken:.1f} cores: {wait}")
        wait = ""
    return taken


def _ticks() -> int | None:
    """Of all work on our cores, since the system started."""
    try:
        lines = _COUNTERS.read_text().splitlines()
    except OSError:
        return None
    ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    found = (line.split() for line in lines if line)
    rows = [[*map(int, fields)] for name, *fields in found if name in ours]
    # user, nice, system, idle, iowait, irq, softirq, steal; guests are counted among users
    return sum(sum(row[:3]) + sum(row[5:8]) for row in rows) if rows else None

"""The tile sizes of a Triton kernel on a device, from the table beside it; nothing is tuned at run time.

They follow from arithmetic (tiles that fill the tensor cores, registers and stages that
leave room for a second program on the multiprocessor) and from what compiles without
spills; they have not been measured yet.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton

from pixelcnn_fast.ops.triton_support import INTERPRETED


class Tile(NamedTuple):
    """What one program computes: ``rows`` x ``columns`` results, ``depth`` terms of their sums at a time."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def launch_options(self) -> dict[str, Any]:
        """What Triton takes of it, for any kernel."""
        return {"num_warps": self.warps, "num_stages": self.stages}


# In the interpreter an operation costs the same at any size; odd sizes still take several of these.
INTERPRETER = 0

# By compute capability, or for the interpreter; a device takes the entry for its own, or
# else the nearest lower one. Tiles go from large to small: the first that gives every
# multiprocessor a program is taken, or the last.
Tiles = dict[int, tuple[Tile, ...]]


def tile(tiles: Tiles, device: torch.device, rows: int, columns: int = 1, depth: int = 1) -> Tile:
    """The largest tile that leaves no multiprocessor idle, cut to the problem's size.

    rows, columns, depth: of the whole problem. Raises RuntimeError below compute capability 8.0.
    """
    wanted = capability(device)
    known = [entry for entry in tiles if entry <= wanted and (entry == INTERPRETER) == INTERPRETED]
    if not known:
        raise RuntimeError(
            "the Triton kernels need compute capability 8.0 or newer, and this device has "
            f"{wanted // 10}.{wanted % 10}: name the backend 'reference'"
        )
    for size in tiles[max(known)]:
        cut = size._replace(
            rows=_cut(size.rows, rows), columns=_cut(size.columns, columns), depth=_cut(size.depth, depth)
        )
        if triton.cdiv(rows, cut.rows) * triton.cdiv(columns, cut.columns) >= multiprocessors(device):
            break
    return cut


def _cut(size: int, wanted: int) -> int:
    # Tensor cores need at least 16.
    return min(size, max(16, triton.next_power_of_2(wanted)))


@functools.lru_cache(None)
def capability(device: torch.device) -> int:
    """Compute capability times ten, as in sm_90."""
    if INTERPRETED:
        return INTERPRETER
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.lru_cache(None)
def multiprocessors(device: torch.device) -> int:
    if INTERPRETED:
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count

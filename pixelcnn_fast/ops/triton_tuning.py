"""The one table of the Triton kernels' tile sizes, by kernel, arithmetic and device. Nothing is tuned at run time.

The sizes follow from arithmetic (tiles that fill the tensor cores, registers and stages that leave room for a second
program on the multiprocessor) and from what compiles without spills; they have not been measured yet.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

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


# In the interpreter an operation costs the same at any size; with these tiles, odd sizes still take several.
_INTERPRETER = 0

# By compute capability; a device takes the entry for its own, or else for the nearest lower one.
# Tiles go from large to small: the first that gives every multiprocessor a program is taken, or else the last.
_TILES: dict[str, dict[int, tuple[Tile, ...]]] = {
    # rows: positions; columns: output channels; depth: input channels of one tap
    "product over taps, 16 bit": {
        _INTERPRETER: (Tile(256, 32, 32, 4, 1),),
        80: (Tile(128, 128, 32, 8, 4), Tile(64, 64, 64, 4, 4), Tile(32, 32, 64, 4, 4)),
        86: (Tile(128, 128, 32, 8, 3), Tile(64, 64, 64, 4, 3), Tile(32, 32, 64, 4, 3)),
        90: (Tile(128, 128, 64, 8, 3), Tile(64, 64, 64, 4, 4), Tile(64, 32, 64, 4, 4)),
        100: (Tile(128, 128, 64, 8, 3), Tile(128, 64, 64, 4, 4), Tile(64, 32, 64, 4, 4)),
        120: (Tile(128, 128, 32, 8, 3), Tile(64, 64, 64, 4, 3), Tile(32, 32, 64, 4, 3)),
    },
    "product over taps, tf32": {
        _INTERPRETER: (Tile(256, 32, 32, 4, 1),),
        80: (Tile(128, 64, 32, 4, 3), Tile(64, 64, 32, 4, 3), Tile(32, 32, 32, 4, 3)),
        86: (Tile(64, 64, 32, 4, 3), Tile(32, 32, 32, 4, 3)),
        90: (Tile(128, 128, 32, 8, 3), Tile(64, 64, 32, 4, 4), Tile(64, 32, 32, 4, 4)),
        100: (Tile(128, 128, 32, 8, 3), Tile(64, 32, 32, 4, 4)),
        120: (Tile(64, 64, 32, 4, 3), Tile(32, 32, 32, 4, 3)),
    },
    "product over taps, ieee": {
        _INTERPRETER: (Tile(256, 32, 32, 4, 1),),
        80: (Tile(64, 64, 16, 4, 3), Tile(32, 32, 16, 4, 3)),
    },
    # rows: input channels; columns: output channels; depth: positions
    "outer product over taps, 16 bit": {
        _INTERPRETER: (Tile(32, 32, 128, 4, 1),),
        80: (Tile(128, 128, 32, 8, 3),),
        # With 8 warps, triton 3.6 waits for each product before it starts the next.
        90: (Tile(128, 128, 64, 4, 3),),
        120: (Tile(128, 128, 32, 8, 3),),
    },
    "outer product over taps, tf32": {
        _INTERPRETER: (Tile(32, 32, 128, 4, 1),),
        80: (Tile(64, 64, 32, 4, 3),),
        90: (Tile(128, 128, 32, 8, 3),),
        120: (Tile(64, 64, 32, 4, 3),),
    },
    "outer product over taps, ieee": {
        _INTERPRETER: (Tile(32, 32, 128, 4, 1),),
        80: (Tile(64, 64, 16, 8, 3),),
    },
    # rows: positions of a step; columns: channels, of which there are four gates; depth: channels of the states
    "recurrence, 16 bit": {
        _INTERPRETER: (Tile(16, 16, 16, 4, 1),),
        80: (Tile(32, 32, 64, 4, 3),),
    },
    "recurrence, tf32": {
        _INTERPRETER: (Tile(16, 16, 16, 4, 1),),
        80: (Tile(32, 32, 32, 4, 3),),
    },
    "recurrence, ieee": {
        _INTERPRETER: (Tile(16, 16, 16, 4, 1),),
        80: (Tile(32, 32, 16, 4, 3),),
    },
    # rows: elements
    "cells": {_INTERPRETER: (Tile(1024, 16, 16, 4, 1),), 80: (Tile(256, 16, 16, 4, 1),)},
    "gated activation": {_INTERPRETER: (Tile(1024, 16, 16, 4, 1),), 80: (Tile(2048, 16, 16, 4, 1),)},
    # rows: sub-pixels; columns: levels at a time
    "categorical nll": {_INTERPRETER: (Tile(64, 64, 16, 4, 1),), 80: (Tile(32, 256, 16, 8, 1),)},
}


def tile(kernel: str, device: torch.device, rows: int, columns: int = 1, depth: int = 1) -> Tile:
    """The largest tile that leaves no multiprocessor idle, cut to the problem's size.

    rows, columns, depth: of the whole problem. Raises RuntimeError below compute capability 8.0.
    """
    for known in _tiles(kernel, capability(device)):
        cut = known._replace(
            rows=_cut(known.rows, rows), columns=_cut(known.columns, columns), depth=_cut(known.depth, depth)
        )
        if triton.cdiv(rows, cut.rows) * triton.cdiv(columns, cut.columns) >= multiprocessors(device):
            break
    return cut


def _cut(size: int, wanted: int) -> int:
    # Tensor cores need at least 16.
    return min(size, max(16, triton.next_power_of_2(wanted)))


@functools.lru_cache(None)
def _tiles(kernel: str, wanted: int) -> tuple[Tile, ...]:
    known = [entry for entry in _TILES[kernel] if entry <= wanted and (entry == _INTERPRETER) == INTERPRETED]
    if not known:
        raise RuntimeError(
            "the Triton kernels need compute capability 8.0 or newer, and this device has "
            f"{wanted // 10}.{wanted % 10}: name the backend 'reference'"
        )
    return _TILES[kernel][max(known)]


@functools.lru_cache(None)
def capability(device: torch.device) -> int:
    """Compute capability times ten, as in sm_90."""
    if INTERPRETED:
        return _INTERPRETER
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.lru_cache(None)
def multiprocessors(device: torch.device) -> int:
    if INTERPRETED:
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count

"""What memory instructions ask for, from the lanes' addresses: wavefronts of shared, sectors of global memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LANES = 32
BANKS = 32  # of 4 bytes
SECTOR = 32  # bytes


class Access(NamedTuple):
    """Of one warp. wavefronts: turns that the banks of shared memory take; sectors: addresses / 32; remote: bytes of
    other blocks' shared memory."""

    wavefronts: int = 0
    sectors: tuple[int, ...] = ()
    remote: int = 0


NOTHING = Access()


class Patterns:
    """Counts, remembered: most instructions repeat the pattern of addresses that they had before."""

    MOST = 20_000  # then they are forgotten

    def __init__(self) -> None:
        self._wavefronts: dict[tuple[Any, ...], list[int]] = {}
        self._sectors: dict[tuple[Any, ...], list[tuple[int, ...]]] = {}

    def wavefronts(self, addresses: Array, active: Array, width: int) -> list[int]:
        """For each warp. Lanes go together as far as 128 bytes last: all of them, halves of 8 bytes each, or quarters
        of 16; together they take as many turns as the busiest bank has words to give. A word goes to any number of
        lanes. If all words of a warp lie in different banks, one turn is enough whatever the width.
        """
        first = np.where(active, addresses, np.iinfo(np.int64).max).reshape(-1, LANES).min(1)
        relative = (addresses.reshape(-1, LANES) - first[:, None]) * active.reshape(-1, LANES)
        key = (relative.tobytes(), active.tobytes(), width)
        if key not in self._wavefronts:
            if len(self._wavefronts) == self.MOST:
                self._wavefronts.clear()
            self._wavefronts[key] = count_wavefronts(relative, active.reshape(-1, LANES), width)
        return self._wavefronts[key]

    def sectors(self, addresses: Array, active: Array, width: int) -> list[tuple[int, ...]]:
        """For each warp, the sectors that it touches."""
        by_warp, on = addresses.reshape(-1, LANES), active.reshape(-1, LANES)
        origin = np.where(on, by_warp, np.iinfo(np.int64).max).min(1) // SECTOR
        relative = np.where(on, by_warp - origin[:, None] * SECTOR, 0)
        key = (relative.tobytes(), active.tobytes(), width)
        if key not in self._sectors:
            if len(self._sectors) == self.MOST:
                self._sectors.clear()
            last = relative + width - 1
            self._sectors[key] = [
                tuple(sorted(set((r[o] // SECTOR).tolist()) | set((e[o] // SECTOR).tolist())))
                for r, e, o in zip(relative, last, on, strict=True)
            ]
        return [
            tuple([begin + r for r in rel])
            for begin, rel in zip(origin.tolist(), self._sectors[key], strict=True)
        ]


def count_wavefronts(addresses: Array, active: Array, width: int) -> list[int]:
    """addresses: [warps, 32], multiples of the width."""
    words = np.where(active, addresses // 4, -1)
    per_lane = max(width // 4, 1)
    words = np.where(
        words[..., None] >= 0, words[..., None] + np.arange(per_lane), -1
    )  # [warps, 32, words of a lane]
    turns = busiest_bank(words.reshape(len(words), per_lane, -1)).sum(1)  # a part of the lanes: 32 words
    together = busiest_bank(words.reshape(len(words), 1, -1))[:, 0]
    return np.where(together == 1, 1, turns).tolist()


def busiest_bank(words: Array) -> Array:
    """[..., parts, words] -> [..., parts]: how many different words the busiest bank has to give; -1: no word."""
    rows = words.reshape(-1, words.shape[-1])
    ordered = np.sort(rows, axis=1)
    new = np.ones_like(ordered, np.bool_)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    new &= ordered >= 0
    at = np.arange(len(rows))[:, None] * BANKS + ordered % BANKS
    counts = np.bincount(at[new], minlength=len(rows) * BANKS).reshape(len(rows), BANKS)
    return counts.max(1).reshape(words.shape[:-1])

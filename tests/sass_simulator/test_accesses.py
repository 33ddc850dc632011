"""Turns of the banks of shared memory, and sectors of global memory, from lanes' addresses."""

import numpy as np
import pytest
from sass_simulator.accesses import Patterns

LANE = np.arange(32)


def turns(addresses: np.ndarray, width: int, active: np.ndarray | None = None) -> int:
    on = np.ones(32, np.bool_) if active is None else active
    (n,) = Patterns().wavefronts(addresses.astype(np.int64), on, width)
    return n


@pytest.mark.parametrize(
    "addresses, width, expected",
    [
        (LANE * 4, 4, 1),
        (LANE * 0 + 64, 4, 1),  # one word for all
        (LANE * 8, 4, 2),
        (LANE * 128, 4, 32),
        (LANE * 132, 4, 1),  # a row of 33 words
        (LANE // 4 * 4, 1, 1),
        (LANE % 8 * 4, 4, 1),
        (LANE * 8, 8, 2),
        (LANE * 0, 8, 1),
        (LANE * 128, 8, 32),
        (LANE * 16, 8, 4),
        (LANE * 16, 16, 4),
        (LANE * 0, 16, 1),
        (LANE % 8 * 128, 16, 32),
        (LANE * 144, 16, 4),  # rows of 36 words
    ],
)
def test_turns_of_the_banks(addresses, width, expected):
    assert turns(addresses, width) == expected
    assert turns(addresses + 4096, width) == expected


def test_lanes_that_take_no_part_cost_nothing():
    assert turns(LANE * 128, 4, LANE < 5) == 5
    assert turns(LANE * 128, 4, LANE < 0) == 0


def test_patterns_that_were_seen_before_are_told_apart():
    seen, on = Patterns(), np.ones(64, np.bool_)
    two = np.concatenate([LANE * 4, LANE * 128])
    for addresses, expected in ((two, [1, 32]), (two[::-1].copy(), [32, 1]), (two + 256, [1, 32])):
        assert seen.wavefronts(addresses, on, 4) == expected
    rows = LANE % 8 * 128  # of the same addresses, words and then quarters of a line
    assert [seen.wavefronts(rows, on[:32], width) for width in (4, 16)] == [[8], [32]]


def test_sectors():
    seen, on = Patterns(), np.ones(32, np.bool_)
    assert seen.sectors(LANE * 4 + 64, on, 4) == [(2, 3, 4, 5)]
    assert seen.sectors(LANE * 4 + 1088, on, 4) == [(34, 35, 36, 37)]
    assert seen.sectors(LANE * 16, on, 16) == [tuple(range(16))]
    assert seen.sectors(LANE * 1024, LANE < 3, 4) == [(0, 32, 64)]
    assert seen.sectors(LANE * 0 + 4, LANE < 0, 4) == [()]

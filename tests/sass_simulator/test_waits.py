"""What a wait for asynchronous copies is for, in code that is written here: it takes no compiler."""

import pytest
from sass_simulator import RATES
from sass_simulator.accesses import Access
from sass_simulator.executor import Recording
from sass_simulator.instruction import Instruction
from sass_simulator.timing import timed

H100 = RATES["90"]
STALL, NO_BOARDS, FIRST_BOARD = 2 << 105, 7 << 110 | 7 << 113, 7 << 113
SECTORS = (
    100,
    200,
    400,
)  # of three copies, one after the other: 32 bytes each, of which one comes in a cycle


@pytest.mark.parametrize("pending", range(len(SECTORS) + 1))
def test_a_wait_leaves_as_many_copies_under_way_as_it_says(pending):
    """Those that began last. It takes as long as the others, and nothing if there are none."""
    copy = "LDGSTS.E.BYPASS.128 [R2], [R4.64]", STALL | NO_BOARDS
    texts = [copy, ("LDGDEPBAR", STALL | FIRST_BOARD)] * len(SECTORS)
    texts.append((f"DEPBAR.LE SB0, {pending:#x}", STALL | NO_BOARDS))
    code = [Instruction(n, 16 * n, text, control, ()) for n, (text, control) in enumerate(texts)]
    infos = [Access(sectors=tuple(range(1000 * n, 1000 * n + size))) for n, size in enumerate(SECTORS)]
    found = timed(code, Recording([[*range(len(code))]], [infos]), H100, 1.0, 0)
    waited_for = SECTORS[: len(SECTORS) - pending]
    expected = 32 * sum(waited_for) + H100.l2_latency if waited_for else 0
    assert found.cycles == pytest.approx(expected, abs=40)

"""What a test needs and a machine may lack: there the test is skipped and says why."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pixelcnn_fast import native
from tests.tiers import tiered

needs_native = pytest.mark.skipif(native.native() is None, reason=native.why_not_native())
ISAS: list[str] = native.required().isas() if native.native() else []
FEW_ISAS = ISAS and [ISAS[-1], ISAS[len(ISAS) // 3]]  # of the first tier: the best and one other
EACH_ISA = tiered(ISAS, FEW_ISAS.__contains__)  # for parametrize
RUNTIMES = ["eager", pytest.param("cpu", marks=needs_native)]


def on_each_isa(what: str) -> list[Any]:
    """(what, isa), for parametrize."""
    return tiered([(what, isa) for isa in ISAS], lambda case: case[1] in FEW_ISAS)


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """In this context the compiled module, where there is one, uses that instruction set."""
    module = native.native()
    if module is not None:
        module.force_isa(name)
    try:
        yield
    finally:
        if module is not None:
            module.force_isa("")

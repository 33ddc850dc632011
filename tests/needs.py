"""What a test needs and a machine may lack: there the test is skipped and says why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pixelcnn_fast import native

needs_native = pytest.mark.skipif(native.native() is None, reason=native.why_not_native())
ISAS: list[str] = native.required().isas() if native.native() else []
RUNTIMES = ["eager", pytest.param("cpu", marks=needs_native)]


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

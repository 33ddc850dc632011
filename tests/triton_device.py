"""Where a test module's Triton kernels run: on the GPU, or else in Triton's interpreter, on CPU tensors."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch


def triton_device() -> torch.device:
    """Skips the calling module where there is neither. The interpreter has to be chosen before the kernels are
    imported, so tests/ops/test_triton_interpreter.py runs these modules in a process of their own."""
    triton = pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    if triton.knobs.runtime.interpret:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    pytest.skip(
        "no GPU; test_triton_interpreter.py runs this module in Triton's interpreter", allow_module_level=True
    )


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a kernel leaves unwritten is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # some of plain torch on CUDA is not
    monkeypatch.setattr("torch.utils.deterministic.fill_uninitialized_memory", True)
    yield
    torch.use_deterministic_algorithms(False)


@contextmanager
def float32_precision(name: str) -> Iterator[None]:
    """In this context convolutions in float32 multiply in that precision, 'ieee' or 'tf32'."""
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # torch adds it while it runs
    before = conv.fp32_precision
    conv.fp32_precision = name
    try:
        yield
    finally:
        conv.fp32_precision = before


@pytest.fixture
def exact_float32() -> Iterator[None]:
    with float32_precision("ieee"):
        yield

"""Where a test module's Triton kernels run: on the GPU, else in Triton's interpreter, on CPU tensors."""

from __future__ import annotations

from collections.abc import Iterator

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
def poisoned_memory() -> Iterator[None]:
    """What a kernel leaves unwritten is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # some of plain torch on CUDA is not
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def exact_float32() -> Iterator[None]:
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before

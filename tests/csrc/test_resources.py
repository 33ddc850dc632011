"""docs/cuda_resources.md says what this nvcc makes of the kernels, and no kernel spills."""

from __future__ import annotations

import os
import shutil

import cuda_resources
import pytest

from tests.csrc.emulated import emulated
from tests.needs import needs_native

NVCC = shutil.which(os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/bin/nvcc")


@needs_native
@pytest.mark.skipif(NVCC is None, reason="no nvcc in CUDA_HOME or /usr/local/cuda")
@pytest.mark.parametrize("math, arch", [("bf16", "90a")])  # one of 24: the build refuses spills in all of them
def test_the_table_is_what_nvcc_reports(math, arch):
    assert NVCC is not None
    text = cuda_resources.TABLE.read_text()
    found = cuda_resources.compiled(NVCC, math, [arch])
    assert len(found) == len(cuda_resources.KERNELS) and not any(spilled for _, spilled in found.values())
    version = cuda_resources.nvcc_version(NVCC)
    if f"nvcc {version};" not in text:
        pytest.skip(f"the table was written with another nvcc than {version}")
    for row in cuda_resources.rows(found, math, cuda_resources.plans_of_default(emulated(), (math,), (arch,))):
        assert row in text, "run python benchmarks/cuda_resources.py"

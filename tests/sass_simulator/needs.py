"""What these tests need and a machine may lack."""

import pytest
from sass_simulator.kernel import tool

from pixelcnn_fast.runtimes.cuda.compilers import compiler

needs_nvcc = pytest.mark.skipif(
    tool("nvcc") is None or tool("nvdisasm") is None,
    reason="no nvcc in CUDA_HOME, /usr/local/cuda or on the PATH, or no nvdisasm there or beside triton",
)
needs_kernels = pytest.mark.skipif(
    compiler() is None or tool("nvdisasm") is None,
    reason="no compiler of kernels (NVRTC or nvcc), or no nvdisasm on the PATH or beside triton",
)

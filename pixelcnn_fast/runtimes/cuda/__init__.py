"""The CUDA runtime: what plans, compiles, keeps, loads and launches its kernels."""

from pixelcnn_fast.runtimes.cuda.runtime import CudaRuntime, why_not_cuda

__all__ = ["CudaRuntime", "why_not_cuda"]

// One of the kernels: PCF_MATH, PCF_TILES and PCF_BLOCKS (block.h) say which. They compile at their first use
// (pixelcnn_fast/runtimes/cuda/compilers.py).
#include "cuda/kernels/walk.h"

extern "C" __global__ void __launch_bounds__(pcf::cuda::kThreads, 1)
    pixelcnn_fast_walk(__grid_constant__ const pcf::cuda::KernelParams params) {
  pcf::cuda::walk(params);
}

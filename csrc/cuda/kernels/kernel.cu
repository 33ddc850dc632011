// One of the kernels: PCF_MATH, PCF_TILES and PCF_BLOCKS, of a cluster, say which. They compile at their first use
// (pixelcnn_fast/runtimes/cuda/compilers.py).
#include "cuda/kernels/walk.h"

static_assert(PCF_TILES <= pcf::cuda::most_tiles(pcf::cuda::Math::PCF_MATH));

extern "C" __global__ void __launch_bounds__(pcf::cuda::kThreads, 1)
    pixelcnn_fast_walk(__grid_constant__ const pcf::cuda::KernelParams params) {
  pcf::cuda::Walk<pcf::cuda::Math::PCF_MATH, PCF_TILES, PCF_BLOCKS>(params).run();
}

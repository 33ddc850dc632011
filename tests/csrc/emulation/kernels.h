// The kernels on the host: which there are, and how they are launched.
#pragma once

#include "cuda/layout.h"

namespace emulation {

// As on a GPU, the kernel for these numbers, tiles and clusters. blocks: in all.
void launch(const pcf::cuda::KernelParams&, pcf::cuda::Math, unsigned blocks, int shared_bytes);

template <pcf::cuda::Math kMath, int kTiles, int kBlocks>
void launch_walk(const pcf::cuda::KernelParams&, unsigned blocks, int shared_bytes);

}  // namespace emulation

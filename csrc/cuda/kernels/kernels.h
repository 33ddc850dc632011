// The kernel's launch. One object file for each kind of numbers and number of tiles (kernels.cu).
#pragma once

#include "cuda/kernels/walk.h"

namespace pcf::cuda {

template <Math kMath, int kTiles>
void launch_walk(const KernelParams&, int shared_bytes, Stream);

// How many clusters of so many blocks the device runs at once.
template <Math kMath>
int clusters_at_once(unsigned blocks, int shared_bytes);

}  // namespace pcf::cuda

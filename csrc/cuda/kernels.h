// The kernel's launch. One object file for each kind of numbers (kernels.cu).
#pragma once

#include "cuda/walk.h"

namespace pcf::cuda {

template <Math kMath>
void launch_walk(const KernelParams&, int shared_bytes, Stream);

}  // namespace pcf::cuda

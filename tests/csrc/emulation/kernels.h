// The kernels on the host. Each is a library of its own, so that a test compiles only what it launches.
#pragma once

#include <string>

#include "cuda/layout.h"

namespace emulation {

// Launches the kernel of a library, as the driver does. blocks: in all. Throws std::runtime_error if the library does
// not load.
void launch(const std::string& library, const pcf::cuda::KernelParams&, unsigned blocks, int shared_bytes);

}  // namespace emulation

extern "C" void emulated_walk(const pcf::cuda::KernelParams&, unsigned blocks, int shared_bytes);

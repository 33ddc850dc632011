// One of the kernels, as csrc/cuda/kernels/kernel.cu.
#include "cuda/kernels/walk.h"
#include "emulation/kernels.h"

void emulated_walk(const pcf::cuda::KernelParams& params, unsigned blocks, int shared_bytes) {
  using namespace pcf::cuda;
  emulation::run({blocks, kThreads, static_cast<size_t>(shared_bytes), PCF_BLOCKS}, [&] { walk(params); });
}

#include "emulation/kernels.h"

#include <dlfcn.h>

#include <stdexcept>

namespace emulation {

void launch(const std::string& library, const pcf::cuda::KernelParams& params, unsigned blocks, int shared_bytes) {
  void* const loaded = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  void* const kernel = loaded ? dlsym(loaded, "emulated_walk") : nullptr;
  if (!kernel) throw std::runtime_error(dlerror());
  reinterpret_cast<decltype(&emulated_walk)>(kernel)(params, blocks, shared_bytes);
}

}  // namespace emulation

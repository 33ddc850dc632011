// What the CUDA runtime, which is linked statically, says about this machine.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace pcf::cuda {

struct Device {
  std::string name;
  int major, minor;    // compute capability
  std::size_t memory;  // bytes
  int multiprocessors;
  int shared_memory;  // bytes that a block can have
};

// The CUDA devices, in the runtime's order. Throws std::runtime_error, saying what to do, if there is no
// driver, no device, or a driver older than the runtime.
std::vector<Device> devices();

// The newest CUDA version that the driver supports, such as 13000; 0 if there is no driver.
int driver_version();

}  // namespace pcf::cuda

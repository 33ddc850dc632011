#include "cuda/device_query.h"

#include <cuda_runtime.h>

#include <stdexcept>

namespace pcf::cuda {
namespace {

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  const int driver = driver_version();
  std::string text;
  // The runtime returns error 35 in both of the first two cases.
  if (error == cudaErrorInsufficientDriver && driver == 0)
    text = "no CUDA driver is installed: install NVIDIA's driver, or use the cpu runtime";
  else if (error == cudaErrorInsufficientDriver)
    text = "the CUDA driver supports CUDA " + version_text(driver) + ", and this build needs " +
           version_text(CUDART_VERSION) + ": update the driver, or rebuild with an older toolkit";
  else if (error == cudaErrorNoDevice)
    text = "the CUDA driver sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES, or use the cpu runtime";
  else
    text = std::string(cudaGetErrorString(error)) + ": check nvidia-smi";
  throw std::runtime_error("CUDA error " + std::to_string(error) + ": " + text);
}

}  // namespace

std::vector<Device> devices() {
  int count = 0;
  check(cudaGetDeviceCount(&count));
  std::vector<Device> found;
  for (int index = 0; index < count; ++index) {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, index));
    found.push_back({properties.name, properties.major, properties.minor, properties.totalGlobalMem,
                     properties.multiProcessorCount, static_cast<int>(properties.sharedMemPerBlockOptin)});
  }
  return found;
}

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

}  // namespace pcf::cuda

// The Python module pixelcnn_fast._native.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "build_info.h"
#include "cpu/simd/cpu_features.h"
#include "cpu/simd/kernels.h"
#ifdef PCF_HAVE_CUDA
#include "cuda/device_query.h"
#endif

namespace py = pybind11;

void bind_sampler(py::module_& m);       // cpu/sampler/sampler_bindings.cpp
void bind_layers(py::module_& m);        // cpu/ops/layers_bindings.cpp
void bind_cuda_sampler(py::module_& m);  // cuda/sampler_bindings.cpp

namespace {

py::list split(const std::string& names) { return py::str(names).attr("split")(";"); }

py::dict build_info() {
  using namespace py::literals;
  return py::dict("compiler"_a = PCF_COMPILER, "isas"_a = split(PCF_ISAS), "cuda"_a = PCF_CUDA,
                  "cuda_version"_a = PCF_CUDA_VERSION, "cuda_archs"_a = PCF_CUDA ? split(PCF_CUDA_ARCHS) : py::list(),
                  "cuda_off"_a = PCF_CUDA_OFF);
}

py::list cuda_devices() {
#ifdef PCF_HAVE_CUDA
  using namespace py::literals;
  py::list devices;
  for (const pcf::cuda::Device& device : pcf::cuda::devices())
    devices.append(py::dict("name"_a = device.name, "capability"_a = py::make_tuple(device.major, device.minor),
                            "memory"_a = device.memory, "multiprocessors"_a = device.multiprocessors,
                            "shared_memory"_a = device.shared_memory));
  return devices;
#else
  throw std::runtime_error("this build has no CUDA part: " PCF_CUDA_OFF
                           "; rebuild with PIXELCNN_FAST_CUDA=1 where nvcc is installed");
#endif
}

int cuda_driver_version() {
#ifdef PCF_HAVE_CUDA
  return pcf::cuda::driver_version();
#else
  return 0;
#endif
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "The compiled part of pixelcnn_fast; pixelcnn_fast.native.native() is how to get at it.";
  m.def("build_info", &build_info, "How the module was built.");
  m.def("isas", &pcf::cpu::available_isas,
        "The instruction sets that were built and this processor has, lowest first.");
  m.def("chosen_isa", &pcf::cpu::chosen_isa,
        "The instruction set in use. Raises ValueError for a bad PIXELCNN_FAST_ISA.");
  m.def(
      "multiplies_bf16", [] { return pcf::cpu::kernels<float>(pcf::cpu::chosen_isa()).multiplies_bf16(); },
      "Whether the instruction set in use multiplies bf16: what meets weights of bf16 is then rounded to it, too.");
  m.def("force_isa", &pcf::cpu::force_isa, py::arg("name"),
        "Uses this instruction set from now on; '' restores the default.");
  m.def("cuda_devices", &cuda_devices, "The CUDA devices. Raises RuntimeError where there are none, saying why.");
  m.def("cuda_driver_version", &cuda_driver_version,
        "The newest CUDA version that the driver supports, such as 13000; 0 without a driver.");
  bind_sampler(m);
  bind_layers(m);
#ifdef PCF_HAVE_CUDA
  bind_cuda_sampler(m);
#endif
}

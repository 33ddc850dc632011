// The Python module pixelcnn_fast._native.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "build_info.h"
#include "cpu/simd/cpu_features.h"
#include "cpu/simd/kernels.h"

namespace py = pybind11;

void bind_sampler(py::module_& m);       // cpu/sampler/sampler_bindings.cpp
void bind_layers(py::module_& m);        // cpu/ops/layers_bindings.cpp
void bind_cuda_sampler(py::module_& m);  // cuda/sampler_bindings.cpp

namespace {

py::list split(const std::string& names) { return py::str(names).attr("split")(";"); }

py::dict build_info() {
  using namespace py::literals;
  return py::dict("compiler"_a = PCF_COMPILER, "isas"_a = split(PCF_ISAS));
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
  bind_sampler(m);
  bind_layers(m);
  bind_cuda_sampler(m);
}

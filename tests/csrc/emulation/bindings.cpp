// The CUDA sampler with kernels that run on the host, as a Python module.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "scheduler.h"

namespace py = pybind11;

void bind_cuda_sampler(py::module_& m);  // csrc/cuda/sampler_bindings.cpp

PYBIND11_MODULE(emulated, m) {
  bind_cuda_sampler(m);
  m.def("set_seed", &emulation::set_seed, "The schedule of the launches that follow.");
  m.def("run_last", &emulation::run_last,
        "Of each launch that follows, runs only so many clusters at its end, or blocks where it has no clusters.");
  m.def(
      "leave_out", [](const std::string& name, unsigned line) { emulation::leave_out({name, line}); },
      "Makes one synchronisation of the kernels do nothing; ('', 0) none.");
  m.def("forget", &emulation::forget, "Forgets the synchronisations seen so far.");
  m.def(
      "synchronisations",
      [] {
        std::vector<std::pair<std::string, unsigned>> result;
        for (const emulation::Site& site : emulation::seen()) result.push_back({site.name, site.line});
        return result;
      },
      "(name, line) of those that kernels have run.");
}

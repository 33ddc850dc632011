// What launches the kernels on the host, as a Python module.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <stdexcept>
#include <string>

#include "emulation/kernels.h"
#include "scheduler.h"

namespace py = pybind11;
using namespace py::literals;

namespace {

void launch(const std::string& library, unsigned blocks, int shared_bytes, const std::string& bytes) {
  pcf::cuda::KernelParams params;
  if (bytes.size() != sizeof params) throw std::invalid_argument("the compiled module has another plan: make native");
  std::memcpy(&params, bytes.data(), sizeof params);
  const py::gil_scoped_release released;
  emulation::launch(library, params, blocks, shared_bytes);
}

}  // namespace

PYBIND11_MODULE(emulated, m) {
  m.def("launch", &launch, "library"_a, "blocks"_a, "shared_bytes"_a, "parameters"_a);
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

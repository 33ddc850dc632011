// The CPU sampler in Python. Arrays are passed as addresses (Tensor.data_ptr()): Python checks shapes, dtypes and
// devices and keeps them alive, so this file needs no torch.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/sampler/sampler.h"
#include "cpu/simd/cpu_features.h"
#include "read.h"

namespace py = pybind11;
namespace cpu = pcf::cpu;
using namespace py::literals;

namespace {

int run(const cpu::Sampler& sampler, py::handle described, int threads, const std::function<void(int)>& on_row,
        const std::vector<int>& fewer_at) {
  const auto job = pcf::read<pcf::Job>(described);
  py::gil_scoped_release release;
  if (fewer_at.empty()) return sampler.run(job, threads, on_row);
  cpu::Schedule schedule = sampler.schedule(job.images, threads);
  schedule.fewer_at = fewer_at;
  return sampler.run(job, schedule, on_row);  // on_row takes the GIL by itself
}

}  // namespace

void bind_sampler(py::module_& m) {
  m.attr("SIGNATURE") = pcf::kSignature;
  py::class_<cpu::Sampler>(m, "CpuSampler")
      .def(py::init([](py::handle program, bool float64, py::handle format) {
             return cpu::make_sampler(pcf::read<pcf::Program>(program), float64, pcf::read<pcf::WeightFormat>(format),
                                      cpu::chosen_isa());
           }),
           "program"_a, "float64"_a, "format"_a)
      .def("run", &run, "job"_a, "threads"_a, "on_row"_a, "fewer_at"_a = std::vector<int>())
      .def(
          "workspace_bytes",
          [](const cpu::Sampler& sampler, int images, int threads) {
            return sampler.workspace_bytes(sampler.schedule(images, threads));
          },
          "images"_a, "threads"_a);

  static py::exception<cpu::NonFiniteLogits> non_finite(m, "NonFiniteLogits", PyExc_ValueError);
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const cpu::NonFiniteLogits& e) {
      py::set_error(non_finite, py::make_tuple(e.image, e.channel, e.row, e.column));
    }
  });
}

// The CPU sampler in Python. Arrays are passed as addresses (Tensor.data_ptr()): Python checks shapes, dtypes and
// devices and keeps them alive, so this file needs no torch.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/memory/pool.h"
#include "cpu/sampler/machine.h"
#include "cpu/sampler/sampler.h"
#include "cpu/simd/cpu_features.h"
#include "read.h"

namespace py = pybind11;
namespace cpu = pcf::cpu;
using namespace py::literals;

namespace {

template <class How>
int run(const cpu::Sampler& sampler, py::handle described, const How& how, const std::function<void(int)>& on_row) {
  const auto job = pcf::read<pcf::Job>(described);
  py::gil_scoped_release release;
  return sampler.run(job, how, on_row);  // on_row takes the GIL by itself
}

}  // namespace

void bind_sampler(py::module_& m) {
  m.attr("SIGNATURE") = pcf::kSignature;
  py::class_<cpu::Machine> machine(m, "Machine");
  machine.attr("LEAST") = cpu::Machine::kLeast;
  machine.def(py::init())
      .def_readwrite("multiply_add", &cpu::Machine::multiply_add)
      .def_readwrite("barrier", &cpu::Machine::barrier)
      .def_readwrite("l2", &cpu::Machine::l2)
      .def_readwrite("element", &cpu::Machine::element)
      .def_readwrite("bandwidths", &cpu::Machine::bandwidths);
  py::class_<cpu::Schedule>(m, "Schedule")
      .def_readonly("groups", &cpu::Schedule::groups)
      .def_readonly("threads", &cpu::Schedule::threads)
      .def_readonly("pixel_threads", &cpu::Schedule::pixel_threads)
      .def_readonly("images", &cpu::Schedule::images)
      .def_readonly("rows_in_flight", &cpu::Schedule::rows_in_flight)
      .def_readonly("lag", &cpu::Schedule::lag)
      .def_readonly("chunk", &cpu::Schedule::chunk)
      .def_readonly("cost", &cpu::Schedule::cost)
      .def_readwrite("fewer_at", &cpu::Schedule::fewer_at);
  py::class_<cpu::Sampler>(m, "CpuSampler")
      .def(py::init([](py::handle program, bool float64, py::handle format) {
             return cpu::make_sampler(pcf::read<pcf::Program>(program), float64, pcf::read<pcf::WeightFormat>(format),
                                      cpu::chosen_isa());
           }),
           "program"_a, "float64"_a, "format"_a)
      .def("chosen", &cpu::Sampler::chosen, "images"_a, "threads"_a, py::call_guard<py::gil_scoped_release>())
      .def("tune", &cpu::Sampler::tune, "images"_a, "threads"_a, py::call_guard<py::gil_scoped_release>())
      .def("together", &cpu::Sampler::together, "images"_a, "threads"_a, py::call_guard<py::gil_scoped_release>())
      .def("schedules", &cpu::Sampler::schedules, "images"_a, "threads"_a, "machine"_a = nullptr,
           py::call_guard<py::gil_scoped_release>())
      .def("run", &run<int>, "job"_a, "threads"_a, "on_row"_a)
      .def("run", &run<cpu::Schedule>, "job"_a, "schedule"_a, "on_row"_a)
      .def("workspace_bytes", &cpu::Sampler::workspace_bytes, "schedule"_a);

  m.def("machine", [](int threads) {
    const py::gil_scoped_release release;
    const cpu::ZeroedBlock weights(int64_t{1} << cpu::Machine::kMost);
    return cpu::machine(threads, weights.get(), int64_t{1} << cpu::Machine::kMost);
  });

  static py::exception<cpu::NonFiniteLogits> non_finite(m, "NonFiniteLogits", PyExc_ValueError);
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const cpu::NonFiniteLogits& e) {
      py::set_error(non_finite, py::make_tuple(e.image, e.channel, e.row, e.column));
    }
  });
}

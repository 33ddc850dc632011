// The CUDA sampler in Python. The tests build this file again, with kernels that run on the host.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda/sampler.h"

namespace py = pybind11;
namespace cuda = pcf::cuda;
using namespace py::literals;

namespace {

using Address = uintptr_t;

void* at(Address address) { return reinterpret_cast<void*>(address); }

cuda::Math math_of(const std::string& name) {
  if (name == "fp32") return cuda::Math::fp32;
  if (name == "tf32") return cuda::Math::tf32;
  if (name == "bf16") return cuda::Math::bf16;
  if (name == "fp16") return cuda::Math::fp16;
  throw std::invalid_argument("math is '" + name + "', expected fp32, tf32, bf16 or fp16");
}

cuda::DeviceJob job(int images, Address constants, Address workspace, Address values, Address known, Address noise,
                    Address conditions, const pcf::SamplingOptions& options, Address parameters,
                    Address log_probability, Address error, Address stream) {
  return {images,         at(constants), at(workspace),  at(values),          at(known), at(noise),
          at(conditions), options,       at(parameters), at(log_probability), at(error), at(stream)};
}

}  // namespace

void bind_cuda_sampler(py::module_& m) {
  // module_local: the tests load a second module with the same classes.
  py::class_<cuda::DeviceJob>(m, "CudaJob", py::module_local())
      .def(py::init(&job), "images"_a, "constants"_a, "workspace"_a, "values"_a, "known"_a, "noise"_a, "conditions"_a,
           "options"_a, "parameters"_a, "log_probability"_a, "error"_a, "stream"_a);
  py::class_<cuda::Sampler>(m, "CudaSampler", py::module_local())
      .def(py::init([](const pcf::Program& program, const std::string& math, int images, int shared_bytes,
                       int cluster) { return cuda::Sampler(program, math_of(math), images, cluster, {shared_bytes}); }),
           "program"_a, "math"_a, "images"_a, "shared_bytes"_a, "cluster"_a = 1)
      .def("clusters_at_once", &cuda::Sampler::clusters_at_once)
      .def("run", &cuda::Sampler::run, "job"_a, py::call_guard<py::gil_scoped_release>())
      .def(
          "parameters",
          [](const cuda::Sampler& s, const cuda::DeviceJob& job, int sweep, int row, int first_step, int steps) {
            const std::vector<char> bytes = s.parameters(job, sweep, row, first_step, steps);
            return py::bytes(bytes.data(), bytes.size());
          },
          "job"_a, "sweep"_a, "row"_a, "first_step"_a, "steps"_a)
      .def("constants",
           [](const cuda::Sampler& s) { return py::bytes(s.plan().constants.data(), s.plan().constants.size()); })
      .def("workspace_bytes", &cuda::Sampler::workspace_bytes, "images"_a)
      .def_property_readonly("facts", [](const cuda::Sampler& s) {
        const cuda::Plan& p = s.plan();
        const cuda::Layout& l = p.layout;
        py::list sweeps;
        for (int k = 0; k < l.n_sweeps; k++) {
          const cuda::SweepPlan& sweep = l.sweeps[k];
          const cuda::SweepFacts& facts = p.sweeps[k];
          sweeps.append(py::dict("first_step"_a = sweep.first_step, "steps"_a = sweep.steps,
                                 "columns"_a = sweep.columns, "records"_a = facts.records,
                                 "weight_bytes"_a = facts.weight_bytes, "value_bytes"_a = facts.value_bytes));
        }
        return py::dict("images"_a = l.images, "cluster"_a = l.cluster, "rows"_a = l.rows, "lag"_a = l.lag,
                        "tiles"_a = l.tiles, "most_images"_a = l.most_images, "turns"_a = l.end_row,
                        "sweeps"_a = sweeps, "records"_a = l.records, "shared_bytes"_a = p.shared_bytes,
                        "weight_bytes"_a = p.weight_bytes, "workspace_bytes"_a = l.workspace_bytes);
      });
}

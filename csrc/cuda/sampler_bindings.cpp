// The CUDA sampler in Python. The tests build this file again, with kernels that run on the host.
#include <pybind11/functional.h>
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

void run(const cuda::Sampler& sampler, int images, Address constants, Address workspace, Address values, Address known,
         Address noise, Address conditions, const pcf::SamplingOptions& options, Address parameters,
         Address log_probability, Address error, Address stream, const std::function<void(int)>& on_row) {
  const cuda::DeviceJob job{images,         at(constants), at(workspace),  at(values),          at(known), at(noise),
                            at(conditions), options,       at(parameters), at(log_probability), at(error), at(stream)};
  py::gil_scoped_release release;
  sampler.run(job, on_row);  // on_row takes the GIL by itself
}

}  // namespace

void bind_cuda_sampler(py::module_& m) {
  // module_local: the tests load a second module with the same classes.
  py::class_<cuda::Sampler>(m, "CudaSampler", py::module_local())
      .def(py::init([](const pcf::Program& program, const std::string& math, bool pipeline, int shared_bytes,
                       int multiprocessors, int largest_cluster) {
             return cuda::Sampler(program, math_of(math), pipeline ? cuda::Variant::pipeline : cuda::Variant::block,
                                  {shared_bytes, multiprocessors, largest_cluster});
           }),
           "program"_a, "math"_a, "pipeline"_a, "shared_bytes"_a, "multiprocessors"_a, "largest_cluster"_a)
      .def("run", &run, "images"_a, "constants"_a, "workspace"_a, "values"_a, "known"_a, "noise"_a, "conditions"_a,
           "options"_a, "parameters"_a, "log_probability"_a, "error"_a, "stream"_a, "on_row"_a)
      .def("constants",
           [](const cuda::Sampler& s) { return py::bytes(s.plan().constants.data(), s.plan().constants.size()); })
      .def("workspace_bytes", &cuda::Sampler::workspace_bytes, "images"_a)
      .def("pipelines", &cuda::Sampler::pipelines, "images"_a)
      .def_property_readonly("uses_clusters", &cuda::Sampler::uses_clusters)
      .def_property_readonly("facts", [](const cuda::Sampler& s) {
        const cuda::Plan& p = s.plan();
        return py::dict("stages"_a = p.layout.stages, "shared_bytes"_a = p.shared_bytes,
                        "pixel_weight_bytes"_a = p.pixel_weight_bytes, "row_weight_bytes"_a = p.row_weight_bytes,
                        "row_depths"_a = p.row_depths.size(), "row_launches"_a = s.row_launches(),
                        "stage_instructions"_a = p.stage_instructions, "stage_barriers"_a = p.stage_barriers,
                        "stage_weight_bytes"_a = p.stage_weight_bytes, "stage_early_bytes"_a = p.stage_early_bytes,
                        "tile_bytes"_a = p.layout.tile_bytes);
      });
}

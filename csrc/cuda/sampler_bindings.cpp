// The CUDA sampler's planner in Python, and the sources of its kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda/sampler.h"
#include "kernel_sources.h"

namespace py = pybind11;
namespace cuda = pcf::cuda;
using namespace py::literals;

namespace {

using Address = uintptr_t;

void* at(Address address) { return reinterpret_cast<void*>(address); }

constexpr std::pair<const char*, cuda::Math> kMaths[] = {
    {"fp32", cuda::Math::fp32}, {"bf16", cuda::Math::bf16}, {"fp16", cuda::Math::fp16}};

cuda::Math math_of(const std::string& name) {
  for (const auto& [known, math] : kMaths)
    if (name == known) return math;
  throw std::invalid_argument("math is '" + name + "', expected fp32, bf16 or fp16");
}

// (math, tiles, blocks of a cluster) of each.
std::vector<std::tuple<std::string, int, int>> kernels() {
  std::vector<std::tuple<std::string, int, int>> found;
  for (const auto& [name, math] : kMaths) {
    for (int tiles = 1; tiles <= cuda::most_tiles(math); tiles++) found.push_back({name, tiles, 1});
    for (int blocks = 2; blocks <= cuda::kMostBlocks; blocks *= 2) found.push_back({name, 1, blocks});
  }
  return found;
}

cuda::DeviceJob job(int images, Address constants, Address workspace, Address values, Address known, Address noise,
                    Address conditions, const pcf::SamplingOptions& options, Address parameters,
                    Address log_probability, Address error) {
  return {images,         at(constants), at(workspace),  at(values),          at(known), at(noise),
          at(conditions), options,       at(parameters), at(log_probability), at(error)};
}

py::bytes bytes_of(const cuda::KernelParams& params) {
  return py::bytes(reinterpret_cast<const char*>(&params), sizeof params);
}

}  // namespace

void bind_cuda_sampler(py::module_& m) {
  m.def("cuda_kernels", &kernels, "(math, tiles, blocks of a cluster) of each kernel.");
  m.def(
      "cuda_kernel_sources",
      [] {
        py::dict found;
        for (const cuda::KernelSource& source : cuda::kKernelSources) found[source.name] = source.text;
        return found;
      },
      "The kernels' sources, by the names by which they include each other.");
  py::class_<cuda::DeviceJob>(m, "CudaJob")
      .def(py::init(&job), "images"_a, "constants"_a, "workspace"_a, "values"_a, "known"_a, "noise"_a, "conditions"_a,
           "options"_a, "parameters"_a, "log_probability"_a, "error"_a);
  py::class_<cuda::Sampler>(m, "CudaSampler")
      .def(py::init([](const pcf::Program& program, const std::string& math, int images, int shared_bytes,
                       int cluster) { return cuda::Sampler(program, math_of(math), images, cluster, {shared_bytes}); }),
           "program"_a, "math"_a, "images"_a, "shared_bytes"_a, "cluster"_a = 1)
      .def(
          "parameters", [](const cuda::Sampler& s, const cuda::DeviceJob& job) { return bytes_of(s.parameters(job)); },
          "job"_a, "What the kernel is given by value.")
      .def(
          "parameters_of_part",
          [](const cuda::Sampler& s, const cuda::DeviceJob& job, int sweep, int row, int first_step, int steps) {
            return bytes_of(s.parameters(job, {sweep, row, first_step, steps}));
          },
          "job"_a, "sweep"_a, "row"_a, "first_step"_a, "steps"_a,
          "The same, if only some column steps of a sweep are to be run.")
      .def("blocks", &cuda::Sampler::blocks, "images"_a)
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
                        "tiles"_a = l.tiles, "threads"_a = cuda::kThreads, "most_images"_a = l.most_images,
                        "turns"_a = l.end_row, "sweeps"_a = sweeps, "records"_a = l.records,
                        "shared_bytes"_a = p.shared_bytes, "weight_bytes"_a = p.weight_bytes,
                        "workspace_bytes"_a = l.workspace_bytes);
      });
}

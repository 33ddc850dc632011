// The CUDA sampler's planner in Python, and the sources of its kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "cuda/plan.h"
#include "read.h"

namespace py = pybind11;
namespace cuda = pcf::cuda;
using namespace py::literals;

namespace {

using Address = uintptr_t;

// By their names.
constexpr std::pair<const char*, const char*> kKernelSources[] = {
#include "kernel_sources.inc"
};

// (math, tiles, blocks of a cluster) of each.
std::vector<std::tuple<std::string, int, int>> kernels() {
  std::vector<std::tuple<std::string, int, int>> found;
  for (int k = 0; k < count_of(pcf::Math{}); k++) {
    const auto math = static_cast<pcf::Math>(k);
    for (int tiles = 1; tiles <= cuda::most_tiles(math); tiles++) found.push_back({traits(math).name, tiles, 1});
    for (int blocks = 2; blocks <= pcf::kMostBlocks; blocks *= 2) found.push_back({traits(math).name, 1, blocks});
  }
  return found;
}

// A part of a sweep, for simulations: its number, the row, the first column step, as in SweepPlan, and column steps.
using PartOfSweep = std::tuple<int, int, int, int>;

// All arrays are device memory, as KernelParams has them.
py::bytes parameters(const cuda::Plan& plan, py::handle described, Address constants, Address workspace, Address error,
                     const std::optional<PartOfSweep>& part) {
  const auto job = pcf::read<pcf::Job>(described);
  const double temperature = job.options.temperature;
  cuda::KernelParams params{
      .layout = plan.layout,
      .constants = reinterpret_cast<const char*>(constants),
      .workspace = reinterpret_cast<char*>(workspace),
      .images = job.images,
      .levels = static_cast<int32_t*>(job.values),
      .known = job.known,
      .noise = job.noise,
      .conditions = job.conditions.empty() ? nullptr : static_cast<const float*>(job.conditions[0]),
      .options = {job.options, temperature == 0 ? 0 : static_cast<float>(1 / temperature)},
      .logits = static_cast<float*>(job.parameters),
      .log_probability = job.log_probability,
      .error = reinterpret_cast<unsigned long long*>(error)};
  if (part) {
    const auto [sweep, row, first_step, steps] = *part;
    params.layout.n_sweeps = 1;
    params.layout.sweeps[0] = plan.layout.sweeps[sweep];
    params.layout.sweeps[0].first_step = first_step, params.layout.sweeps[0].steps = steps;
    if (plan.layout.by_rows) params.layout.first_row = row, params.layout.end_row = row + 1;
  }
  return py::bytes(reinterpret_cast<const char*>(&params), sizeof params);
}

py::dict facts(const cuda::Plan& plan) {
  const cuda::Layout& l = plan.layout;
  py::list sweeps;
  int all_records = 0;
  for (int k = 0; k < l.n_sweeps; k++) {
    const cuda::SweepPlan& sweep = l.sweeps[k];
    const auto& [records, weight_bytes, value_bytes] = plan.sweeps[k];
    all_records += records;
    sweeps.append(py::dict("first_step"_a = sweep.first_step, "steps"_a = sweep.steps, "columns"_a = sweep.columns,
                           "records"_a = records, "weight_bytes"_a = weight_bytes, "value_bytes"_a = value_bytes));
  }
  return py::dict("images"_a = l.images, "cluster"_a = l.cluster, "rows"_a = l.rows, "lag"_a = l.lag,
                  "tiles"_a = l.tiles, "threads"_a = cuda::kThreads, "most_images"_a = l.most_images,
                  "turns"_a = l.end_row, "sweeps"_a = sweeps, "records"_a = all_records,
                  "shared_bytes"_a = plan.shared_bytes, "weight_bytes"_a = plan.weight_bytes,
                  "workspace_bytes"_a = l.workspace_bytes);
}

}  // namespace

void bind_cuda_sampler(py::module_& m) {
  m.def("cuda_kernels", &kernels, "(math, tiles, blocks of a cluster) of each kernel.");
  m.def(
      "cuda_kernel_sources",
      [] {
        py::dict found;
        for (const auto& [name, text] : kKernelSources) found[name] = text;
        return found;
      },
      "The kernels' sources, by the names by which they include each other.");
  py::class_<cuda::Plan>(m, "CudaSampler")
      .def(py::init([](py::handle program, py::handle math, int images, int shared_bytes, int cluster) {
             return cuda::make_plan(pcf::read<pcf::Program>(program), pcf::read<pcf::Math>(math), images, cluster,
                                    shared_bytes);
           }),
           "program"_a, "math"_a, "images"_a, "shared_bytes"_a, "cluster"_a = 1)
      .def("parameters", &parameters, "job"_a, "constants"_a, "workspace"_a, "error"_a, "part"_a = py::none(),
           "What the kernel is given by value. part: (sweep, row, first column step, column steps), if only these are "
           "to be run.")
      .def("blocks", &cuda::Plan::blocks, "images"_a)
      .def("constants", [](const cuda::Plan& plan) { return py::bytes(plan.constants.data(), plan.constants.size()); })
      .def("workspace_bytes", &cuda::Plan::workspace_bytes, "images"_a)
      .def_property_readonly("facts", &facts);
}

// The CPU sampler in Python. Arrays are passed as addresses (Tensor.data_ptr()): Python checks shapes, dtypes and
// devices and keeps them alive, so this file needs no torch.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/sampler/sampler.h"
#include "cpu/simd/cpu_features.h"

namespace py = pybind11;
namespace cpu = pcf::cpu;
using namespace py::literals;

namespace {

using Address = uintptr_t;

const void* at(Address address) { return reinterpret_cast<const void*>(address); }

int run(const cpu::Sampler& sampler, int images, Address values, Address known, Address noise,
        const std::vector<Address>& conditions, const pcf::SamplingOptions& options, Address parameters,
        Address log_probability, int threads, const std::function<void(int)>& on_row,
        const std::vector<int>& fewer_at) {
  pcf::Job job{images,
               reinterpret_cast<void*>(values),
               static_cast<const uint8_t*>(at(known)),
               static_cast<const double*>(at(noise)),
               {},
               options,
               reinterpret_cast<void*>(parameters),
               reinterpret_cast<double*>(log_probability)};
  for (Address condition : conditions) job.conditions.push_back(at(condition));
  py::gil_scoped_release release;
  if (fewer_at.empty()) return sampler.run(job, threads, on_row);
  cpu::Schedule schedule = sampler.schedule(images, threads);
  schedule.fewer_at = fewer_at;
  return sampler.run(job, schedule, on_row);  // on_row takes the GIL by itself
}

}  // namespace

void bind_sampler(py::module_& m) {
  py::enum_<pcf::StepKind> kinds(m, "StepKind");
  for (const pcf::StepTraits& kind : pcf::kStepKinds)
    kinds.value(kind.name, static_cast<pcf::StepKind>(&kind - pcf::kStepKinds));
  py::enum_<pcf::Phase>(m, "Phase")
      .value("row", pcf::Phase::row)
      .value("pixel", pcf::Phase::pixel)
      .value("drawn", pcf::Phase::drawn)
      .value("finished", pcf::Phase::finished);

  py::class_<pcf::Step>(m, "Step").def(
      py::init([](pcf::StepKind kind, double alpha, int operand, Address scale, Address shift, int dy, int dx) {
        return pcf::Step{kind, alpha, operand, at(scale), at(shift), dy, dx};
      }),
      "kind"_a, "alpha"_a, "operand"_a, "scale"_a, "shift"_a, "dy"_a, "dx"_a);
  py::class_<pcf::Run>(m, "Run").def(py::init([](int source, int dy, int dx, int width, Address weight) {
                                       return pcf::Run{source, dy, dx, width, at(weight)};
                                     }),
                                     "source"_a, "dy"_a, "dx"_a, "width"_a, "weight"_a);
  py::class_<pcf::Storage>(m, "Storage")
      .def(py::init<int, int, int, int>(), "channels"_a, "rows"_a, "pad_left"_a, "pad_right"_a);
  py::enum_<pcf::InstructionKind>(m, "InstructionKind")
      .value("from_levels", pcf::InstructionKind::from_levels)
      .value("convolution", pcf::InstructionKind::convolution)
      .value("pointwise", pcf::InstructionKind::pointwise);
  py::class_<pcf::ImageInput>(m, "ImageInput")
      .def(py::init([](int first, int count, int width, Address table, int levels) {
             return pcf::ImageInput{first, count, width, at(table), levels};
           }),
           "first"_a, "count"_a, "width"_a, "table"_a, "levels"_a);
  py::class_<pcf::ConditionOperand>(m, "ConditionOperand")
      .def(py::init<int, bool>(), "channels"_a, "varies_over_pixels"_a);
  py::class_<pcf::Instruction>(m, "Instruction")
      .def(py::init([](int out, int channels, pcf::InstructionKind kind, pcf::Phase phase, pcf::ImageInput input,
                       Address bias, std::vector<pcf::Run> row_runs, std::vector<pcf::Run> pixel_runs, int value,
                       std::vector<pcf::Step> steps, int lead, int after, int dy, int dx, int scan,
                       bool from_the_right) {
             return pcf::Instruction{out,   channels, kind, phase, input, at(bias), row_runs, pixel_runs,
                                     value, steps,    lead, after, dy,    dx,       scan,     from_the_right};
           }),
           "out"_a, "channels"_a, "kind"_a, "phase"_a, "input"_a = pcf::ImageInput{}, "bias"_a = 0,
           "row_runs"_a = std::vector<pcf::Run>(), "pixel_runs"_a = std::vector<pcf::Run>(), "value"_a = -1, "steps"_a,
           "lead"_a, "after"_a, "dy"_a = 0, "dx"_a = 0, "scan"_a = pcf::Instruction::kWholeRow,
           "from_the_right"_a = false);
  py::enum_<pcf::HeadKind> heads(m, "HeadKind");
  py::dict head_traits;
  for (const pcf::HeadTraits& kind : pcf::kHeadKinds) {
    heads.value(kind.name, static_cast<pcf::HeadKind>(&kind - pcf::kHeadKinds));
    head_traits[kind.name] = py::dict("value"_a = kind.value, "single"_a = kind.single);
  }
  m.attr("HEAD_TRAITS") = head_traits;
  py::class_<pcf::Head>(m, "Head").def(py::init<pcf::HeadKind, int, int, int, int>(), "kind"_a, "distributions"_a,
                                       "parameters"_a, "uniforms"_a, "levels"_a);
  py::class_<pcf::Program>(m, "Program")
      .def(py::init([](int image_channels, int height, int width, pcf::Head head, std::vector<int> outputs,
                       std::vector<pcf::Storage> storage, std::vector<pcf::Instruction> instructions,
                       std::vector<pcf::ConditionOperand> conditions, int lag) {
             return pcf::Program{image_channels, height, width, head, outputs, storage, instructions, conditions, lag};
           }),
           "image_channels"_a, "height"_a, "width"_a, "head"_a, "outputs"_a, "storage"_a, "instructions"_a,
           "conditions"_a, "lag"_a);

  const pcf::SamplingOptions none;
  py::class_<pcf::SamplingOptions>(m, "SamplingOptions")
      .def(py::init([](double temperature, int top_k, double top_p) {
             return pcf::SamplingOptions{temperature, top_k, top_p};
           }),
           py::kw_only(), "temperature"_a = none.temperature, "top_k"_a = none.top_k, "top_p"_a = none.top_p);

  py::class_<cpu::Sampler>(m, "CpuSampler")
      .def(py::init([](const pcf::Program& program, bool float64, bool bf16_weights) {
             return cpu::make_sampler(program, float64 ? cpu::Dtype::float64 : cpu::Dtype::float32,
                                      bf16_weights ? pcf::Weights::bf16 : pcf::Weights::same, cpu::chosen_isa());
           }),
           "program"_a, "float64"_a, "bf16_weights"_a)
      .def("run", &run, "images"_a, "values"_a, "known"_a, "noise"_a, "conditions"_a, "options"_a, "parameters"_a,
           "log_probability"_a, "threads"_a, "on_row"_a, "fewer_at"_a = std::vector<int>())
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

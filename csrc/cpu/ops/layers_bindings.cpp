// The layers' ops in Python. Tensors are passed as addresses, sizes and strides: Python checks shapes, dtypes and
// devices, allocates results and keeps everything alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "cpu/ops/categorical_nll.h"
#include "cpu/ops/gated_activation.h"
#include "cpu/ops/masked_conv2d.h"
#include "cpu/ops/memory_pool.h"
#include "cpu/ops/recurrence.h"

namespace py = pybind11;
namespace cpu = pcf::cpu;
using namespace py::literals;

namespace {

using Address = uintptr_t;
template <int N>
using Sizes = std::array<int64_t, N>;

void* at(Address address) { return reinterpret_cast<void*>(address); }

using Map = std::tuple<Address, Sizes<4>, Sizes<4>>;  // address, sizes, strides

cpu::FeatureMap feature_map(cpu::Element element, const Map& map) {
  const auto& [address, n, s] = map;
  const auto size = [&n = n](int i) { return static_cast<int>(n[i]); };
  return {at(address), element, size(0), size(1), size(2), size(3), s[0], s[1], s[2], s[3]};
}

cpu::MaskedWeight masked_weight(cpu::Element element, const Map& weight, const Map& mask) {
  const auto& [address, n, s] = weight;
  const auto& m = std::get<2>(mask);
  const auto size = [&n = n](int i) { return static_cast<int>(n[i]); };
  return {at(address),
          at(std::get<0>(mask)),
          element,
          size(0),
          size(1),
          size(2),
          size(3),
          {s[0], s[1], s[2], s[3]},
          {m[0], m[1], m[2], m[3]}};
}

cpu::Geometry geometry(const Sizes<2>& padding, const Sizes<2>& dilation) {
  return {static_cast<int>(padding[0]), static_cast<int>(padding[1]), static_cast<int>(dilation[0]),
          static_cast<int>(dilation[1])};
}

void masked_conv2d(cpu::Element element, const Map& x, const Map& weight, const Map& mask, const Sizes<2>& padding,
                   const Sizes<2>& dilation, Address bias, const Map& out, int threads) {
  py::gil_scoped_release release;
  cpu::masked_conv2d(feature_map(element, x), masked_weight(element, weight, mask), geometry(padding, dilation),
                     {.bias = at(bias)}, feature_map(element, out), threads);
}

void masked_conv_block(cpu::Element element, const Map& x, const Map& weight, const Map& mask, const Sizes<2>& padding,
                       const Sizes<2>& dilation, Address bias, Address scale, Address shift, Address condition,
                       const std::optional<Map>& residual, std::optional<pcf::StepKind> activation, double alpha,
                       const Map& out, int threads) {
  py::gil_scoped_release release;
  cpu::ConvEpilogue epilogue{at(bias), at(scale), at(shift), at(condition)};
  if (residual) epilogue.residual = feature_map(element, *residual);
  epilogue.activates = activation.has_value();
  epilogue.activation = activation.value_or(pcf::StepKind::relu);
  epilogue.alpha = alpha;
  cpu::masked_conv2d(feature_map(element, x), masked_weight(element, weight, mask), geometry(padding, dilation),
                     epilogue, feature_map(element, out), threads);
}

void masked_conv2d_input_gradient(cpu::Element element, const Map& grad, const Map& weight, const Map& mask,
                                  const Sizes<2>& padding, const Sizes<2>& dilation, const Map& grad_x, int threads) {
  py::gil_scoped_release release;
  cpu::masked_conv2d_input_gradient(feature_map(element, grad), masked_weight(element, weight, mask),
                                    geometry(padding, dilation), feature_map(element, grad_x), threads);
}

void masked_conv2d_weight_gradient(cpu::Element element, const Map& grad, const Map& x, const Map& mask,
                                   const Sizes<2>& padding, const Sizes<2>& dilation, Address grad_weight,
                                   Address grad_bias, int threads) {
  py::gil_scoped_release release;
  cpu::masked_conv2d_weight_gradient(feature_map(element, grad), feature_map(element, x),
                                     masked_weight(element, mask, mask), geometry(padding, dilation), at(grad_weight),
                                     at(grad_bias), threads);
}

void gated_activation(cpu::Element element, const cpu::GateShape& shape, Address x, Address condition, Address out,
                      int threads) {
  py::gil_scoped_release release;
  cpu::gated_activation(element, shape, at(x), at(condition), at(out), threads);
}

void gated_activation_gradient(cpu::Element element, const cpu::GateShape& shape, Address x, Address condition,
                               Address grad, Address grad_x, int threads) {
  py::gil_scoped_release release;
  cpu::gated_activation_gradient(element, shape, at(x), at(condition), at(grad), at(grad_x), threads);
}

cpu::LogitsTensor logits_tensor(cpu::Element element, const Sizes<5>& sizes, const Sizes<5>& strides) {
  cpu::LogitsTensor t{element, {}, {}};
  std::copy(sizes.begin(), sizes.end(), t.sizes);
  std::copy(strides.begin(), strides.end(), t.strides);
  return t;
}

bool categorical_nll(cpu::Element element, const Sizes<5>& sizes, const Sizes<5>& strides, Address logits,
                     Address levels, int64_t ignored, Address nll, Address log_sum_exp, int threads) {
  py::gil_scoped_release release;
  return cpu::categorical_nll(logits_tensor(element, sizes, strides), at(logits), static_cast<int64_t*>(at(levels)),
                              ignored, at(nll), static_cast<double*>(at(log_sum_exp)), threads);
}

void categorical_nll_gradient(cpu::Element element, const Sizes<5>& sizes, const Sizes<5>& strides, Address logits,
                              Address levels, int64_t ignored, Address log_sum_exp, Address grad_nll,
                              Address grad_logits, int threads) {
  py::gil_scoped_release release;
  cpu::categorical_nll_gradient(logits_tensor(element, sizes, strides), at(logits), static_cast<int64_t*>(at(levels)),
                                ignored, static_cast<double*>(at(log_sum_exp)), at(grad_nll), at(grad_logits), threads);
}

void recurrence(cpu::Element element, bool diagonal, bool reverse, int taps, Address weight, Address h0, Address c0,
                const Map& sums, const Map& h, const std::optional<Map>& gates, int threads) {
  py::gil_scoped_release release;
  cpu::recurrence({diagonal, reverse, taps, element, at(weight), at(h0), at(c0)}, feature_map(element, sums),
                  feature_map(element, h), gates ? feature_map(element, *gates) : cpu::FeatureMap{}, threads);
}

void recurrence_gradient(cpu::Element element, bool diagonal, bool reverse, int taps, Address weight, Address c0,
                         const Map& grad, const Map& gates, const Map& grad_sums, Address grad_h0, Address grad_c0,
                         int threads) {
  py::gil_scoped_release release;
  cpu::recurrence_gradient({diagonal, reverse, taps, element, at(weight), nullptr, at(c0)}, feature_map(element, grad),
                           feature_map(element, gates), feature_map(element, grad_sums), at(grad_h0), at(grad_c0),
                           threads);
}

}  // namespace

void bind_layers(py::module_& m) {
  py::enum_<cpu::Element>(m, "Element")
      .value("float32", cpu::Element::float32)
      .value("float64", cpu::Element::float64)
      .value("bfloat16", cpu::Element::bfloat16);
  py::enum_<cpu::GateCondition>(m, "GateCondition")
      .value("none", cpu::GateCondition::none)
      .value("per_image", cpu::GateCondition::per_image)
      .value("per_pixel", cpu::GateCondition::per_pixel);
  py::class_<cpu::GateShape>(m, "GateShape")
      .def(py::init<int64_t, int64_t, int64_t, bool, cpu::GateCondition>(), "images"_a, "channels"_a, "pixels"_a,
           "channels_last"_a, "condition"_a);

  py::class_<cpu::Block>(m, "Block", py::buffer_protocol())
      .def(py::init<int64_t>(), "bytes"_a)
      .def_static("kept", &cpu::Block::kept)
      .def_buffer([](cpu::Block& block) {
        return py::buffer_info(static_cast<uint8_t*>(block.data()), static_cast<py::ssize_t>(block.bytes()));
      });

  m.def("masked_conv2d", &masked_conv2d, "element"_a, "x"_a, "weight"_a, "mask"_a, "padding"_a, "dilation"_a, "bias"_a,
        "out"_a, "threads"_a);
  m.def("masked_conv_block", &masked_conv_block, "element"_a, "x"_a, "weight"_a, "mask"_a, "padding"_a, "dilation"_a,
        "bias"_a, "scale"_a, "shift"_a, "condition"_a, "residual"_a, "activation"_a, "alpha"_a, "out"_a, "threads"_a);
  m.def("masked_conv2d_input_gradient", &masked_conv2d_input_gradient, "element"_a, "grad"_a, "weight"_a, "mask"_a,
        "padding"_a, "dilation"_a, "grad_x"_a, "threads"_a);
  m.def("masked_conv2d_weight_gradient", &masked_conv2d_weight_gradient, "element"_a, "grad"_a, "x"_a, "mask"_a,
        "padding"_a, "dilation"_a, "grad_weight"_a, "grad_bias"_a, "threads"_a);
  m.def("gated_activation", &gated_activation, "element"_a, "shape"_a, "x"_a, "condition"_a, "out"_a, "threads"_a);
  m.def("gated_activation_gradient", &gated_activation_gradient, "element"_a, "shape"_a, "x"_a, "condition"_a, "grad"_a,
        "grad_x"_a, "threads"_a);
  m.def("recurrence", &recurrence, "element"_a, "diagonal"_a, "reverse"_a, "taps"_a, "weight"_a, "h0"_a, "c0"_a,
        "sums"_a, "h"_a, "gates"_a, "threads"_a);
  m.def("recurrence_gradient", &recurrence_gradient, "element"_a, "diagonal"_a, "reverse"_a, "taps"_a, "weight"_a,
        "c0"_a, "grad"_a, "gates"_a, "grad_sums"_a, "grad_h0"_a, "grad_c0"_a, "threads"_a);
  m.def("categorical_nll", &categorical_nll, "element"_a, "sizes"_a, "strides"_a, "logits"_a, "levels"_a, "ignored"_a,
        "nll"_a, "log_sum_exp"_a, "threads"_a);
  m.def("categorical_nll_gradient", &categorical_nll_gradient, "element"_a, "sizes"_a, "strides"_a, "logits"_a,
        "levels"_a, "ignored"_a, "log_sum_exp"_a, "grad_nll"_a, "grad_logits"_a, "threads"_a);
}

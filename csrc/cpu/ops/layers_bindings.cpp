// The layers' ops in Python. Tensors are passed as addresses, sizes and strides: Python checks shapes, dtypes and
// devices, allocates results and keeps everything alive. It passes all arguments by position.
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

namespace pybind11::detail {

// A tensor with so many numbers in all: its address, its Element, and then its sizes and strides.
template <size_t N>
bool load_numbers(handle source, std::array<int64_t, N>& numbers) {
  if (!PyTuple_Check(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != N) return false;
  for (size_t i = 0; i < N; i++) numbers[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(source.ptr(), i));
  if (PyErr_Occurred()) throw error_already_set();
  return true;
}

template <>
struct type_caster<cpu::FeatureMap> {
  PYBIND11_TYPE_CASTER(cpu::FeatureMap, const_name("RawTensor"));
  bool load(handle source, bool) {
    std::array<int64_t, 10> n;
    if (!load_numbers(source, n)) return false;
    const auto size = [&](int i) { return static_cast<int>(n[2 + i]); };
    value = {reinterpret_cast<void*>(n[0]),
             static_cast<cpu::Element>(n[1]),
             size(0),
             size(1),
             size(2),
             size(3),
             n[6],
             n[7],
             n[8],
             n[9]};
    return true;
  }
};

template <>
struct type_caster<cpu::LogitsTensor> {
  PYBIND11_TYPE_CASTER(cpu::LogitsTensor, const_name("RawTensor"));
  bool load(handle source, bool) {
    std::array<int64_t, 12> n;
    if (!load_numbers(source, n)) return false;
    value = {static_cast<cpu::Element>(n[1]), reinterpret_cast<const void*>(n[0]), {}, {}};
    std::copy_n(&n[2], 5, value.sizes.begin());
    std::copy_n(&n[7], 5, value.strides.begin());
    return true;
  }
};

}  // namespace pybind11::detail

namespace {

using cpu::FeatureMap;
using Address = uintptr_t;
using Pair = std::array<int, 2>;  // vertical and horizontal

void* at(Address address) { return reinterpret_cast<void*>(address); }

cpu::Geometry geometry(const Pair& padding, const Pair& dilation) {
  return {padding[0], padding[1], dilation[0], dilation[1]};
}

void masked_conv2d(const FeatureMap& x, const FeatureMap& weight, const FeatureMap& mask, const Pair& padding,
                   const Pair& dilation, Address bias, const FeatureMap& out, int threads) {
  cpu::masked_conv2d(x, {weight, mask}, geometry(padding, dilation), {.bias = at(bias)}, out, threads);
}

void masked_conv_block(const FeatureMap& x, const FeatureMap& weight, const FeatureMap& mask, const Pair& padding,
                       const Pair& dilation, Address bias, Address scale, Address shift, Address condition,
                       const std::optional<FeatureMap>& residual, std::optional<pcf::StepKind> activation, double alpha,
                       const FeatureMap& out, int threads) {
  const cpu::ConvEpilogue epilogue{.bias = at(bias),
                                   .scale = at(scale),
                                   .shift = at(shift),
                                   .condition = at(condition),
                                   .residual = residual.value_or(FeatureMap{}),
                                   .activation = activation,
                                   .alpha = alpha};
  cpu::masked_conv2d(x, {weight, mask}, geometry(padding, dilation), epilogue, out, threads);
}

void masked_conv2d_input_gradient(const FeatureMap& grad, const FeatureMap& weight, const FeatureMap& mask,
                                  const Pair& padding, const Pair& dilation, const FeatureMap& grad_x, int threads) {
  cpu::masked_conv2d_input_gradient(grad, {weight, mask}, geometry(padding, dilation), grad_x, threads);
}

void masked_conv2d_weight_gradient(const FeatureMap& grad, const FeatureMap& x, const FeatureMap& mask,
                                   const Pair& padding, const Pair& dilation, Address grad_weight, Address grad_bias,
                                   int threads) {
  cpu::masked_conv2d_weight_gradient(grad, x, {mask, mask}, geometry(padding, dilation), at(grad_weight), at(grad_bias),
                                     threads);
}

cpu::GateLayout gate_layout(const FeatureMap& x, bool channels_last, bool condition_per_pixel) {
  return {x.images, x.channels / 2, int64_t{x.height} * x.width, channels_last, condition_per_pixel};
}

void gated_activation(const FeatureMap& x, bool channels_last, bool condition_per_pixel, Address condition, Address out,
                      int threads) {
  cpu::gated_activation(x.element, gate_layout(x, channels_last, condition_per_pixel), x.data, at(condition), at(out),
                        threads);
}

void gated_activation_gradient(const FeatureMap& x, bool channels_last, bool condition_per_pixel, Address condition,
                               Address grad, Address grad_x, int threads) {
  cpu::gated_activation_gradient(x.element, gate_layout(x, channels_last, condition_per_pixel), x.data, at(condition),
                                 at(grad), at(grad_x), threads);
}

bool categorical_nll(const cpu::LogitsTensor& logits, Address levels, int64_t ignored, Address nll, Address log_sum_exp,
                     int threads) {
  return cpu::categorical_nll(logits, static_cast<int64_t*>(at(levels)), ignored, at(nll),
                              static_cast<double*>(at(log_sum_exp)), threads);
}

void categorical_nll_gradient(const cpu::LogitsTensor& logits, Address levels, int64_t ignored, Address log_sum_exp,
                              Address grad_nll, Address grad_logits, int threads) {
  cpu::categorical_nll_gradient(logits, static_cast<int64_t*>(at(levels)), ignored,
                                static_cast<double*>(at(log_sum_exp)), at(grad_nll), at(grad_logits), threads);
}

void recurrence(bool diagonal, bool reverse, int taps, Address weight, Address h0, Address c0, const FeatureMap& sums,
                const FeatureMap& h, const std::optional<FeatureMap>& gates, int threads) {
  cpu::recurrence({diagonal, reverse, taps, at(weight), at(h0), at(c0)}, sums, h, gates.value_or(FeatureMap{}),
                  threads);
}

void recurrence_gradient(bool diagonal, bool reverse, int taps, Address weight, Address c0, const FeatureMap& grad,
                         const FeatureMap& gates, const FeatureMap& grad_sums, Address grad_h0, Address grad_c0,
                         int threads) {
  cpu::recurrence_gradient({diagonal, reverse, taps, at(weight), nullptr, at(c0)}, grad, gates, grad_sums, at(grad_h0),
                           at(grad_c0), threads);
}

}  // namespace

void bind_layers(py::module_& m) {
  py::enum_<cpu::Element> elements(m, "Element");
#define PCF_BIND(name) elements.value(#name, cpu::Element::name);
  PCF_EACH_ELEMENT(PCF_BIND)
#undef PCF_BIND

  py::class_<cpu::Block>(m, "Block", py::buffer_protocol())
      .def(py::init<int64_t>(), py::arg("bytes"))
      .def_static("kept", &cpu::Block::kept)
      .def_buffer([](cpu::Block& block) {
        return py::buffer_info(static_cast<uint8_t*>(block.data()), static_cast<py::ssize_t>(block.bytes()));
      });

  const auto def = [&](const char* name, auto function) {
    m.def(name, function, py::call_guard<py::gil_scoped_release>());
  };
  def("masked_conv2d", masked_conv2d);
  def("masked_conv_block", masked_conv_block);
  def("masked_conv2d_input_gradient", masked_conv2d_input_gradient);
  def("masked_conv2d_weight_gradient", masked_conv2d_weight_gradient);
  def("gated_activation", gated_activation);
  def("gated_activation_gradient", gated_activation_gradient);
  def("recurrence", recurrence);
  def("recurrence_gradient", recurrence_gradient);
  def("categorical_nll", categorical_nll);
  def("categorical_nll_gradient", categorical_nll_gradient);
}

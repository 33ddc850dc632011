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

// A struct, from a tuple of its fields.
template <class Struct, class... Fields>
struct FieldsCaster {
  PYBIND11_TYPE_CASTER(Struct, const_name("tuple"));
  bool load(handle source, bool convert) {
    make_caster<std::tuple<Fields...>> fields;
    if (!fields.load(source, convert)) return false;
    value = std::make_from_tuple<Struct>(cast_op<std::tuple<Fields...>>(std::move(fields)));
    return true;
  }
};

template <>
struct type_caster<cpu::MaskedWeight> : FieldsCaster<cpu::MaskedWeight, cpu::FeatureMap, cpu::FeatureMap> {};
template <>
struct type_caster<cpu::Geometry> : FieldsCaster<cpu::Geometry, std::array<int, 2>, std::array<int, 2>> {};

}  // namespace pybind11::detail

namespace {

using cpu::FeatureMap;
using Address = uintptr_t;

template <class T>
using Taken = std::conditional_t<std::is_pointer_v<T>, Address, T>;

template <class T>
T passed(const Taken<T>& value) {
  if constexpr (std::is_pointer_v<T>)
    return reinterpret_cast<T>(value);
  else
    return value;
}

// Binds a function as it is: Python passes addresses where it takes pointers.
template <class Result, class... Arguments>
void bind(py::module_& m, const char* name, Result (*function)(Arguments...)) {
  m.def(
      name,
      [=](const Taken<std::decay_t<Arguments>>&... arguments) {
        return function(passed<std::decay_t<Arguments>>(arguments)...);
      },
      py::call_guard<py::gil_scoped_release>());
}

void masked_conv2d(const FeatureMap& x, const cpu::MaskedWeight& weight, const cpu::Geometry& geometry,
                   const void* bias, const FeatureMap& out, int threads) {
  cpu::masked_conv2d(x, weight, geometry, {.bias = bias}, out, threads);
}

void masked_conv_block(const FeatureMap& x, const cpu::MaskedWeight& weight, const cpu::Geometry& geometry,
                       const void* bias, const void* scale, const void* shift, const void* condition,
                       const std::optional<FeatureMap>& residual, const std::optional<pcf::StepKind>& activation,
                       double alpha, const FeatureMap& out, int threads) {
  const cpu::ConvEpilogue epilogue{.bias = bias,
                                   .scale = scale,
                                   .shift = shift,
                                   .condition = condition,
                                   .residual = residual.value_or(FeatureMap{}),
                                   .activation = activation,
                                   .alpha = alpha};
  cpu::masked_conv2d(x, weight, geometry, epilogue, out, threads);
}

void recurrence(bool diagonal, bool reverse, int taps, const void* weight, const void* h0, const void* c0,
                const FeatureMap& sums, const FeatureMap& h, const std::optional<FeatureMap>& gates, int threads) {
  cpu::recurrence({diagonal, reverse, taps, weight, h0, c0}, sums, h, gates.value_or(FeatureMap{}), threads);
}

void recurrence_gradient(bool diagonal, bool reverse, int taps, const void* weight, const void* c0,
                         const FeatureMap& grad, const FeatureMap& gates, const FeatureMap& grad_sums, void* grad_h0,
                         void* grad_c0, int threads) {
  cpu::recurrence_gradient({diagonal, reverse, taps, weight, nullptr, c0}, grad, gates, grad_sums, grad_h0, grad_c0,
                           threads);
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

  bind(m, "masked_conv2d", masked_conv2d);
  bind(m, "masked_conv_block", masked_conv_block);
  bind(m, "masked_conv2d_input_gradient", cpu::masked_conv2d_input_gradient);
  bind(m, "masked_conv2d_weight_gradient", cpu::masked_conv2d_weight_gradient);
  bind(m, "gated_activation", cpu::gated_activation);
  bind(m, "gated_activation_gradient", cpu::gated_activation_gradient);
  bind(m, "recurrence", recurrence);
  bind(m, "recurrence_gradient", recurrence_gradient);
  bind(m, "categorical_nll", cpu::categorical_nll);
  bind(m, "categorical_nll_gradient", cpu::categorical_nll_gradient);
}

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

namespace {

// Python passes addresses where C++ takes pointers.
template <class T>
using Taken = std::conditional_t<std::is_pointer_v<T>, uintptr_t, T>;

template <class T>
T passed(const Taken<T>& value) {
  if constexpr (std::is_pointer_v<T>)
    return reinterpret_cast<T>(value);
  else
    return value;
}

}  // namespace

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
    void* const data = reinterpret_cast<void*>(n[0]);
    const auto element = static_cast<cpu::Element>(n[1]);
    value = {data, element, size(0), size(1), size(2), size(3), n[6], n[7], n[8], n[9]};
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
    make_caster<std::tuple<Taken<Fields>...>> fields;
    if (!fields.load(source, convert)) return false;
    value = std::apply([](const auto&... each) { return Struct{passed<Fields>(each)...}; },
                       cast_op<std::tuple<Taken<Fields>...>>(std::move(fields)));
    return true;
  }
};

using Pointer = const void*;
using Pair = std::array<int, 2>;
template <>
struct type_caster<cpu::MaskedWeight> : FieldsCaster<cpu::MaskedWeight, cpu::FeatureMap, cpu::FeatureMap> {};
template <>
struct type_caster<cpu::Geometry> : FieldsCaster<cpu::Geometry, Pair, Pair> {};
template <>
struct type_caster<cpu::ConvEpilogue>
    : FieldsCaster<cpu::ConvEpilogue, Pointer, Pointer, Pointer, Pointer, std::optional<cpu::FeatureMap>,
                   std::optional<pcf::StepKind>, double> {};
template <>
struct type_caster<cpu::StateToState> : FieldsCaster<cpu::StateToState, bool, bool, int, Pointer, Pointer, Pointer> {};

}  // namespace pybind11::detail

namespace {

// Binds a function with the arguments that it has in C++.
template <class Result, class... Arguments>
void bind(py::module_& m, const char* name, Result (*function)(Arguments...)) {
  m.def(
      name,
      [=](const Taken<std::decay_t<Arguments>>&... arguments) {
        return function(passed<std::decay_t<Arguments>>(arguments)...);
      },
      py::call_guard<py::gil_scoped_release>());
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

  bind(m, "masked_conv2d", cpu::masked_conv2d);
  bind(m, "masked_conv2d_input_gradient", cpu::masked_conv2d_input_gradient);
  bind(m, "masked_conv2d_weight_gradient", cpu::masked_conv2d_weight_gradient);
  bind(m, "gated_activation", cpu::gated_activation);
  bind(m, "gated_activation_gradient", cpu::gated_activation_gradient);
  bind(m, "recurrence", cpu::recurrence);
  bind(m, "recurrence_gradient", cpu::recurrence_gradient);
  bind(m, "categorical_nll", cpu::categorical_nll);
  bind(m, "categorical_nll_gradient", cpu::categorical_nll_gradient);
}

// The layers' ops in Python. Tensors are passed as addresses, sizes and strides: Python checks shapes, dtypes and
// devices, allocates results and keeps everything alive. Arguments are passed by position, fields of structs by name.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "cpu/memory/pool.h"
#include "cpu/ops/categorical_nll.h"
#include "cpu/ops/concat_elu.h"
#include "cpu/ops/gated_activation.h"
#include "cpu/ops/masked_conv2d.h"
#include "cpu/ops/recurrence.h"
#include "read.h"

namespace py = pybind11;
namespace cpu = pcf::cpu;

namespace pcf::cpu {

template <class F>
void each_field(MaskedWeight& of, const F& f) {
  f("weight", of.weight), f("mask", of.mask);
}

template <class F>
void each_field(Geometry& of, const F& f) {
  f("padding", of.padding), f("dilation", of.dilation);
}

template <class F>
void each_field(ConvEpilogue& of, const F& f) {
  f("bias", of.bias), f("scale", of.scale), f("shift", of.shift), f("condition", of.condition);
  f("residual", of.residual), f("activation", of.activation), f("alpha", of.alpha);
}

template <class F>
void each_field(StateToState& of, const F& f) {
  f("diagonal", of.diagonal), f("reverse", of.reverse), f("taps", of.taps);
  f("weight", of.weight), f("h0", of.h0), f("c0", of.c0);
}

}  // namespace pcf::cpu

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

// A struct, from any object that has its fields as attributes.
template <class Struct>
  requires requires(Struct& of) { each_field(of, [](auto&&...) {}); }
struct type_caster<Struct> {
  PYBIND11_TYPE_CASTER(Struct, const_name("object"));
  bool load(handle source, bool) { return pcf::read(source, value), true; }
};

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
  bind(m, "concat_elu", cpu::concat_elu);
  bind(m, "concat_elu_gradient", cpu::concat_elu_gradient);
  bind(m, "recurrence", cpu::recurrence);
  bind(m, "recurrence_gradient", cpu::recurrence_gradient);
  bind(m, "categorical_nll", cpu::categorical_nll);
  bind(m, "categorical_nll_gradient", cpu::categorical_nll_gradient);
}

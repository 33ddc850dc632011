// Reads what tables.h declares from Python: a struct from any object that has its fields as attributes, where None
// keeps the default; an enumerator from its name, or from an Enum's value.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "tables.h"

namespace pcf {

template <class T>
void read(pybind11::handle from, T& to) {
  if constexpr (std::is_enum_v<T>) {
    const std::string name = pybind11::str(pybind11::getattr(from, "value", from));
    for (int k = 0; k < count_of(T{}); k++)
      if (name == traits(static_cast<T>(k)).name) return void(to = static_cast<T>(k));
    throw std::invalid_argument("the compiled module does not know '" + name + "'");
  } else if constexpr (requires { each_field(to, [](auto&&...) {}); }) {
    each_field(to, [&](const char* name, auto& field) {
      const pybind11::object value = from.attr(name);
      if (!value.is_none()) read(value, field);
    });
  } else if constexpr (requires { to.emplace_back(); }) {
    for (const pybind11::handle item : from) read(item, to.emplace_back());
  } else if constexpr (requires { to.has_value(); }) {
    read(from, to.emplace());
  } else if constexpr (std::is_pointer_v<T>) {
    to = reinterpret_cast<T>(from.cast<uintptr_t>());
  } else {
    to = from.cast<T>();
  }
}

template <class T>
T read(pybind11::handle from) {
  T to{};
  read(from, to);
  return to;
}

}  // namespace pcf

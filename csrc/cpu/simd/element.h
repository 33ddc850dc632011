// Element types of tensors, and their conversion.
#pragma once

#include <cstdint>
#include <type_traits>

namespace pcf::cpu {

#define PCF_EACH_ELEMENT(f) f(float32) f(float64) f(bfloat16)
#define PCF_LISTED(name) name,
enum class Element { PCF_EACH_ELEMENT(PCF_LISTED) };
#undef PCF_LISTED

struct Bfloat16 {
  uint16_t bits;
};

// Rounds to nearest, ties to even, as PyTorch does.
template <class To, class From>
inline To convert(From value) {
  if constexpr (std::is_same_v<From, To>) {
    return value;
  } else if constexpr (std::is_same_v<From, Bfloat16>) {
    return static_cast<To>(__builtin_bit_cast(float, uint32_t{value.bits} << 16));
  } else if constexpr (std::is_same_v<To, Bfloat16>) {
    const float wide = static_cast<float>(value);
    const uint32_t bits = __builtin_bit_cast(uint32_t, wide);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return {static_cast<uint16_t>(wide != wide ? 0x7fc0 : rounded)};
  } else {
    return static_cast<To>(value);
  }
}

// Calls f(E()) with the element type E.
template <class F>
decltype(auto) with_element(Element element, F f) {
  switch (element) {
    case Element::float64: return f(double());
    case Element::bfloat16: return f(Bfloat16());
    case Element::float32: break;
  }
  return f(float());
}

// The type that sums of an element type are computed in.
template <class E>
using Computed = std::conditional_t<std::is_same_v<E, double>, double, float>;

// The element type of tensors that hold T, in which sums are computed.
template <class T>
constexpr Element element_of = sizeof(T) == 8 ? Element::float64 : Element::float32;

// Calls f(T()) with the type that sums of the element type are computed in.
template <class F>
void in_computed_type(Element element, F f) {
  with_element(element, [&](auto e) { f(Computed<decltype(e)>()); });
}

}  // namespace pcf::cpu

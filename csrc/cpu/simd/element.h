// Element types of tensors, and their conversion.
#pragma once

#include <cstdint>
#include <cstring>
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
  if constexpr (std::is_same_v<From, Bfloat16>) {
    const uint32_t bits = uint32_t{value.bits} << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    if constexpr (std::is_same_v<To, Bfloat16>)
      return value;
    else
      return static_cast<To>(wide);
  } else if constexpr (std::is_same_v<To, Bfloat16>) {
    const float wide = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &wide, 4);
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
  if (element == Element::float64)
    f(double());
  else
    f(float());
}

}  // namespace pcf::cpu

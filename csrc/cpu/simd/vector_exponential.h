// exp of vectors whose elements are within limits, and 1 - exp, in which nothing cancels.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/simd/exponential.h"
#include "cpu/simd/vector.h"

namespace pcf::cpu {
namespace {

template <class T>
struct ExpAndRest {
  Vec<T> exp, rest;  // exp(x), 1 - exp(x)
};

// For -80 <= x <= 80, to within about 1 and 2 ulp; NaN stays NaN. With n the multiple of ln 2 nearest to x and r what
// is left, exp(x) = 2^n + 2^n (exp(r) - 1), by the Taylor polynomial of degree 7, or of degree 13 in float64.
template <class T>
inline ExpAndRest<T> exp_and_rest(Vec<T> x) {
  constexpr bool is_wide = sizeof(T) == 8;
  using Bits = std::conditional_t<is_wide, uint64_t, uint32_t>;
  using Words = Vec<Bits>;
  constexpr int mantissa = is_wide ? 52 : 23;
  constexpr T shift = T(1.5) * (Bits{1} << mantissa);  // adding it rounds to an integer in the low mantissa bits
  constexpr T high = is_wide ? 0.693145751953125 : 0.693359375;  // ln 2 = high + low; n * high is exact
  constexpr T low = static_cast<T>(is_wide ? 1.4286068203094172e-6 : -2.12194440e-4);
  const Vec<T> shifted = x * T(1.4426950408889634) + shift, n = shifted - shift, r = (x - n * high) - n * low;
  Vec<T> p = broadcast(T(1) / 5040);
  if constexpr (is_wide)
    p = polynomial(r, broadcast(T(1) / 6227020800), T(1) / 479001600, T(1) / 39916800, T(1) / 3628800, T(1) / 362880,
                   T(1) / 40320, T(1) / 5040);
  p = r * polynomial(r, p, T(1) / 720, T(1) / 120, T(1) / 24, T(1) / 6, T(0.5), T(1));
  const Vec<T> power = (Vec<T>)(((Words)shifted << mantissa) + (Bits{is_wide ? 1023 : 127} << mantissa));
  return {power + power * p, (1 - power) - power * p};
}

template <class T>
inline Vec<T> at_most(Vec<T> x, T limit) {  // keeps NaN
  return x > limit ? broadcast(limit) : x;
}
template <class T>
inline Vec<T> at_least(Vec<T> x, T limit) {
  return x < limit ? broadcast(limit) : x;
}
template <class T>
inline Vec<T> absolute(Vec<T> x) {
  return x < 0 ? -x : x;
}

}  // namespace
}  // namespace pcf::cpu

// exp, the logistic function and tanh in loops that the compiler vectorizes. Internal linkage: each instruction set's
// object file has its own copy.
#pragma once

#include <cmath>
#include <cstdint>

namespace pcf::cpu {
namespace {

inline double exponential(double x) { return std::exp(x); }

// exp in float32 to within about 1 ulp: 2^n through the exponent bits, exp of the remainder through its Taylor
// polynomial of degree 7 on [-ln 2 / 2, ln 2 / 2]. Below -87 the result is 0, so that a sum of such terms stays exact.
inline float exponential(float x) {
  const float clamped = x < -87.f ? -87.f : x > 88.f ? 88.f : x;
  const float shift = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  const float n = (clamped * 1.44269504089f + shift) - shift;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.f / 5040;
  p = p * r + 1.f / 720;
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  __builtin_memcpy(&scale, &bits, 4);
  return x < -87.f ? 0.f : x > 88.f ? __builtin_inff() : p * scale;
}

template <class T>
inline T logistic(T x) {
  return T(1) / (T(1) + exponential(-x));
}
inline double hyperbolic_tangent(double x) { return std::tanh(x); }

// tanh in float32 to within about 2 ulp: near 0, where 1 - ... would cancel, through a minimax polynomial (of Cephes).
inline float hyperbolic_tangent(float x) {
  const float size = x < 0 ? -x : x, square = x * x;
  float p = -5.70498872745e-3f;
  p = p * square + 2.06390887954e-2f;
  p = p * square + -5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square + -3.33332819422e-1f;
  const float far = 1.f - 2.f / (exponential(2 * size) + 1.f);
  return size < 0.625f ? x + x * square * p : x < 0 ? -far : far;
}

}  // namespace
}  // namespace pcf::cpu

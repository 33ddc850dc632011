// exp, the logistic function and tanh in loops that the compiler vectorizes.
#pragma once

#include <cmath>
#include <cstdint>

namespace pcf::cpu {
namespace {

// first * x^n + ... by Horner's rule.
template <class T, class... Rest>
__attribute__((always_inline)) inline T polynomial(T x, T first, Rest... rest) {
  ((first = first * x + rest), ...);
  return first;
}

// factor * 2^power, with a factor between about 0.7 and 1.42.
struct Exponential {
  float factor;
  int32_t power;
};

// exp in float32 to within about 1 ulp: the remainder's exp through its Taylor polynomial of degree 7 on
// [-ln 2 / 2, ln 2 / 2].
inline Exponential split_exponential(float x) {
  const float shift = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  const float n = (x * 1.44269504089f + shift) - shift;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  const float p = polynomial(r, 1.f / 5040, 1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f);
  return {p, static_cast<int32_t>(n)};
}

inline float power_of_2(int32_t n) {  // -126 <= n <= 127
  return __builtin_bit_cast(float, (n + 127) << 23);
}

// exp in float64 to within about 1 ulp, through the Taylor polynomial of degree 13. Below -708 the result is 0, above
// 709 infinite.
inline double exponential(double x) {
  const double shift = 6755399441055744.;  // 1.5 * 2^52
  const double clamped = x < -708. ? -708. : x > 709. ? 709. : x;
  const double shifted = clamped * 1.4426950408889634 + shift, n = shifted - shift;
  const double r = (clamped - n * 0.693145751953125) - n * 1.4286068203094172e-6;
  const double p = polynomial(r, 1. / 6227020800, 1. / 479001600, 1. / 39916800, 1. / 3628800, 1. / 362880, 1. / 40320,
                              1. / 5040, 1. / 720, 1. / 120, 1. / 24, 1. / 6, 0.5, 1., 1.);
  const auto bits = __builtin_bit_cast(uint64_t, shifted);  // the lowest are those of n
  const double power = __builtin_bit_cast(double, (bits << 52) + (uint64_t{1023} << 52));
  return x < -708. ? 0. : x > 709. ? __builtin_inf() : p * power;
}

// Below -87 the result is 0, so that a sum of such terms stays exact; above 88 it is infinite.
inline float exponential(float x) {
  const auto [factor, power] = split_exponential(x < -87.f ? -87.f : x > 88.f ? 88.f : x);
  return x < -87.f ? 0.f : x > 88.f ? __builtin_inff() : factor * power_of_2(power);
}

inline double exponential_of_any(double x) { return std::exp(x); }

// To the ends of float32: infinite only where the result is too large for it, and denormal before it is 0.
inline float exponential_of_any(float x) {
  const auto [factor, power] = split_exponential(x < -104.f ? -104.f : x > 89.f ? 89.f : x);
  const int32_t half = power / 2;
  return factor * power_of_2(half) * power_of_2(power - half);
}

template <class T>
inline T logistic(T x) {
  return T(1) / (T(1) + exponential(-x));
}

// tanh to within about 2 ulp: near 0, where 1 - ... would cancel, through minimax polynomials (of Cephes).
inline double hyperbolic_tangent(double x) {
  const double size = x < 0 ? -x : x, square = x * x;
  const double p = polynomial(square, -9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3);
  const double q = polynomial(square, 1., 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3);
  const double far = 1. - 2. / (exponential(2 * size) + 1.);
  return size < 0.625 ? x + x * square * (p / q) : x < 0 ? -far : far;
}

inline float hyperbolic_tangent(float x) {
  const float size = x < 0 ? -x : x, square = x * x;
  const float p = polynomial(square, -5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f,
                             -3.33332819422e-1f);
  const float far = 1.f - 2.f / (exponential(2 * size) + 1.f);
  return size < 0.625f ? x + x * square * p : x < 0 ? -far : far;
}

}  // namespace
}  // namespace pcf::cpu

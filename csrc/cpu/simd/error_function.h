// erf and erfc in loops that the compiler vectorizes, to within 4 units of the last place, also where they are small.
#pragma once

#include "cpu/simd/exponential.h"

namespace pcf::cpu {
namespace {

// The first half of the significant bits, whose square is exact.
inline double leading(double x) {
  return __builtin_bit_cast(double, __builtin_bit_cast(uint64_t, x) & ~uint64_t{0x7ffffff});
}
inline float leading(float x) { return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, x) & ~uint32_t{0xfff}); }

// exp(x^2) erfc(x) / y for y = 4 / (4 + x), about y = 0.5625: interpolated in Chebyshev's points for x from 0 to 27,
// or in float32 to 9.5, beyond which erfc is denormal.
inline double scaled_complement(double z) {
  return polynomial(z, 0.0017419225058255311, -0.0017001502666251459, -0.0048923640222286388, 0.0044078758866686833,
                    0.010416546124434899, -0.0065358570345922179, -0.02265343437112945, 0.0025488399270458643,
                    0.048925128517227953, 0.03284178425112403, -0.080139927689238541, -0.17674038762826288,
                    -0.056040958423056425, 0.38729888638814147, 1.0406173721878702, 1.6343937743269952,
                    1.9249846801192823, 1.8376724945472873, 1.4733766496526448, 1.0107421500723803, 0.59900766758764812,
                    0.30782209556653278);
}
inline float scaled_complement(float z) {
  return polynomial(z, -0.201644142f, -0.0650586008f, 0.392168282f, 1.04073116f, 1.63409612f, 1.92500236f, 1.83767957f,
                    1.47337605f, 1.01074209f, 0.599007672f, 0.307822096f);
}

// erf(x) / x - 1 by x^2, for |x| up to 1/2.
inline double near_zero(double square) {
  return polynomial(square, 1.4725865480556744e-6, -1.4845849259707869e-5, 0.00012053335124353741,
                    -0.00085482977536749665, 0.0052239773730214699, -0.026866170632887928, 0.11283791670925353,
                    -0.37612638903183476, 0.12837916709551256);
}
inline float near_zero(float square) {
  return polynomial(square, 0.00471908257f, -0.0267577327f, 0.112828314f, -0.37612609f, 0.128379166f);
}

// erfc(|x|). exp(-x^2) is exp(-h^2) exp(-d), where h has few enough bits for d = x^2 - h^2 to be small and exact.
template <class T>
inline T complement_of_size(T x) {
  const T size = x < 0 ? -x : x, bounded = size > 27 ? T(27) : size;
  const T y = T(4) / (T(4) + bounded), high = leading(bounded), d = (bounded - high) * (bounded + high);
  const T rest = polynomial(d, T(1) / 24, T(-1) / 6, T(0.5), T(-1), T(1));
  return exponential(-high * high) * rest * (y * scaled_complement(y - T(0.5625)));
}

template <class T>
inline T error_function(T x) {
  const T far = T(1) - complement_of_size(x), size = x < 0 ? -x : x;
  return size < T(0.5) ? x + x * near_zero(x * x) : x < 0 ? -far : far;
}

template <class T>
inline T complementary_error_function(T x) {
  const T far = complement_of_size(x);
  return x < 0 ? T(2) - far : far;
}

}  // namespace
}  // namespace pcf::cpu

// What device code uses of the standard library. NVRTC, which compiles the kernels at their first use, has no headers.
#pragma once

#ifndef __CUDACC_RTC__
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#else
using int16_t = short;
using int32_t = int;
using int64_t = long long;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned;
using uint64_t = unsigned long long;

#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define INFINITY __int_as_float(0x7f800000)

namespace std {

template <bool, class A, class>
struct conditional {
  using type = A;
};
template <class A, class B>
struct conditional<false, A, B> {
  using type = B;
};
template <bool condition, class A, class B>
using conditional_t = typename conditional<condition, A, B>::type;

}  // namespace std
#endif

// Sums of a few arrays, each times a number.
#pragma once

#include "cpu/simd/kernels.h"
#include "cpu/simd/vector.h"

namespace pcf::cpu {
namespace {

// out = from + the sum of so many arrays times their factors, which stay in registers.
template <class T, int kArrays>
void mix_arrays(int count, const T* const* arrays, const T* factors, const T* from, T* out, int n) {
  if constexpr (kArrays > 0) {
    if (count < kArrays) return mix_arrays<T, kArrays - 1>(count, arrays, factors, from, out, n);
    Vec<T> factor[kArrays];
#pragma GCC unroll 8
    for (int k = 0; k < kArrays; k++) factor[k] = broadcast(factors[k]);
    for (int c = 0; c < n; c += kLanes<T>) {
      Vec<T> sum = from ? load(from + c) : Vec<T>{};
#pragma GCC unroll 8
      for (int k = 0; k < kArrays; k++) sum += factor[k] * load(arrays[k] + c);
      store<T>(out + c, sum);
    }
  }
}

template <class T>
void mix(const Mixed<T>& in, const T* coefficients, int outputs, Rows<const T> from, Rows<T> out, int n) {
  for (int o = 0; o < outputs; o++) {
    const T *arrays[kMostMixed] = {}, *const row = coefficients + o * in.count;
    T factors[kMostMixed] = {};
    int used = 0;
    for (int k = 0; k < in.count; k++)
      if (row[k] != 0) arrays[used] = in.first + k * in.apart, factors[used++] = row[k];
    mix_arrays<T, kMostMixed>(used, arrays, factors, from ? from[o] : nullptr, out[o], n);
  }
}

}  // namespace
}  // namespace pcf::cpu

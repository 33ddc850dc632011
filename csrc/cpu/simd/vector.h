// Vectors as wide as the instruction set's registers.
#pragma once

#include "cpu/simd/element.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace pcf::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kMaxRows = 12;  // 32 registers: 24 sums
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kMaxRows = 6;  // 16 registers: 12 sums, 2 weights, 1 broadcast
#else
constexpr int kVectorBytes = 16, kMaxRows = 6;
#endif
constexpr int kVectors = 2;  // per block
constexpr int kIntoL2 = 2;   // what a prefetch is told, where more comes from L3 or memory than L1 holds

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);
template <class T>
constexpr int kBlock = kVectors * kLanes<T>;

template <class T>
inline Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
// As many as a vector of T has.
template <class T>
inline Vec<T> load_wide(const T* p) {
  return load(p);
}
template <class T>
inline Vec<T> load_wide(const Bfloat16* p) {
  typedef uint16_t Bits __attribute__((vector_size(kVectorBytes / 2)));
  Bits bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return (Vec<T>)(__builtin_convertvector(bits, Vec<uint32_t>) << 16);
}
template <class T>
inline void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}
#if defined(__AVX512BF16__)
// To nearest, ties to even, denormals to zero.
inline void store_rounded(Bfloat16* p, Vec<float> v) {
  const __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);
  __builtin_memcpy(p, &rounded, sizeof rounded);
}
#endif
template <class T>
inline Vec<T> broadcast(T x) {
  return x - Vec<T>{};  // x - 0 is x to the bit, so this is one broadcast; x + 0 is not, for x = -0
}

}  // namespace
}  // namespace pcf::cpu

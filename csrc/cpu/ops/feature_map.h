// Feature maps in PyTorch's memory: any strides, any of three element types. Rows are copied to and from buffers of the
// type that is computed in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/simd/element.h"

namespace pcf::cpu {

// Borrowed; strides count elements.
struct FeatureMap {
  void* data;
  Element element;
  int images, channels, height, width;
  int64_t stride_n, stride_c, stride_y, stride_x;

  template <class E>
  E* at(int n, int c, int y, int x) const {
    return static_cast<E*>(data) + n * stride_n + c * stride_c + y * stride_y + x * stride_x;
  }
};

#if defined(__x86_64__)
inline __m128 load_four(const float* from) { return _mm_loadu_ps(from); }
inline __m128 load_four(const Bfloat16* from) {
  return _mm_castsi128_ps(
      _mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}
inline void store_four(float* to, __m128 x) { _mm_storeu_ps(to, x); }
// As `convert` rounds.
inline void store_four(Bfloat16* to, __m128 x) {
  const __m128i bits = _mm_castps_si128(x), odd = _mm_and_si128(_mm_srli_epi32(bits, 16), _mm_set1_epi32(1));
  const __m128i rounded = _mm_add_epi32(_mm_add_epi32(bits, _mm_set1_epi32(0x7fff)), odd);
  const __m128i nan = _mm_castps_si128(_mm_cmpunord_ps(x, x));
  const __m128i wide = _mm_or_si128(_mm_andnot_si128(nan, rounded), _mm_and_si128(nan, _mm_set1_epi32(0x7fc00000)));
  const __m128i high = _mm_srai_epi32(wide, 16);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi32(high, high));
}

// A square block: line i of `to` gets element i of each line of `from`.
template <class From, class To>
inline void transpose(const From* from, int64_t from_line, To* to, int64_t to_line) {
  __m128 v0 = load_four(from), v1 = load_four(from + from_line), v2 = load_four(from + 2 * from_line),
         v3 = load_four(from + 3 * from_line);
  _MM_TRANSPOSE4_PS(v0, v1, v2, v3);
  store_four(to, v0), store_four(to + to_line, v1), store_four(to + 2 * to_line, v2), store_four(to + 3 * to_line, v3);
}
inline void transpose(const Bfloat16* from, int64_t from_line, Bfloat16* to, int64_t to_line) {
  __m128i v[8], pairs[8], fours[8];
  for (int i = 0; i < 8; i++) v[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * from_line));
  for (int i = 0; i < 8; i += 2) {  // pairs[i], pairs[i + 1]: elements 0...3 and 4...7 of two lines
    pairs[i] = _mm_unpacklo_epi16(v[i], v[i + 1]);
    pairs[i + 1] = _mm_unpackhi_epi16(v[i], v[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int k = 0; k < 2; k++) {  // fours[i + 2k...]: elements 4k, 4k + 1 and 4k + 2, 4k + 3 of four lines
      fours[i + 2 * k] = _mm_unpacklo_epi32(pairs[i + k], pairs[i + 2 + k]);
      fours[i + 2 * k + 1] = _mm_unpackhi_epi32(pairs[i + k], pairs[i + 2 + k]);
    }
  for (int i = 0; i < 4; i++) {
    auto* line = reinterpret_cast<__m128i*>(to + 2 * i * to_line);
    _mm_storeu_si128(line, _mm_unpacklo_epi64(fours[i], fours[4 + i]));
    line = reinterpret_cast<__m128i*>(to + (2 * i + 1) * to_line);
    _mm_storeu_si128(line, _mm_unpackhi_epi64(fours[i], fours[4 + i]));
  }
}
#endif

// to[c * to_c + x * to_x] = from[c * from_c + x * from_x] for c < channels, x < width.
template <class From, class To>
void copy_row(const From* from, int64_t from_c, int64_t from_x, To* to, int64_t to_c, int64_t to_x, int channels,
              int width) {
  const auto line = [](const From* from, To* to, int n) {
    if constexpr (std::is_same_v<From, To>)
      std::memcpy(to, from, n * sizeof(To));
    else
      for (int i = 0; i < n; i++) to[i] = convert<To>(from[i]);
  };
  if (from_c == 1 && to_c == 1) {
    if (from_x == channels && to_x == channels) return line(from, to, channels * width);
    for (int x = 0; x < width; x++) line(from + x * from_x, to + x * to_x, channels);
    return;
  }
  if (from_x == 1 && to_x == 1) {
    for (int c = 0; c < channels; c++) line(from + c * from_c, to + c * to_c, width);
    return;
  }
  const auto corner = [&](int c0, int c1, int x0, int x1) {
    for (int c = c0; c < c1; c++)
      for (int x = x0; x < x1; x++) to[c * to_c + x * to_x] = convert<To>(from[c * from_c + x * from_x]);
  };
#if defined(__x86_64__)
  if constexpr (sizeof(From) <= 4 && sizeof(To) <= 4) {
    // One side runs along x and the other along c, so square blocks are transposed in registers. A few channels are
    // done before the next: in maps stored channel by channel, lines of different channels often share few cache sets.
    constexpr int kSide = std::is_same_v<From, Bfloat16> && std::is_same_v<To, Bfloat16> ? 8 : 4;
    const bool along_x = from_x == 1 && to_c == 1;
    if (along_x || (from_c == 1 && to_x == 1)) {
      const int64_t from_line = along_x ? from_c : from_x, to_line = along_x ? to_x : to_c;
      const int c_end = channels / kSide * kSide, x_end = width / kSide * kSide;
      for (int c = 0; c < c_end; c += kSide)
        for (int x = 0; x < x_end; x += kSide)
          transpose(from + c * from_c + x * from_x, from_line, to + c * to_c + x * to_x, to_line);
      corner(c_end, channels, 0, width);
      corner(0, c_end, x_end, width);
      return;
    }
  }
#endif
  corner(0, channels, 0, width);
}

template <bool kWrites, class T>
inline void prefetch_line(const T* line, int n) {
  constexpr int kStep = 64 / sizeof(T);
  for (int i = 0; i < n + kStep - 1; i += kStep) __builtin_prefetch(line + i, kWrites);
}

// Calls f(part, y, c, n) for the pieces of rows first...last-1 of an image: `part` is where channels c...c+n-1 of row y
// begin in the map's memory. A map that is stored channel by channel is walked in that order: a few channels of all
// rows, then the next few, which are asked for before: there are too many lines at once for the processor to foresee.
template <bool kWrites, class F>
void each_part(const FeatureMap& map, int image, int first, int last, const F& f) {
  with_element(map.element, [&](auto element) {
    auto* begin = static_cast<decltype(element)*>(map.data) + image * map.stride_n;
    const int group = map.stride_c == 1 ? map.channels : 8;
    for (int c = 0; c < map.channels; c += group)
      for (int y = first; y < last; y++) {
        auto* part = begin + c * map.stride_c + y * map.stride_y;
        const int n = std::min(group, map.channels - c);
        if (map.stride_x == 1)
          for (int next = n; next < std::min(2 * n, map.channels - c); next++)
            prefetch_line<kWrites>(part + next * map.stride_c, map.width);
        f(part, y, c, n);
      }
  });
}

// Copies rows first...last-1 of an image into buffers, and back; row_at(y) is where channel 0 of row y begins.
template <class T, class RowAt>
void load_rows(const FeatureMap& map, int image, int first, int last, const RowAt& row_at, int64_t to_c, int64_t to_x) {
  each_part<false>(map, image, first, last, [&](const auto* part, int y, int c, int n) {
    copy_row(part, map.stride_c, map.stride_x, reinterpret_cast<T*>(row_at(y)) + c * to_c, to_c, to_x, n, map.width);
  });
}

template <class T, class RowAt>
void store_rows(const FeatureMap& map, int image, int first, int last, const RowAt& row_at, int64_t from_c,
                int64_t from_x) {
  each_part<true>(map, image, first, last, [&](auto* part, int y, int c, int n) {
    copy_row(reinterpret_cast<const T*>(row_at(y)) + c * from_c, from_c, from_x, part, map.stride_c, map.stride_x, n,
             map.width);
  });
}

}  // namespace pcf::cpu

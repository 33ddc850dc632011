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
};

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
  if constexpr (std::is_same_v<From, float> && std::is_same_v<To, float>) {
    // One side runs along x and the other along c, so blocks of 4 by 4 are transposed in registers. Four channels are
    // done before the next: in maps stored channel by channel, lines of different channels often share few cache sets.
    const bool along_x = from_x == 1 && to_c == 1;
    if (along_x || (from_c == 1 && to_x == 1)) {
      const int64_t from_line = along_x ? from_c : from_x, to_line = along_x ? to_x : to_c;
      for (int c = 0; c + 4 <= channels; c += 4)
        for (int x = 0; x + 4 <= width; x += 4) {
          const float* f = from + c * from_c + x * from_x;
          float* t = to + c * to_c + x * to_x;
          __m128 v0 = _mm_loadu_ps(f), v1 = _mm_loadu_ps(f + from_line), v2 = _mm_loadu_ps(f + 2 * from_line),
                 v3 = _mm_loadu_ps(f + 3 * from_line);
          _MM_TRANSPOSE4_PS(v0, v1, v2, v3);
          _mm_storeu_ps(t, v0), _mm_storeu_ps(t + to_line, v1), _mm_storeu_ps(t + 2 * to_line, v2),
              _mm_storeu_ps(t + 3 * to_line, v3);
        }
      const int c4 = channels / 4 * 4, x4 = width / 4 * 4;
      corner(c4, channels, 0, width);
      corner(0, c4, x4, width);
      return;
    }
  }
#endif
  corner(0, channels, 0, width);
}

// Calls f(part, y, c, n) for the pieces of rows first...last-1 of an image: `part` is where channels c...c+n-1 of row y
// begin in the map's memory. A map that is stored channel by channel is walked in that order: a few channels of all
// rows, then the next few.
template <class F>
void each_part(const FeatureMap& map, int image, int first, int last, const F& f) {
  with_element(map.element, [&](auto element) {
    auto* begin = static_cast<decltype(element)*>(map.data) + image * map.stride_n;
    const int group = map.stride_c == 1 ? map.channels : 4;
    for (int c = 0; c < map.channels; c += group)
      for (int y = first; y < last; y++)
        f(begin + c * map.stride_c + y * map.stride_y, y, c, std::min(group, map.channels - c));
  });
}

// Copies rows first...last-1 of an image into buffers, and back; row_at(y) is where channel 0 of row y begins.
template <class T, class RowAt>
void load_rows(const FeatureMap& map, int image, int first, int last, const RowAt& row_at, int64_t to_c, int64_t to_x) {
  each_part(map, image, first, last, [&](const auto* part, int y, int c, int n) {
    copy_row(part, map.stride_c, map.stride_x, static_cast<T*>(row_at(y)) + c * to_c, to_c, to_x, n, map.width);
  });
}

template <class T, class RowAt>
void store_rows(const FeatureMap& map, int image, int first, int last, const RowAt& row_at, int64_t from_c,
                int64_t from_x) {
  each_part(map, image, first, last, [&](auto* part, int y, int c, int n) {
    copy_row(static_cast<const T*>(row_at(y)) + c * from_c, from_c, from_x, part, map.stride_c, map.stride_x, n,
             map.width);
  });
}

}  // namespace pcf::cpu

// Walks over a feature map of 2C channels, without gaps, whose two halves belong together.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/threads/parallel.h"

namespace pcf::cpu {

// A line of memory has `length` values of either half: a pixel's, if channels are last, or a channel's. In a map of the
// C channels of one half, it is line `index`; in that of both, its values begin at `a` and at `b`.
struct HalvesLine {
  int64_t index, image, in_image, a, b, length;
};

// Calls f(line) for each line. channels: C.
template <class F>
void each_line_of_halves(int images, int channels, int64_t pixels, bool channels_last, int threads, const F& f) {
  constexpr int64_t kValuesOfATask = 1 << 14;
  const int64_t lines_of_image = channels_last ? pixels : channels, length = channels_last ? channels : pixels;
  const int64_t lines = images * lines_of_image, half = channels_last ? channels : channels * pixels;
  if (lines == 0 || length == 0) return;
  const int64_t lines_of_a_task = std::max<int64_t>(1, kValuesOfATask / length);
  parallel(threads, static_cast<int>((lines + lines_of_a_task - 1) / lines_of_a_task), [&](int, int task) {
    const int64_t first = task * lines_of_a_task;
    for (int64_t i = first; i < std::min(lines, first + lines_of_a_task); i++) {
      const int64_t image = i / lines_of_image, in_image = i % lines_of_image;
      const int64_t a = channels_last ? 2 * i * length : (2 * image * channels + in_image) * length;
      f(HalvesLine{i, image, in_image, a, a + half, length});
    }
  });
}

}  // namespace pcf::cpu

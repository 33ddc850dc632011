// The values of the image in a job, and the rows of it that need no drawing.
#pragma once

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "cpu/sampler/sampler.h"
#include "cpu/sampler/schedule.h"

namespace pcf::cpu {

// Where a job's values of the image lie, and which of them are known.
class ImageValues {
 public:
  ImageValues(const Program& program, const Job& job) : program_(program), job_(job) {}

  int draws() const { return program_.outputs.size(); }
  int distributions_per_draw() const { return program_.head.distributions / draws(); }
  int channels_per_distribution() const { return program_.image_channels / program_.head.distributions; }
  int64_t pixels() const { return int64_t{program_.height} * program_.width; }

  // The index of an element of an array [images, channels, H, W].
  int64_t element(int image, int channels, int channel, int y, int x) const {
    return ((int64_t{image} * channels + channel) * program_.height + y) * program_.width + x;
  }
  int64_t sub_pixel(int image, int channel, int y, int x) const {
    return element(image, program_.image_channels, channel, y, x);
  }

  bool known(int image, int distribution, int y, int x) const {
    if (!job_.known) return false;
    const int channels = channels_per_distribution();
    for (int c = distribution * channels; c < (distribution + 1) * channels; c++)
      if (!job_.known[sub_pixel(image, c, y, x)]) return false;
    return true;
  }

  // The rows from the first on that are known in all images, if nothing else is asked of them.
  int known_rows() const {
    if (!job_.known || job_.parameters) return 0;
    const auto is_known = [&](int y) {
      for (int m = 0; m < job_.images; m++)
        for (int d = 0; d < program_.head.distributions; d++)
          for (int x = 0; x < program_.width; x++)
            if (!known(m, d, y, x)) return false;
      return true;
    };
    int rows = 0;
    while (rows < program_.height && is_known(rows)) rows++;
    return rows;
  }

  // For each image, the first one that is alike in so many rows, and in its conditions.
  template <class T>
  std::vector<int> alike(int rows) const {
    std::vector<int> order(job_.images), first(job_.images);
    std::iota(order.begin(), order.end(), 0);
    const auto compared = [&](int a, int b) {
      int found = 0;
      const auto compare = [&](const void* array, int64_t apart, int64_t bytes) {
        const char* data = static_cast<const char*>(array);
        if (found == 0) found = std::memcmp(data + a * apart, data + b * apart, bytes);
      };
      const int64_t channel = pixels() * kValueBytes, known = int64_t{rows} * program_.width * kValueBytes;
      for (int c = 0; c < program_.image_channels; c++)
        compare(static_cast<const char*>(job_.values) + c * channel, program_.image_channels * channel, known);
      for (size_t k = 0; k < job_.conditions.size(); k++) {
        const int64_t bytes = image_stride(program_, program_.conditions[k]) * static_cast<int64_t>(sizeof(T));
        compare(job_.conditions[k], bytes, bytes);
      }
      return found;
    };
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return compared(a, b) < 0; });
    for (int k = 0; k < job_.images; k++)
      first[order[k]] = k > 0 && compared(order[k - 1], order[k]) == 0 ? first[order[k - 1]] : order[k];
    return first;
  }

  // Whether a draw has nothing to do at a span of one column.
  bool all_known(const Span& span, int draw) const {
    if (!job_.known) return false;
    const int count = distributions_per_draw();
    for (int i = 0; i < span.count(); i++)
      for (int q = 0; q < job_.images * count; q++)
        if (!known(q / count, draw * count + q % count, span.row(i), span.column(i))) return false;
    return true;
  }

 private:
  const Program& program_;
  const Job& job_;
};

}  // namespace pcf::cpu

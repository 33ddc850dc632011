// Where a job's values of the image lie, and which of them are known.
#pragma once

#include "cpu/sampler/schedule.h"

namespace pcf::cpu {

class ImageValues {
 public:
  ImageValues(const Program& program, const Job& job) : program_(program), job_(job) {}

  int draws() const { return program_.outputs.size(); }
  int distributions_per_draw() const { return program_.head.distributions / draws(); }
  int channels_per_distribution() const { return program_.image_channels / program_.head.distributions; }

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

// The walk over an image that both compiled samplers follow: several rows are in flight, each `lag` columns behind the
// row above. In column step t, pixel (y, t - lag * y) of every row y is drawn, if it lies in the grid, and a value
// whose lead is l is computed l columns further right. What the rows above contribute may be computed for a chunk of
// column steps at once, which the rows below then wait for.
#pragma once

#include <algorithm>

#include "program.h"

namespace pcf {

struct Wavefront {
  int width, height, lag;

  // As close behind each other as the program allows, unless fewer rows than that are wanted.
  static Wavefront closest(const Program& p, int chunk, int most_rows) {
    return {p.width, p.height, std::max(p.lag + chunk - 1, (p.width + most_rows - 1) / most_rows)};
  }
  // If a row is worked on for so many column steps more than it has columns.
  int rows_in_flight(int longer) const { return std::min((width + longer + lag - 1) / lag, height); }
  // From the image's first draw to its last.
  int steps() const { return width + lag * (height - 1); }
};

}  // namespace pcf

// In which order a batch's pixels are worked on, and by which threads.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/sampler/grids.h"
#include "cpu/sampler/machine.h"
#include "program.h"
#include "wavefront.h"

namespace pcf::cpu {

// Rows are walked as wavefront.h says. Before every `chunk` column steps, the sums over row runs are computed for the
// pixels of these steps.
//
// A matrix product needs ten rows to be fast, and some tens where weights come slowly, since each serves as many pixels
// when it comes. So several rows are sampled at once, as close behind each other as the model's receptive field allows.
// A longer chunk makes the products of row runs larger, but rows start that much later. Where many images are enough
// for that, one row at a time takes less memory; a chunk is then the whole row.
//
// Threads that share an instruction's channels wait for each other at every layer. Fewer have to wait if they form two
// teams: while one works on the pixels of a chunk, the other computes the sums over row runs for the next chunk.
// Rows then start one more chunk later. Groups of threads that have images of their own do not wait for each other.
struct Schedule {
  int groups = 1, threads = 1;  // groups of `threads` threads; each takes the next images
  int images = 0;               // of a group; the last may have fewer
  int lag = 0, chunk = 0;
  int rows_in_flight = 1;
  int lead = 0;                     // of the value computed furthest ahead; 0 where a row is one chunk
  int pixel_threads = 0;            // of the pixel team, if a group has two teams; 0: one team does all
  std::vector<bool> by_pixel_team;  // by instruction: whether this team makes its sums over row runs, for balance
  std::vector<int> fewer_at;        // column steps at which a group goes on with fewer threads in any case: for tests
  double cost = 0;                  // estimated seconds

  bool is_wave() const { return rows_in_flight > 1; }
  // More pixels in flight take more memory, so a little time that they save is not worth it.
  double handicap() const { return is_wave() ? 1.03 + 2e-4 * images * rows_in_flight : 1; }
  bool two_teams() const { return pixel_threads > 0; }
  int steps(const Program& program) const { return Wavefront{program.width, program.height, lag}.steps(); }
  // The column step to begin with, for the pixels of a row and those after it.
  int first_step(int row = 0) const { return floor_div(row * lag, chunk) * chunk - (lead + chunk - 1) / chunk * chunk; }
  // Buffers for sums over row runs: one team reads those of a chunk while the other writes those of the next.
  int partials() const { return two_teams() ? 2 : 1; }
};

// What one thread does at one pixel, and how many barriers it waits at; on average, as not all is done at each.
struct Work {
  double products = 0, elements = 0;  // multiply-adds of float32; the cost of steps, in the same
  double bytes = 0;                   // of weights
  double reads = 0;                   // elements of float32 that the group's threads have written
  double values = 0;                  // bytes that are kept
  double attended = 0;                // bytes of keys and values that are gone through
  double calls = 0, barriers = 0;

  void add(const Work& other, double times) {
    products += times * other.products, elements += times * other.elements, bytes += times * other.bytes;
    reads += times * other.reads, values += times * other.values, attended += times * other.attended,
        calls += times * other.calls, barriers += times * other.barriers;
  }
  void operator+=(const Work& other) { add(other, 1); }
  void operator-=(const Work& other) { add(other, -1); }
};

struct ProgramWork {
  Work row_phase, pixels;          // without the sums over row runs that wait for their pixel
  std::vector<Work> partial_sums;  // those sums, by instruction
  double cached = 0;               // bytes of keys and values of an image
  int longest_lead = 0;
  int columns_together = 1;      // rows are summed so many columns at a time
  bool attends_in_rows = false;  // in the row phase: keys are read in whole blocks, which a pixel team would write into
  int most_threads = 1;          // more would own no channels
};

// The schedules for `images` images on at most `threads` threads, of which at most `in_group` form a group, the
// cheapest first. All give the same bits.
std::vector<Schedule> possible_schedules(const Program& program, const ProgramWork& work, const Machine& machine,
                                         int images, int threads, int in_group);

// Pixels that are worked on together, in every image: `columns` columns of some rows y, from t - lag * y on, as far as
// they lie in the image, from a row on, and on a lattice.
class Span {
 public:
  Span(const Program& program, int lag, int t, int columns, const Lattice& on = {}, int first_row = 0)
      : t_(t), lag_(lag), columns_(columns), width_(program.width), on_(on),
        first_(std::max(first_row, floor_div(t - program.width, lag) + 1)),
        last_(std::min(program.height - 1, floor_div(t + columns - 1, lag))) {
    if (columns == 1 && on == Lattice{})
      count_ = std::max(last_ - first_ + 1, 0);
    else
      each_row([&](int, int begin, int end) { count_ += begin < end ? divided_up(end - begin, on.every_x) : 0; });
  }

  bool is(int t, int columns, const Lattice& on) const { return t == t_ && columns == columns_ && on == on_; }
  int count() const { return count_; }
  int step() const { return on_.every_x; }

  // f(y, begin, end) for each row's columns begin, begin + step() ... below end.
  template <class F>
  void each_row(const F& f) const {
    for (int y = first_; y <= last_; y++)
      if (on_.has_row(y)) f(y, on_.first_column(std::max(0, start(y))), std::min(width_, start(y) + columns_));
  }

  // False if all that its pixels find dx away lies left of the image.
  bool meets(int dx) const { return std::min(width_, start(first_) + columns_) + dx > 0; }
  // Of how many of its pixels, the first ones, what they find dy away lies above the image.
  int above(int dy) const {
    int found = 0;
    if (first_ + dy < 0)
      each_row([&](int y, int begin, int end) {
        if (y + dy < 0 && begin < end) found += divided_up(end - begin, on_.every_x);
      });
    return found;
  }

  int start(int y) const { return t_ - lag_ * y; }
  // The row and column of the i-th pixel, if the span has one column, and is on all pixels.
  int row(int i) const { return first_ + i; }
  int column(int i) const { return start(row(i)); }

 private:
  int t_, lag_, columns_, width_;
  Lattice on_;
  int first_, last_, count_ = 0;
};

}  // namespace pcf::cpu

// The CPU runtime of phased causal programs.
#pragma once

#include <functional>
#include <memory>
#include <stdexcept>

#include "cpu/sampler/schedule.h"
#include "program.h"

namespace pcf::cpu {

// A logit of this sub-pixel is NaN or infinite.
struct NonFiniteLogits : std::runtime_error {
  NonFiniteLogits(int image, int channel, int row, int column)
      : std::runtime_error("the logits are not finite"), image(image), channel(channel), row(row), column(column) {}
  int image, channel, row, column;
};

class Sampler {
 public:
  virtual ~Sampler() = default;

  // The ways to sample `images` images on at most `threads` threads, the cheapest first; on the machine given, or here.
  virtual std::vector<Schedule> schedules(int images, int threads, const Machine* machine = nullptr) const = 0;
  Schedule schedule(int images, int threads) const { return schedules(images, threads).front(); }

  // Fills job.values, row by row. on_row(y) runs on the calling thread before row y of the first group's images; if it
  // throws, the run stops and passes the exception on. schedule: for job.images. A group whose threads wait for each
  // other far longer than they work goes on with fewer. -> how many threads the smallest group ends with
  virtual int run(const Job& job, const Schedule& schedule, const std::function<void(int)>& on_row) const = 0;

  // The same on at most `threads` threads, by the schedule that is the fastest as far as it knows. For three seconds
  // after a run has left threads behind, groups have no more threads than it ended with.
  virtual int run(const Job& job, int threads, const std::function<void(int)>& on_row) const = 0;

  // How many of so many images are best drawn together: all, unless the keys and values of fewer are nearer.
  virtual int together(int images, int threads) const = 0;

  // What the next run takes.
  virtual Schedule chosen(int images, int threads) const = 0;
  // Tries schedules for so many images, so that the first runs need not.
  virtual void tune(int images, int threads) const = 0;

  virtual int64_t workspace_bytes(const Schedule& schedule) const = 0;
};

// float64: compute in float64, not float32. isa: a name from available_isas(). Throws std::invalid_argument for bf16
// weights with float64.
std::unique_ptr<Sampler> make_sampler(const Program&, bool float64, WeightFormat, const char* isa);

}  // namespace pcf::cpu

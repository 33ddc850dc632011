// How a run ends early: what the groups of a run share.
#pragma once

#include <atomic>
#include <exception>
#include <mutex>
#include <optional>
#include <tuple>

#include "cpu/sampler/sampler.h"

namespace pcf::cpu {

class Ending {
 public:
  // The caller's exception: all groups stop at their next row.
  void stop(std::exception_ptr error) {
    error_ = error;
    stopped_.store(true, std::memory_order_release);
  }
  bool stopped() const { return stopped_.load(std::memory_order_acquire); }

  // Keeps the first one in the order of drawing, whichever thread reports first. The other groups go on, since one of
  // theirs may be the first.
  void report(const NonFiniteLogits& found, int draw) {
    const std::lock_guard lock(mutex_);
    const Order order(found.row, found.column, draw, found.image, found.channel);
    if (!non_finite_ || order < order_) non_finite_.emplace(found), order_ = order;
  }

  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
    if (non_finite_) throw *non_finite_;
  }

 private:
  using Order = std::tuple<int, int, int, int, int>;

  std::atomic<bool> stopped_{false};
  std::exception_ptr error_;
  std::mutex mutex_;
  std::optional<NonFiniteLogits> non_finite_;
  Order order_;  // its place in the order of drawing
};

}  // namespace pcf::cpu

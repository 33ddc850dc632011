// What a sampler remembers of busy cores.
#pragma once

#include <atomic>
#include <chrono>
#include <limits>

namespace pcf::cpu {

// With how many threads a group did not wait too long, where other processes keep the cores busy. That holds for
// three seconds, so that not every run of many has to find it out, and so that all threads are tried again soon.
class Crowding {
  using Clock = std::chrono::steady_clock;

 public:
  static constexpr int kNoLimit = std::numeric_limits<int>::max();

  void found(int threads) {
    threads_.store(threads, std::memory_order_relaxed);
    until_.store((Clock::now() + std::chrono::seconds(3)).time_since_epoch().count(), std::memory_order_relaxed);
  }
  int most_in_group() const {
    const bool holds = Clock::now().time_since_epoch().count() < until_.load(std::memory_order_relaxed);
    return holds ? threads_.load(std::memory_order_relaxed) : kNoLimit;
  }

 private:
  std::atomic<int> threads_{kNoLimit};
  std::atomic<Clock::rep> until_{std::numeric_limits<Clock::rep>::min()};
};

}  // namespace pcf::cpu

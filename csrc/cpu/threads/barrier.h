// How the threads of a team wait for each other.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pcf::cpu {

// How far each member of a team has come. Each announces it on a cache line of its own, for whoever waits for it.
// Waiting spins, since a layer's work takes about a microsecond, and yields after some 50 microseconds, so that a team
// on a busy machine does not use up the time that its missing member needs.
class Progress {
 public:
  explicit Progress(int members) : counters_(members) {}

  void announce(int member, int64_t done) { counters_[member].done.store(done, std::memory_order_release); }
  int64_t of(int member) const { return counters_[member].done.load(std::memory_order_relaxed); }

  // Waits until all members have announced `done` or more.
  void await(int64_t done) const {
    for (const auto& counter : counters_)
      for (int spins = 0; counter.done.load(std::memory_order_acquire) < done; spins++) {
        if (spins < kSpins)
          pause();
        else
          std::this_thread::yield();
      }
  }

 private:
  struct alignas(128) Counter {  // 128: processors prefetch lines in pairs
    std::atomic<int64_t> done{0};
  };
  static constexpr int kSpins = 1000;

  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  std::vector<Counter> counters_;
};

// All members of a team wait here for each other. With two members that costs one transfer between cores.
class SpinBarrier {
 public:
  explicit SpinBarrier(int members) : rounds_(members) {}

  void wait(int member) {
    const int64_t round = rounds_.of(member) + 1;
    rounds_.announce(member, round);
    rounds_.await(round);
  }

 private:
  Progress rounds_;
};

}  // namespace pcf::cpu

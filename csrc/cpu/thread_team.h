// A team of threads for one run: nothing is left spinning, or alive, when it ends.
#pragma once

#include <atomic>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pcf {

// All threads of a team meet here. Spins, since a layer's work is about a microsecond; yields after a while, so
// that a team on a busy machine does not burn the time its missing member needs.
class SpinBarrier {
 public:
  explicit SpinBarrier(int members) : members_(members) {}

  void wait() {
    const int generation = generation_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == members_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      generation_.store(generation + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; generation_.load(std::memory_order_acquire) == generation; spins++) {
      if (spins < kSpins)
        pause();
      else
        std::this_thread::yield();
    }
  }

 private:
  static constexpr int kSpins = 4000;

  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  const int members_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> generation_{0};
};

// Runs work(member) on `members` threads, the caller among them, and returns when all have. work must not throw.
template <class Work>
void run_team(int members, const Work& work) {
  std::vector<std::thread> others;
  for (int t = 1; t < members; t++) others.emplace_back(work, t);
  work(0);
  for (auto& thread : others) thread.join();
}

}  // namespace pcf

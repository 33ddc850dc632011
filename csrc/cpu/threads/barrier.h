// How the threads of a team wait for each other.
#pragma once

#include <time.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pcf::cpu {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// How long the calling thread has been running. Reading it takes a call of the system.
inline Clock::duration time_run() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec);
}

// Time spent on waiting, and how much of it the thread was running, only to look whether the wait is over.
struct Waited {
  Clock::duration time{}, running{};

  void operator+=(const Waited& more) { time += more.time, running += more.running; }
};

// How far each member of a team has come. Each announces it on a cache line of its own, for whoever waits for it.
// Waiting spins, since a layer's work takes about a microsecond, and yields after some 50 microseconds, so that a team
// on a busy machine does not use up the time that its missing member needs. Such a long wait is timed.
class Progress {
 public:
  explicit Progress(int members) : counters_(members) {}

  void announce(int member, int64_t done) { counters_[member].done.store(done, std::memory_order_release); }
  int64_t of(int member) const { return counters_[member].done.load(std::memory_order_relaxed); }

  // Waits until the first `members` members have announced `done` or more. -> how long that took after spinning, which
  // is nothing as a rule
  Waited await(int64_t done, int members) const {
    Waited yielded;
    for (int member = 0; member < members; member++)
      for (int spins = 0; !counters_[member].reached(done); spins++) {
        if (spins < kSpins)
          pause();
        else
          yielded += yield_until(counters_[member], done);
      }
    return yielded;
  }

 private:
  struct alignas(128) Counter {  // 128: processors prefetch lines in pairs
    std::atomic<int64_t> done{0};

    bool reached(int64_t wanted) const { return done.load(std::memory_order_acquire) >= wanted; }
  };
  static constexpr int kSpins = 1000;

  static Waited yield_until(const Counter& counter, int64_t done) {
    const auto start = Clock::now();
    const auto running = time_run();
    while (!counter.reached(done)) std::this_thread::yield();
    return {Clock::now() - start, time_run() - running};
  }

  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  std::vector<Counter> counters_;
};

// The members of a team wait here for each other. With two members that costs one transfer between cores.
class SpinBarrier {
 public:
  explicit SpinBarrier(int members) : rounds_(members) {}

  // Waits for the first `members` members, of which this is one; the others have left. -> as Progress::await
  Waited wait(int member, int members) {
    const int64_t round = rounds_.of(member) + 1;
    rounds_.announce(member, round);
    return rounds_.await(round, members);
  }

 private:
  Progress rounds_;
};

}  // namespace pcf::cpu

// A team of threads, and where its members meet.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pcf::cpu {

// How far each member of a team has come: each announces it on a cache line of its own, for whoever waits for it. Waiting
// spins, since a layer's work is about a microsecond; and yields after some 50 microseconds, so that a team on a busy
// machine does not burn the time its missing member needs.
class Progress {
 public:
  explicit Progress(int members) : seats_(members) {}

  void announce(int member, int64_t done) { seats_[member].done.store(done, std::memory_order_release); }
  int64_t of(int member) const { return seats_[member].done.load(std::memory_order_relaxed); }

  // Until all members have announced `done` or more.
  void await(int64_t done) const {
    for (const auto& seat : seats_)
      for (int spins = 0; seat.done.load(std::memory_order_acquire) < done; spins++) {
        if (spins < kSpins)
          pause();
        else
          std::this_thread::yield();
      }
  }

 private:
  struct alignas(128) Seat {  // 128: processors prefetch lines in pairs
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

  std::vector<Seat> seats_;
};

// All members of a team meet here. A meeting of two costs one transfer between cores.
class SpinBarrier {
 public:
  explicit SpinBarrier(int members) : meetings_(members) {}

  void wait(int member) {
    const int64_t meeting = meetings_.of(member) + 1;
    meetings_.announce(member, meeting);
    meetings_.await(meeting);
  }

 private:
  Progress meetings_;
};

// Calls work(member) for each of `members` threads, all at once, the caller being member 0; returns when all have.
// They are threads of the OpenMP that torch has loaded, where there is one. work must not throw.
void run_team(int members, const std::function<void(int member)>& work);

}  // namespace pcf::cpu

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

namespace pcf {

// All members of a team meet here. Each announces itself on a cache line of its own and watches the others', so that
// a meeting of two costs one transfer between cores. Spins, since a layer's work is about a microsecond; yields after
// some 50 microseconds, so that a team on a busy machine does not burn the time its missing member needs.
class SpinBarrier {
 public:
  explicit SpinBarrier(int members) : seats_(members) {}

  void wait(int member) {
    const uint32_t meeting = seats_[member].meetings.load(std::memory_order_relaxed) + 1;
    seats_[member].meetings.store(meeting, std::memory_order_release);
    for (auto& seat : seats_)
      for (int spins = 0; behind(seat.meetings.load(std::memory_order_acquire), meeting); spins++) {
        if (spins < kSpins)
          pause();
        else
          std::this_thread::yield();
      }
  }

 private:
  struct alignas(128) Seat {  // 128: processors prefetch lines in pairs
    std::atomic<uint32_t> meetings{0};
  };
  static constexpr int kSpins = 1000;

  static bool behind(uint32_t other, uint32_t meeting) { return static_cast<int32_t>(other - meeting) < 0; }

  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  std::vector<Seat> seats_;
};

// Calls work(member) for each of `members` threads, all at once, the caller being member 0; returns when all have.
// They are threads of the OpenMP that torch has loaded, where there is one. work must not throw.
void run_team(int members, const std::function<void(int member)>& work);

}  // namespace pcf

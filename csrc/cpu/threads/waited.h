// How long a thread has waited.
#pragma once

#include <time.h>

#include <chrono>

namespace pcf::cpu {

using Clock = std::chrono::steady_clock;

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

}  // namespace pcf::cpu

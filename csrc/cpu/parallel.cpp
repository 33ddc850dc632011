#include "parallel.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>

#include "thread_team.h"

namespace pcf {
namespace {

using OpenMp = void (*)(void (*work)(void*), void* argument, unsigned threads, unsigned flags);

// The OpenMP that torch has loaded, if any. Its threads spin for milliseconds after each of torch's operators; threads
// of our own would share the processors with them.
OpenMp torch_openmp() {
  static const auto found = reinterpret_cast<OpenMp>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
}

}  // namespace

void parallel(int threads, int tasks, const std::function<void(int, int)>& task) {
  std::atomic<int> next_task{0}, next_member{0};
  const auto work = [&] {
    const int member = next_member++;
    for (int i; (i = next_task++) < tasks;) task(member, i);
  };
  threads = std::min(threads, tasks);
  if (threads <= 1) return work();
  if (const OpenMp openmp = torch_openmp())
    openmp([](void* w) { (*static_cast<decltype(work)*>(w))(); }, const_cast<void*>(static_cast<const void*>(&work)), threads, 0);
  else
    run_team(threads, [&](int) { work(); });
}

}  // namespace pcf

#include "cpu/threads/parallel.h"

#include <algorithm>
#include <atomic>

#include "cpu/threads/thread_team.h"

namespace pcf::cpu {

void parallel(int threads, int tasks, const std::function<void(int, int)>& task) {
  if (tasks == 0) return;
  std::atomic<int> next{0};
  run_team(std::clamp(threads, 1, tasks), [&](int member) {
    for (int i; (i = next++) < tasks;) task(member, i);
  });
}

}  // namespace pcf::cpu

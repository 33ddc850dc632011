#include "cpu/threads/parallel.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace pcf::cpu {
namespace {

const pid_t process = getpid();  // the one that loaded this library

// The OpenMP that torch has loaded, if any. Its threads spin for milliseconds after each of torch's operators, so
// threads of our own would compete with them. A child after fork() has none of them, and must not ask for any.
struct OpenMp {
  using Parallel = void (*)(void (*work)(void*), void* argument, unsigned threads, unsigned flags);
  const Parallel parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  int (*const team_size)() = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"));
  bool usable() const { return parallel && team_size && process == getpid(); }
};
const OpenMp& torch_openmp() {
  static const OpenMp found;
  return found;
}

// Does nothing and returns false if OpenMP gives fewer threads: a limit was set, or the caller is in a team already.
bool run_openmp_team(const OpenMp& openmp, int members, const std::function<void(int)>& work) {
  struct Team {
    const OpenMp& openmp;
    const int members;
    const std::function<void(int)>& work;
    const std::thread::id caller = std::this_thread::get_id();
    std::atomic<int> others{0};
    std::atomic<bool> complete{true};
  } team{openmp, members, work};
  openmp.parallel(
      [](void* argument) {
        Team& team = *static_cast<Team*>(argument);
        if (team.openmp.team_size() == team.members)
          team.work(std::this_thread::get_id() == team.caller ? 0 : ++team.others);
        else
          team.complete = false;
      },
      &team, members, 0);
  return team.complete;
}

}  // namespace

void run_team(int members, const std::function<void(int)>& work) {
  if (members == 1) return work(0);
  if (torch_openmp().usable() && run_openmp_team(torch_openmp(), members, work)) return;
  std::vector<std::thread> others;
  for (int member = 1; member < members; member++) others.emplace_back(work, member);
  work(0);
  for (auto& thread : others) thread.join();
}

void parallel(int threads, int tasks, const std::function<void(int, int)>& task) {
  if (tasks == 0) return;
  std::atomic<int> next{0};
  run_team(std::clamp(threads, 1, tasks), [&](int member) {
    for (int i; (i = next++) < tasks;) task(member, i);
  });
}

}  // namespace pcf::cpu

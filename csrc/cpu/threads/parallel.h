// Work on several threads.
#pragma once

#include <functional>

namespace pcf::cpu {

// Calls work(member) on each of `members` threads at the same time, and returns when all calls have. Member 0 is the
// caller; the others are threads of the OpenMP that torch has loaded, if there is one. work must not throw.
void run_team(int members, const std::function<void(int member)>& work);

// Calls task(member, i) once for every i < tasks, on up to `threads` threads, and returns when all are done. Calls with
// the same member, which is less than `threads`, never overlap, so each member can have scratch memory of its own. task
// must not throw.
void parallel(int threads, int tasks, const std::function<void(int member, int i)>& task);

}  // namespace pcf::cpu

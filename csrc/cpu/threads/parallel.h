// Work split into tasks, for a stateless op.
#pragma once

#include <functional>

namespace pcf::cpu {

// Calls task(member, i) once for every i < tasks, on up to `threads` threads, and returns when all are done. Calls with
// the same member, which is less than `threads`, never overlap, so each member can have scratch memory of its own. task
// must not throw.
void parallel(int threads, int tasks, const std::function<void(int member, int i)>& task);

}  // namespace pcf::cpu

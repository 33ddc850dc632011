// A team of threads.
#pragma once

#include <functional>

namespace pcf::cpu {

// Calls work(member) on each of `members` threads at the same time, and returns when all calls have. Member 0 is the
// caller; the others are threads of the OpenMP that torch has loaded, if there is one. work must not throw.
void run_team(int members, const std::function<void(int member)>& work);

}  // namespace pcf::cpu

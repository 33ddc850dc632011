// A team of threads.
#pragma once

#include <functional>

namespace pcf::cpu {

// Calls work(member) for each of `members` threads, all at once, the caller being member 0; returns when all have.
// They are threads of the OpenMP that torch has loaded, where there is one. work must not throw.
void run_team(int members, const std::function<void(int member)>& work);

}  // namespace pcf::cpu

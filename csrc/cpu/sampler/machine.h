// What this machine takes for what a sampler does, measured in a few milliseconds.
#pragma once

#include <cstdint>
#include <vector>

namespace pcf::cpu {

// Of one thread, while the others do the same.
struct Machine {
  double multiply_add = 0;  // seconds, by weights that are in L1
  double barrier = 0;       // seconds for each other thread that is waited for
  double element = 4e-10;   // seconds to read an element that another core has written; one thread can't tell
  double l2 = 1 << 20;      // bytes
  // Bytes of weights a second, by how many bytes a thread goes through again and again: 2^kLeast, twice as many, ...
  std::vector<double> bandwidths;

  static constexpr int kLeast = 18, kMost = 26;

  // The bandwidth where it goes through so many bytes.
  double bandwidth(double bytes) const;
};

// This machine, for as many threads, if it has so many cores. The process keeps what it has measured; for more bytes of
// weights than before, it adds larger sizes. Threads read those of `weights` then, whatever they hold.
Machine machine(int threads, const void* weights, int64_t bytes);

}  // namespace pcf::cpu

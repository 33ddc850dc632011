// What this machine takes for what a sampler does, measured in a few milliseconds.
#pragma once

#include <cstdint>
#include <vector>

namespace pcf::cpu {

// Times in seconds, of one thread, while the others do the same.
struct Machine {
  double multiply_add = 0;  // by weights that are in L1
  double barrier = 0;       // for each other thread that is waited for
  double l2 = 1 << 20;      // bytes
  double element = 0;       // to read an element that another core has written
  // Bytes of weights a second, by how many bytes a thread goes through again and again: 2^kLeast, twice as many, ...
  std::vector<double> bandwidths;

  static constexpr int kLeast = 18, kMost = 26;

  // The bandwidth where it goes through so many bytes.
  double bandwidth(double bytes) const;
};

// This machine, for as many threads. What is kept in the process is measured again only for more bytes than before; all
// threads read those of `weights` then, whatever they hold.
Machine machine(int threads, const void* weights, int64_t bytes);

}  // namespace pcf::cpu

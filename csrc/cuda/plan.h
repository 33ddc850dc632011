// A plan: a program's layout, and what the device is given with it. Python compiles and launches the kernel.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/layout.h"
#include "program.h"

namespace pcf::cuda {

// What a column step of a sweep takes of a block; of the one that reads the most weights.
struct SweepFacts {
  int records;
  int64_t weight_bytes, value_bytes;  // read, and copied
};

struct Plan {
  Layout layout;
  std::vector<char> constants;  // goes to the device once
  int shared_bytes = 0;
  int64_t weight_bytes = 0;  // of all of them, in all blocks of a cluster
  std::vector<SweepFacts> sweeps;

  int blocks(int images) const { return (images + layout.images - 1) / layout.images * layout.cluster; }
  int64_t workspace_bytes(int images) const { return blocks(images) * layout.workspace_bytes; }
};

// For clusters of so many blocks (1, 2, 4 or 8) that have so many images, where a block can have so many bytes of
// shared memory. Throws std::invalid_argument, saying why, where the program does not fit.
Plan make_plan(const Program&, Math, int images, int cluster, int shared_bytes);

}  // namespace pcf::cuda

// Where values, sums and logits lie in memory: in a block's shared memory, and in a tile's workspace.
#pragma once

#include <vector>

#include "cuda/stages.h"

namespace pcf::cuda {

struct MemoryPlan {
  std::vector<std::vector<ValuePlan>> values;  // per stage, by value
  std::vector<StagePlan> stages;               // how their shared memory is used
};

// Writes where each instruction's sums and logits lie into `steps`, and the resulting sizes into `plan`.
// Throws std::invalid_argument, saying why, where shared memory is too small.
MemoryPlan plan_memory(ColumnSteps& steps, const std::vector<Range>& stages, const Limits& limits, Plan& plan);

}  // namespace pcf::cuda

// The plan's constants: weights in the order in which the kernels read them, then the tables of everything planned.
#pragma once

#include <vector>

#include "cuda/memory_plan.h"

namespace pcf::cuda {

// Completes the plans in `steps` and `memory`, and writes them into `plan`, with the facts about weights.
// Throws std::invalid_argument where the weights are too large.
void write_constants(ColumnSteps& steps, const std::vector<Range>& stages, MemoryPlan& memory, Plan& plan);

}  // namespace pcf::cuda

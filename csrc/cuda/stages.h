// The split of a pipeline's layers over blocks, by what each needs of shared memory.
#pragma once

#include <set>
#include <vector>

#include "cuda/column_steps.h"

namespace pcf::cuda {

struct Range {
  int first, last;  // instructions first ... last - 1
};

// As few stages as shared memory allows, a layer that exceeds it being a stage of its own; then the split that keeps
// the largest share of weights small. Throws std::invalid_argument, saying why, where there is none.
std::vector<Range> split_into_stages(const ColumnSteps&, const Limits&);

// Values made before instruction `at` and read in the same column step from there on.
std::set<int> crossing(const ColumnSteps&, int at);

int bytes_of(const ColumnSteps&, const std::set<int>& values);

// As many of each warp's last fragments of weights as fit `room` bytes: the late ones, which nobody should wait for.
int resident_fragments(const ColumnSteps&, Range, int room);

}  // namespace pcf::cuda

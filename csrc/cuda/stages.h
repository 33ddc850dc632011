// Splits a pipeline's layers over blocks, by the shared memory that each needs.
#pragma once

#include <set>
#include <vector>

#include "cuda/column_steps.h"

namespace pcf::cuda {

struct Range {
  int first, last;  // instructions first ... last - 1
};

// Makes as few stages as shared memory allows; a layer that exceeds it is a stage of its own. Of such splits, it takes
// the one whose largest share of weights is smallest. Throws std::invalid_argument, saying why, if there is none.
std::vector<Range> split_into_stages(const ColumnSteps&, const Limits&);

// Values made before instruction `at` and read in the same column step from there on.
std::set<int> crossing(const ColumnSteps&, int at);

int bytes_of(const ColumnSteps&, const std::set<int>& values);

// How many of each warp's last fragments of weights fit into `room` bytes. They are the late ones, which must not make
// anything wait.
int resident_fragments(const ColumnSteps&, Range, int room);

}  // namespace pcf::cuda

// The plan's constants: weights in the order in which the kernels read them, then the tables of everything planned.
#pragma once

#include <vector>

#include "cuda/places.h"

namespace pcf::cuda {

// Completes the plans in `jobs` and `places`, and writes them into `plan` with what its facts say of weights.
// Throws std::invalid_argument where the weights are too large.
void write_constants(Jobs& jobs, const std::vector<Range>& stages, Places& places, Plan& plan);

}  // namespace pcf::cuda

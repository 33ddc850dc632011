// elu(x) and elu(-x), as the two halves of a feature map's channels: one pass over memory forward, one backward.
#pragma once

#include "cpu/ops/feature_map.h"

namespace pcf::cpu {

// x [N, C, H, W], without gaps, its channels last or not -> out [N, 2C, H, W], likewise.
void concat_elu(const FeatureMap& x, bool channels_last, void* out, int threads);

// grad_x [N, C, H, W] from the result y [N, 2C, H, W] and its gradient, laid out alike.
void concat_elu_gradient(const FeatureMap& y, bool channels_last, const void* grad, void* grad_x, int threads);

}  // namespace pcf::cpu

// tanh(a) * logistic(b), or a * logistic(b), of the two halves of a feature map's channels: one pass over memory
// forward, one backward.
#pragma once

#include "cpu/ops/feature_map.h"

namespace pcf::cpu {

// x [N, 2C, H, W], without gaps, its channels last or not; out and gradients likewise. linear: without tanh. A
// condition is [N, 2C], or laid out like x if each pixel has one of its own; null for none.
void gated_activation(const FeatureMap& x, bool channels_last, bool linear, bool condition_per_pixel,
                      const void* condition, void* out, int threads);

// The gradient of x + condition. grad_x must not overlap grad.
void gated_activation_gradient(const FeatureMap& x, bool channels_last, bool linear, bool condition_per_pixel,
                               const void* condition, const void* grad, void* grad_x, int threads);

}  // namespace pcf::cpu

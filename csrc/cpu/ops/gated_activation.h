// tanh(a) * logistic(b) of the two halves of a feature map's channels: one pass over memory forward, one backward.
#pragma once

#include "cpu/simd/element.h"

namespace pcf::cpu {

// x is [N, 2C, pixels], or [N, pixels, 2C] if channels come last; out and gradients likewise. A condition is [N, 2C],
// or like x if each pixel has one of its own; null for none. All are dense.
struct GateLayout {
  int64_t images, channels, pixels;  // channels: C
  bool channels_last, condition_per_pixel;
};

void gated_activation(Element, const GateLayout&, const void* x, const void* condition, void* out, int threads);

// The gradient of x + condition. grad_x must not overlap grad.
void gated_activation_gradient(Element, const GateLayout&, const void* x, const void* condition, const void* grad,
                               void* grad_x, int threads);

}  // namespace pcf::cpu

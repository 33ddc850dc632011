// tanh(a) * logistic(b) of the two halves of a feature map's channels: one pass over memory forward, one backward.
#pragma once

#include "cpu/simd/element.h"

namespace pcf::cpu {

enum class GateCondition { none, per_image, per_pixel };  // absent, [N, 2C], or laid out as x

// x is [N, 2C, pixels], or [N, pixels, 2C] if channels come last; out and gradients likewise. All are dense.
struct GateShape {
  int64_t images, channels, pixels;  // channels: C
  bool channels_last;
  GateCondition condition;
};

void gated_activation(Element, const GateShape&, const void* x, const void* condition, void* out, int threads);

// The gradient of x + condition. grad_x must not overlap grad.
void gated_activation_gradient(Element, const GateShape&, const void* x, const void* condition, const void* grad,
                               void* grad_x, int threads);

}  // namespace pcf::cpu

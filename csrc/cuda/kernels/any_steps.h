// The steps of a result that is none of the common ones.
#pragma once

#include "cuda/kernels/step_views.h"
#include "cuda/kernels/steps.h"
#include "cuda/kernels/stores.h"

namespace pcf::cuda {

// Mean and 1 / sqrt(variance + epsilon) over all channels of a value.
__device__ inline void load_moments(const Block& b, float (&scale)[4], float (&mean)[4], const StepPlan& step, int tile,
                                    uint32_t view) {
  for (int n = 0; n < 2; n++) {
    const auto average = [&](float mean, bool of_squares) {
      float total = 0;
      for (int c = 0; c < step.all_channels; c += 2) {
        const float2 pair = pair_at(b, step.place, c, b.site_of(tile, n), view);
        const float x = pair.x - mean, y = c + 1 < step.all_channels ? pair.y - mean : 0.f;
        total += of_squares ? x * x + y * y : x + y;
      }
      return total * step.inverse_channels;
    };
    const float found = average(0, false), inverse = 1.f / sqrtf(average(found, true) + step.alpha);
#pragma unroll
    for (int c = 0; c < 2; c++) mean[n + 2 * c] = found, scale[n + 2 * c] = inverse;
  }
}

__device__ inline void load_condition(const Block& b, float (&x)[4], int index, int lead, int channel, int tile,
                                      uint32_t view) {
  const Layout& l = b.layout;
  const ConditionPlan& operand = in_shared<const ConditionPlan>(l.conditions + index * sizeof(ConditionPlan));
  const float* const data = b.params.conditions + operand.before * b.params.images;
#pragma unroll
  for (int n = 0; n < 2; n++) {
    const Site s = advanced(l, b.site(view, b.site_of(tile, n)), lead);
    const bool inside = b.in_grid(s.row, s.column);
    int64_t at = inside ? s.image : 0;
    if (operand.varies_over_pixels && inside) at = (at * l.height + s.row) * l.width + s.column;
#pragma unroll
    for (int c = 0; c < 2; c++)
      x[n + 2 * c] = channel + c < operand.channels ? arrived(data[at * operand.channels + channel + c]) : 0.f;
  }
}

PCF_DEVICE void apply(const Block& b, float (&x)[4], const StepPlan& step, int lead, int channel, int tile,
                      uint32_t view) {
  float operand[4] = {}, shift[4] = {};
  switch (step.reads) {
    case Operand::none: break;
    case Operand::value:
      step.all_channels ? load_moments(b, operand, shift, step, tile, view)
                        : load(b, operand, step.place, channel, tile, view);
      break;
    case Operand::condition: load_condition(b, operand, step.condition, lead, channel, tile, view); break;
    case Operand::constants:
#pragma unroll
      for (int c = 0; c < 4; c++)
        operand[c] = b.constant(step.scale + channel + c / 2), shift[c] = b.constant(step.shift + channel + c / 2);
      break;
  }
  apply_formula(step.kind, step.alpha, x, operand, shift, kMath);
}

}  // namespace pcf::cuda

// The steps of a result that is none of the common ones.
#pragma once

#include "cuda/kernels/steps.h"
#include "cuda/kernels/stores.h"

namespace pcf::cuda {

template <Math kMath, int kTiles, int kBlocks>
class AnySteps : public Stores<kMath, kTiles, kBlocks> {
  using Base = Stores<kMath, kTiles, kBlocks>;

 public:
  using Base::Base;

 protected:
  using Base::advanced, Base::constant, Base::in_grid, Base::layout_, Base::load, Base::pair_at, Base::params_,
      Base::site, Base::site_of;

  // Mean and 1 / sqrt(variance + epsilon) over all channels of a value.
  __device__ void load_moments(float (&scale)[4], float (&mean)[4], const StepPlan& step, int tile,
                               uint32_t view) const {
    for (int n = 0; n < 2; n++) {
      const auto sum = [&](float mean, bool squares) {
        float total = 0;
        for (int c = 0; c < step.all_channels; c += 2) {
          const float2 pair = pair_at(step.place, c, site_of(tile, n), view);
          const float a = pair.x - mean, b = c + 1 < step.all_channels ? pair.y - mean : 0.f;
          total += squares ? a * a + b * b : a + b;
        }
        return total * step.inverse_channels;
      };
      const float found = sum(0, false), inverse = 1.f / sqrtf(sum(found, true) + step.alpha);
#pragma unroll
      for (int c = 0; c < 2; c++) mean[n + 2 * c] = found, scale[n + 2 * c] = inverse;
    }
  }

  __device__ void load_condition(float (&x)[4], int index, int lead, int channel, int tile, uint32_t view) const {
    const ConditionPlan& operand = in_shared<const ConditionPlan>(layout_.conditions + index * sizeof(ConditionPlan));
    const float* const data = params_.conditions + operand.before * params_.images;
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const Site s = advanced(site(view, site_of(tile, n)), lead);
      const bool inside = in_grid(s.row, s.column);
      int64_t at = inside ? s.image : 0;
      if (operand.varies_over_pixels && inside) at = (at * layout_.height + s.row) * layout_.width + s.column;
#pragma unroll
      for (int c = 0; c < 2; c++)
        x[n + 2 * c] = channel + c < operand.channels ? arrived(data[at * operand.channels + channel + c]) : 0.f;
    }
  }

  __device__ __forceinline__ void apply(float (&x)[4], const StepPlan& step, int lead, int channel, int tile,
                                        uint32_t view) const {
    float operand[4] = {}, shift[4] = {};
    switch (step.reads) {
      case Operand::none: break;
      case Operand::value:
        step.all_channels ? load_moments(operand, shift, step, tile, view)
                          : load(operand, step.place, channel, tile, view);
        break;
      case Operand::condition: load_condition(operand, step.condition, lead, channel, tile, view); break;
      case Operand::constants:
#pragma unroll
        for (int c = 0; c < 4; c++)
          operand[c] = constant(step.scale + channel + c / 2), shift[c] = constant(step.shift + channel + c / 2);
        break;
    }
    apply_formula(step.kind, step.alpha, x, operand, shift, kMath);
  }
};

}  // namespace pcf::cuda

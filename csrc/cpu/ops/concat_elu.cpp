#include "cpu/ops/concat_elu.h"

#include "cpu/ops/halves.h"
#include "cpu/ops/layer_kernels.h"
#include "cpu/simd/cpu_features.h"

namespace pcf::cpu {

void concat_elu(const FeatureMap& x, bool channels_last, void* out, int threads) {
  with_element(x.element, [&](auto e) {
    using E = decltype(e);
    const auto& k = layer_kernels<E>(chosen_isa());
    const E* from = static_cast<const E*>(x.data);
    E* const to = static_cast<E*>(out);
    each_line_of_halves(x.images, x.channels, int64_t{x.height} * x.width, channels_last, threads,
                        [&](const HalvesLine& line) {
                          k.concat_elu(from + line.index * line.length, to + line.a, to + line.b, line.length);
                        });
  });
}

void concat_elu_gradient(const FeatureMap& y, bool channels_last, const void* grad, void* grad_x, int threads) {
  with_element(y.element, [&](auto e) {
    using E = decltype(e);
    const auto& k = layer_kernels<E>(chosen_isa());
    const E *of = static_cast<const E*>(y.data), *g = static_cast<const E*>(grad);
    E* const to = static_cast<E*>(grad_x);
    each_line_of_halves(y.images, y.channels / 2, int64_t{y.height} * y.width, channels_last, threads,
                        [&](const HalvesLine& line) {
                          k.concat_elu_gradient(of + line.a, of + line.b, g + line.a, g + line.b,
                                                to + line.index * line.length, line.length);
                        });
  });
}

}  // namespace pcf::cpu

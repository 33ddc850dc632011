#include "cpu/ops/gated_activation.h"

#include "cpu/ops/halves.h"
#include "cpu/ops/layer_kernels.h"
#include "cpu/simd/cpu_features.h"

namespace pcf::cpu {
namespace {

// The result, or its gradient if `grad` is not null.
template <class E>
void compute(const FeatureMap& x, bool channels_last, bool linear, bool condition_per_pixel, const E* condition,
             const E* grad, E* out, int threads) {
  const auto& k = layer_kernels<E>(chosen_isa());
  const int channels = x.channels / 2;
  each_line_of_halves(x.images, channels, int64_t{x.height} * x.width, channels_last, threads,
                      [&](const HalvesLine& line) {
                        const E* data = static_cast<const E*>(x.data);
                        GateInput<E> in{linear, data + line.a, data + line.b, nullptr, nullptr, 1};
                        if (condition && condition_per_pixel) {
                          in.condition_a = condition + line.a;
                          in.condition_b = condition + line.b;
                        } else if (condition) {
                          in.condition_a = condition + 2 * line.image * channels + (channels_last ? 0 : line.in_image);
                          in.condition_b = in.condition_a + channels;
                          in.condition_stride = channels_last;
                        }
                        const int64_t at = line.index * line.length;
                        if (grad)
                          k.gate_gradient(in, grad + at, out + line.a, out + line.b, line.length);
                        else
                          k.gate(in, out + at, line.length);
                      });
}

}  // namespace

void gated_activation(const FeatureMap& x, bool channels_last, bool linear, bool condition_per_pixel,
                      const void* condition, void* out, int threads) {
  gated_activation_gradient(x, channels_last, linear, condition_per_pixel, condition, nullptr, out, threads);
}

void gated_activation_gradient(const FeatureMap& x, bool channels_last, bool linear, bool condition_per_pixel,
                               const void* condition, const void* grad, void* grad_x, int threads) {
  with_element(x.element, [&](auto e) {
    using E = decltype(e);
    compute(x, channels_last, linear, condition_per_pixel, static_cast<const E*>(condition),
            static_cast<const E*>(grad), static_cast<E*>(grad_x), threads);
  });
}

}  // namespace pcf::cpu

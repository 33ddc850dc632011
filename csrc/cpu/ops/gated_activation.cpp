#include "cpu/ops/gated_activation.h"

#include <algorithm>

#include "cpu/ops/layer_kernels.h"
#include "cpu/simd/cpu_features.h"
#include "cpu/threads/parallel.h"

namespace pcf::cpu {
namespace {

constexpr int64_t kValuesOfATask = 1 << 14;

// The result, or its gradient if `grad` is not null.
template <class E>
void compute(const FeatureMap& x, bool channels_last, bool condition_per_pixel, const E* condition, const E* grad,
             E* out, int threads) {
  const auto& k = layer_kernels<E>(chosen_isa());
  const int64_t channels = x.channels / 2, pixels = int64_t{x.height} * x.width;
  // In either layout, a line of memory has `length` values of either half.
  const int64_t lines_of_image = channels_last ? pixels : channels, length = channels_last ? channels : pixels;
  const int64_t lines = x.images * lines_of_image, half = channels_last ? channels : channels * pixels;
  if (lines == 0 || length == 0) return;
  const auto line = [&](int64_t i) {
    const int64_t image = i / lines_of_image, in_image = i % lines_of_image;
    const int64_t at_half = channels_last ? 2 * i * length : (2 * image * channels + in_image) * length;
    const E* a = static_cast<const E*>(x.data) + at_half;
    GateInput<E> in{a, a + half, nullptr, nullptr, 1};
    if (condition && condition_per_pixel) {
      in.condition_a = condition + at_half;
      in.condition_b = in.condition_a + half;
    } else if (condition) {
      in.condition_a = condition + 2 * image * channels + (channels_last ? 0 : in_image);
      in.condition_b = in.condition_a + channels;
      in.condition_stride = channels_last;
    }
    if (grad)
      k.gate_gradient(in, grad + i * length, out + at_half, out + at_half + half, length);
    else
      k.gate(in, out + i * length, length);
  };
  const int64_t lines_of_a_task = std::max<int64_t>(1, kValuesOfATask / length);
  parallel(threads, static_cast<int>((lines + lines_of_a_task - 1) / lines_of_a_task), [&](int, int task) {
    const int64_t first = task * lines_of_a_task;
    for (int64_t i = first; i < std::min(lines, first + lines_of_a_task); i++) line(i);
  });
}

}  // namespace

void gated_activation(const FeatureMap& x, bool channels_last, bool condition_per_pixel, const void* condition,
                      void* out, int threads) {
  gated_activation_gradient(x, channels_last, condition_per_pixel, condition, nullptr, out, threads);
}

void gated_activation_gradient(const FeatureMap& x, bool channels_last, bool condition_per_pixel, const void* condition,
                               const void* grad, void* grad_x, int threads) {
  with_element(x.element, [&](auto e) {
    using E = decltype(e);
    compute(x, channels_last, condition_per_pixel, static_cast<const E*>(condition), static_cast<const E*>(grad),
            static_cast<E*>(grad_x), threads);
  });
}

}  // namespace pcf::cpu

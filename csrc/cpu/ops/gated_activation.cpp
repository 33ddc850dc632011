#include "cpu/ops/gated_activation.h"

#include <algorithm>

#include "cpu/ops/layer_kernels.h"
#include "cpu/simd/cpu_features.h"
#include "cpu/threads/parallel.h"

namespace pcf::cpu {
namespace {

constexpr int64_t kValuesOfATask = 1 << 14;

// Calls f(input, at, at_half, half, n) for each line of memory: n values of either half. `at` is where they begin in an
// array of C channels, `at_half` where the first half's begin in one of 2C; the second half's begin `half` further on.
template <class E, class F>
void each_line(const GateLayout& s, const void* x, const void* condition, int threads, const F& f) {
  const int64_t lines = s.images * (s.channels_last ? s.pixels : s.channels);
  const int64_t length = s.channels_last ? s.channels : s.pixels;
  if (lines == 0 || length == 0) return;
  const int64_t half = s.channels_last ? s.channels : s.channels * s.pixels;
  const int64_t lines_of_a_task = std::max<int64_t>(1, kValuesOfATask / length);
  const auto line = [&](int64_t i) {
    const int64_t image = i / (lines / s.images), in_image = i % (lines / s.images);
    const int64_t at_half = s.channels_last ? 2 * i * length : (2 * image * s.channels + in_image) * length;
    const E* a = static_cast<const E*>(x) + at_half;
    GateInput<E> in{a, a + half, nullptr, nullptr, 1};
    if (condition && s.condition_per_pixel) {
      in.condition_a = static_cast<const E*>(condition) + at_half;
      in.condition_b = in.condition_a + half;
    } else if (condition) {
      in.condition_a = static_cast<const E*>(condition) + 2 * image * s.channels + (s.channels_last ? 0 : in_image);
      in.condition_b = in.condition_a + s.channels;
      in.condition_stride = s.channels_last;
    }
    f(in, i * length, at_half, half, length);
  };
  parallel(threads, static_cast<int>((lines + lines_of_a_task - 1) / lines_of_a_task), [&](int, int task) {
    const int64_t first = task * lines_of_a_task;
    for (int64_t i = first; i < std::min(lines, first + lines_of_a_task); i++) line(i);
  });
}

}  // namespace

void gated_activation(Element element, const GateLayout& shape, const void* x, const void* condition, void* out,
                      int threads) {
  with_element(element, [&](auto e) {
    using E = decltype(e);
    const auto& k = layer_kernels<E>(chosen_isa());
    each_line<E>(shape, x, condition, threads, [&](const GateInput<E>& in, int64_t at, int64_t, int64_t, int64_t n) {
      k.gate(in, static_cast<E*>(out) + at, n);
    });
  });
}

void gated_activation_gradient(Element element, const GateLayout& shape, const void* x, const void* condition,
                               const void* grad, void* grad_x, int threads) {
  with_element(element, [&](auto e) {
    using E = decltype(e);
    const auto& k = layer_kernels<E>(chosen_isa());
    each_line<E>(shape, x, condition, threads,
                 [&](const GateInput<E>& in, int64_t at, int64_t at_half, int64_t half, int64_t n) {
                   E* grad_a = static_cast<E*>(grad_x) + at_half;
                   k.gate_gradient(in, static_cast<const E*>(grad) + at, grad_a, grad_a + half, n);
                 });
  });
}

}  // namespace pcf::cpu

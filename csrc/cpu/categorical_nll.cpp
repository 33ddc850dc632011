#include "categorical_nll.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu_features.h"
#include "layer_kernels.h"
#include "parallel.h"

namespace pcf {
namespace {

// f(row, at, n) for each row of sub-pixels: `at` is where its logits begin, n its width. A map whose rows follow
// each other is one row.
template <class F>
void each_row(const LogitsTensor& t, int threads, const F& f) {
  const auto [n, c, h, w, levels] = t.sizes;
  const bool whole = h == 1 || t.strides[2] == w * t.strides[3];
  const int64_t height = whole ? 1 : h, width = whole ? h * w : w;
  parallel(threads, static_cast<int>(n * c * height), [&, c = c](int, int i) {
    const int64_t map = i / height;
    f(i, map / c * t.strides[0] + map % c * t.strides[1] + i % height * t.strides[2], static_cast<int>(width));
  });
}

}  // namespace

bool categorical_nll(const LogitsTensor& t, const void* logits, const int64_t* levels, void* nll, void* log_sum_exp,
                     int threads) {
  std::atomic<bool> in_range{true};
  with_element(t.element, [&](auto e) {
    using E = decltype(e);
    using T = Computed<E>;
    const auto& k = layer_kernels<E>(chosen_isa());
    const int64_t of_image = t.sizes[1] * t.sizes[2] * t.sizes[3];
    std::vector<double> sums(t.sizes[0] * t.sizes[1] * t.sizes[2]);  // by row
    int64_t rows_of_image = 0;
    each_row(t, threads, [&](int row, int64_t at, int n) {
      const Logits<E> l{static_cast<const E*>(logits) + at, t.strides[3], t.strides[4], static_cast<int>(t.sizes[4])};
      T* lse = static_cast<T*>(log_sum_exp) + int64_t{row} * n;
      const int64_t* target = levels + int64_t{row} * n;
      k.log_sum_exp(l, n, lse);
      for (int i = 0; i < n; i++) {
        if (target[i] < 0 || target[i] >= l.levels) return in_range.store(false, std::memory_order_relaxed);
        sums[row] += lse[i] - convert<T>(l.data[i * l.stride + target[i] * l.level_stride]);
      }
    });
    const bool whole = t.sizes[2] == 1 || t.strides[2] == t.sizes[3] * t.strides[3];
    rows_of_image = t.sizes[1] * (whole ? 1 : t.sizes[2]);
    for (int64_t image = 0; image < t.sizes[0]; image++) {
      double sum = 0;
      for (int64_t r = 0; of_image && r < rows_of_image; r++) sum += sums[image * rows_of_image + r];
      static_cast<T*>(nll)[image] = static_cast<T>(sum);
    }
  });
  return in_range;
}

void categorical_nll_gradient(const LogitsTensor& t, const void* logits, const int64_t* levels, const void* log_sum_exp,
                              const void* grad_nll, void* grad_logits, int threads) {
  with_element(t.element, [&](auto e) {
    using E = decltype(e);
    using T = Computed<E>;
    const auto& k = layer_kernels<E>(chosen_isa());
    const int64_t of_image = t.sizes[1] * t.sizes[2] * t.sizes[3];
    each_row(t, threads, [&](int row, int64_t at, int n) {
      const Logits<E> l{static_cast<const E*>(logits) + at, t.strides[3], t.strides[4], static_cast<int>(t.sizes[4])};
      const int64_t first = int64_t{row} * n;
      k.nll_gradient(l, n, static_cast<const T*>(log_sum_exp) + first, levels + first,
                     static_cast<const T*>(grad_nll)[first / of_image], static_cast<E*>(grad_logits) + at);
    });
  });
}

}  // namespace pcf

#include "cpu/ops/categorical_nll.h"

#include <atomic>
#include <vector>

#include "cpu/ops/layer_kernels.h"
#include "cpu/simd/cpu_features.h"
#include "cpu/threads/parallel.h"

namespace pcf::cpu {
namespace {

// The logits as rows of sub-pixels. A map whose rows follow each other in memory is a single row.
struct LogitRows {
  explicit LogitRows(const LogitsTensor& t) : t(t) {
    const bool whole = t.sizes[2] == 1 || t.strides[2] == t.sizes[3] * t.strides[3];
    of_map = whole ? 1 : t.sizes[2];
    of_image = t.sizes[1] * of_map;
    width = static_cast<int>(whole ? t.sizes[2] * t.sizes[3] : t.sizes[3]);
  }

  int total() const { return static_cast<int>(t.sizes[0] * of_image); }

  // Where a row's logits begin.
  int64_t begin(int64_t row) const {
    return row / of_image * t.strides[0] + row / of_map % t.sizes[1] * t.strides[1] + row % of_map * t.strides[2];
  }

  template <class E>
  Logits<E> logits(int64_t row) const {
    return {static_cast<const E*>(t.data) + begin(row), t.strides[3], t.strides[4], static_cast<int>(t.sizes[4])};
  }

  const LogitsTensor& t;
  int64_t of_map, of_image;
  int width;
};

}  // namespace

bool categorical_nll(const LogitsTensor& tensor, const int64_t* levels, int64_t ignored, void* nll, double* log_sum_exp,
                     int threads) {
  std::atomic<bool> in_range{true};
  const LogitRows rows(tensor);
  std::vector<double> sums(rows.total());
  with_element(tensor.element, [&](auto e) {
    using E = decltype(e);
    using T = Computed<E>;
    const auto& k = layer_kernels<E>(chosen_isa());
    parallel(threads, rows.total(), [&](int, int row) {
      const Logits<E> l = rows.logits<E>(row);
      double* lse = log_sum_exp + int64_t{row} * rows.width;
      const int64_t* target = levels + int64_t{row} * rows.width;
      k.log_sum_exp(l, rows.width, lse);
      for (int i = 0; i < rows.width; i++) {
        if (target[i] == ignored) continue;
        if (target[i] < 0 || target[i] >= l.levels) return in_range.store(false, std::memory_order_relaxed);
        sums[row] += lse[i] - convert<double>(l.data[i * l.stride + target[i] * l.level_stride]);
      }
    });
    for (int64_t image = 0; image < tensor.sizes[0]; image++) {
      double sum = 0;
      for (int64_t r = 0; r < rows.of_image; r++) sum += sums[image * rows.of_image + r];
      static_cast<T*>(nll)[image] = static_cast<T>(sum);
    }
  });
  return in_range;
}

void categorical_nll_gradient(const LogitsTensor& tensor, const int64_t* levels, int64_t ignored,
                              const double* log_sum_exp, const void* grad_nll, void* grad_logits, int threads) {
  const LogitRows rows(tensor);
  with_element(tensor.element, [&](auto e) {
    using E = decltype(e);
    const auto& k = layer_kernels<E>(chosen_isa());
    parallel(threads, rows.total(), [&](int, int row) {
      const int64_t first = int64_t{row} * rows.width;
      k.nll_gradient(rows.logits<E>(row), rows.width, log_sum_exp + first, levels + first, ignored,
                     static_cast<const Computed<E>*>(grad_nll)[row / rows.of_image],
                     static_cast<E*>(grad_logits) + rows.begin(row));
    });
  });
}

}  // namespace pcf::cpu

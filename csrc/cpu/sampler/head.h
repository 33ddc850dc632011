// Draws values of the image from the numbers that describe a distribution, scores what was drawn, and checks that the
// numbers are finite. Another kind of head is one more case of HeadDrawer::draw; the walk over the image does not know
// what it draws.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "cpu/sampler/distribution.h"
#include "cpu/sampler/logistic_mixture.h"
#include "cpu/simd/kernels.h"
#include "program.h"

namespace pcf::cpu {

inline bool exclude_levels(const SamplingOptions& options) { return options.top_k > 0 || options.top_p < 1; }

// Sets the weights of all levels that the options exclude to zero. logits, weights: [levels], where weights grow with
// logits; order: scratch. Of equal logits, the lower level counts as more likely. The sums are those of
// heads/drawing.py, in the same order, so the last level to be kept depends on the runtime only through rounding of the
// weights.
template <class T>
void keep_likeliest(const T* logits, T* weights, int levels, const SamplingOptions& options, std::vector<int>& order) {
  order.resize(levels);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [=](int a, int b) { return logits[a] > logits[b]; });
  if (options.top_k > 0)
    for (int rank = options.top_k; rank < levels; rank++) weights[order[rank]] = 0;
  if (options.top_p >= 1) return;
  double total = 0, before = 0;
  for (int k : order) total += weights[k];
  for (int rank = 0; rank < levels; rank++) {
    T& weight = weights[order[rank]];
    const double sum = before + weight;
    if (rank > 0 && !(before < options.top_p * total)) weight = 0;
    before = sum;
  }
}

// Draws for one thread.
template <class T>
class HeadDrawer {
 public:
  // scratch: [head.parameters]
  HeadDrawer(const Head& head, const Job& job, const Kernels<T>& kernels, T* scratch)
      : head_(head), job_(job), kernels_(kernels), weights_(scratch), mixture_(head, job) {}

  // Writes those of the distribution's values that are not known. False if its parameters are not finite; the values
  // are then the lowest.
  bool draw(const Distribution<T>& d) {
    switch (head_.kind) {
      case HeadKind::categorical: return draw_categorical(d);
      case HeadKind::logistic_mixture: return mixture_.draw(d);
    }
    __builtin_unreachable();
  }

 private:
  bool draw_categorical(const Distribution<T>& d) {
    const SamplingOptions& options = job_.options;
    const int levels = head_.levels;
    int32_t& level = static_cast<int32_t*>(job_.values)[d.values];
    if (!kernels_.weigh(d.parameters, levels, options.temperature, weights_)) {
      level = 0;
      return false;
    }
    if (options.temperature > 0 && exclude_levels(options))
      keep_likeliest(d.parameters, weights_, levels, options, order_);
    level = kernels_.pick(weights_, levels, job_.noise[d.noise]);
    if (job_.log_probability)
      job_.log_probability[d.values] = kernels_.log_probability(d.parameters, levels, level, weights_);
    return true;
  }

  const Head& head_;
  const Job& job_;
  const Kernels<T>& kernels_;
  T* const weights_;
  std::vector<int> order_;
  LogisticMixture<T> mixture_;
};

}  // namespace pcf::cpu

// Which levels may be drawn at all: top-k and nucleus (top-p) sampling.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "program.h"

namespace pcf::cpu {

inline bool exclude_levels(const SamplingOptions& options) { return options.top_k > 0 || options.top_p < 1; }

// Sets the weights of all levels that the options exclude to zero. logits, weights: [levels], where weights grow with
// logits; order: scratch. Of equal logits, the lower level counts as more likely. The sums are those of
// heads/drawing.py, in the same order, so the last level to be kept does not depend on the runtime.
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

}  // namespace pcf::cpu

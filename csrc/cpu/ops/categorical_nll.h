// Negative log-likelihood of levels under categorical logits. Probabilities are never stored.
#pragma once

#include <array>

#include "cpu/simd/element.h"

namespace pcf::cpu {

// [N, C, H, W, L], any strides (in elements).
struct LogitsTensor {
  Element element;
  const void* data;
  std::array<int64_t, 5> sizes, strides;
};

// levels [N, C, H, W] dense -> nll [N], float64 with float64 logits, else float32, and log_sum_exp [N, C, H, W].
// Levels that are `ignored` are left out. Returns false if another lies outside 0...L-1; the results then mean nothing.
bool categorical_nll(const LogitsTensor&, const int64_t* levels, int64_t ignored, void* nll, double* log_sum_exp,
                     int threads);

// grad_logits has the logits' strides; grad_nll [N] is of nll's type.
void categorical_nll_gradient(const LogitsTensor&, const int64_t* levels, int64_t ignored, const double* log_sum_exp,
                              const void* grad_nll, void* grad_logits, int threads);

}  // namespace pcf::cpu

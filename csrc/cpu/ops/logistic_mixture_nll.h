// Negative log-likelihood of levels under a mixture of logistics. What a component gives to a level is never stored.
#pragma once

#include "cpu/ops/feature_map.h"

namespace pcf::cpu {

// parameters [N, P, H, W], any strides; values [N, C, H, W] dense, in 0...levels-1 -> nll [N], float64 with float64
// parameters, else float32, and log_sum_exp [N, 2, H, W]: of the logits, and of all that the components give to a
// pixel. P = 10 * components for C = 3, else C = 1. Returns false if a value is out of range; the results then mean
// nothing.
bool logistic_mixture_nll(const FeatureMap& parameters, const int64_t* values, int components, int levels, void* nll,
                          double* log_sum_exp, int threads);

// grad_parameters, of the parameters' sizes and type, must not overlap them; grad_nll [N] is of nll's type.
void logistic_mixture_nll_gradient(const FeatureMap& parameters, const int64_t* values, int components, int levels,
                                   const double* log_sum_exp, const void* grad_nll, const FeatureMap& grad_parameters,
                                   int threads);

}  // namespace pcf::cpu

// A warp draws a level from a sub-pixel's logits.
#pragma once

#include "cuda/device.h"

namespace pcf {

template <class T, class F>
__device__ __forceinline__ T over_warp(T x, F combine) {
#pragma unroll
  for (int apart = 16; apart; apart /= 2) x = combine(x, shuffle_xor(x, apart));
  return x;
}

// The smallest k with u < cdf_k of softmax(logits * inverse_temperature), the last level if rounding leaves none;
// argmax where inverse_temperature is 0; -1 if a logit is not finite. Probabilities are float32, their sums double.
// All lanes call it with the same arguments and get the same result.
__device__ inline int draw(const float* logits, int levels, float inverse_temperature, double u, int lane) {
  const int each = (levels + 31) / 32;
  const int first = min(lane * each, levels), last = min(first + each, levels);
  float high = -INFINITY, zero = 0;
  for (int k = first; k < last; k++) {
    high = fmaxf(high, logits[k]);
    zero += logits[k] - logits[k];  // stays 0 while all are finite
  }
  high = over_warp(high, [](float a, float b) { return fmaxf(a, b); });
  zero = over_warp(zero, [](float a, float b) { return a + b; });
  if (zero != 0) return -1;

  int found = levels;
  if (inverse_temperature == 0) {
    for (int k = last - 1; k >= first; k--)
      if (logits[k] == high) found = k;
  } else {
    double sum = 0;
    for (int k = first; k < last; k++) sum += expf((logits[k] - high) * inverse_temperature);
    double up_to = sum;  // of this lane's levels and those of the lanes below
    for (int apart = 1; apart < 32; apart *= 2) {
      const double below = shuffle_up(up_to, apart);
      if (lane >= apart) up_to += below;
    }
    const double target = u * shuffle(up_to, 31);
    double before = shuffle_up(up_to, 1);
    if (lane == 0) before = 0;
    for (int k = first; k < last && found == levels; k++) {
      before += expf((logits[k] - high) * inverse_temperature);
      if (target < before) found = k;
    }
  }
  found = over_warp(found, [](int a, int b) { return min(a, b); });
  return min(found, levels - 1);
}

// ln of the probability of a level under softmax(logits), which are finite.
__device__ inline double log_probability_of(int level, const float* logits, int levels, int lane) {
  float high = -INFINITY;
  for (int k = lane; k < levels; k += 32) high = fmaxf(high, logits[k]);
  high = over_warp(high, [](float a, float b) { return fmaxf(a, b); });
  double sum = 0;
  for (int k = lane; k < levels; k += 32) sum += exp(static_cast<double>(logits[k] - high));
  sum = over_warp(sum, [](double a, double b) { return a + b; });
  return static_cast<double>(logits[level] - high) - log(sum);
}

}  // namespace pcf

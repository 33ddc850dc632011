// A warp draws a level from a sub-pixel's logits. All lanes call with the same arguments and get the same result; each
// lane handles some neighbouring levels.
#pragma once

#include "cuda/device.h"
#include "program.h"

namespace pcf::cuda {

// The options, and what is computed from them once, so that a warp need not divide.
struct DrawOptions : SamplingOptions {
  float inverse_temperature = 1;  // 0: the most likely level
  bool excludes_levels = false;

  DrawOptions() = default;
  explicit DrawOptions(const SamplingOptions& options)
      : SamplingOptions(options), inverse_temperature(temperature == 0 ? 0 : static_cast<float>(1 / temperature)),
        excludes_levels(options.exclude_levels()) {}
};

template <class T, class F>
__device__ __forceinline__ T over_warp(T x, F combine) {
#pragma unroll
  for (int apart = 16; apart; apart /= 2) x = combine(x, shuffle_xor(x, apart));
  return x;
}

// The sum of this lane's x and those of the lanes below.
template <class T>
__device__ __forceinline__ T up_to_lane(T x, int lane) {
  for (int apart = 1; apart < 32; apart *= 2) {
    const T below = shuffle_up(x, apart);
    if (lane >= apart) x += below;
  }
  return x;
}

struct Share {
  int first, last;  // levels first ... last - 1

  __device__ Share(int levels, int lane) {
    const int each = (levels + 31) / 32;
    first = min(lane * each, levels), last = min(first + each, levels);
  }
};

// The smallest k with u < cdf_k, or the last one with a weight if rounding leaves none. weight(k): float32; weights are
// summed in double.
template <class Weight>
__device__ __forceinline__ int pick(int levels, double u, int lane, const Weight& weight) {
  const Share mine(levels, lane);
  double sum = 0;
  for (int k = mine.first; k < mine.last; k++) sum += weight(k);
  const double up_to = up_to_lane(sum, lane);
  const double target = u * shuffle(up_to, 31);
  double before = shuffle_up(up_to, 1);
  if (lane == 0) before = 0;
  int found = levels;
  for (int k = mine.first; k < mine.last && found == levels; k++) {
    before += weight(k);
    if (target < before) found = k;
  }
  found = over_warp(found, [](int a, int b) { return min(a, b); });
  if (found < levels) return found;
  for (int k = mine.first; k < mine.last; k++)
    if (weight(k) > 0) found = k;
  return over_warp(found == levels ? 0 : found, [](int a, int b) { return max(a, b); });
}

// -- top-k and nucleus sampling

// A cut through the levels, sorted by falling logits and, for equal logits, by rising level: it keeps those up to and
// including level `last`, which has this logit.
struct Cut {
  float logit;
  int last;       // -1: no level of this logit
  double weight;  // of the levels before the cut

  __device__ bool keeps(const float* logits, int k) const {
    return logits[k] > logit || (logits[k] == logit && k <= last);
  }
};

// Keeps the first `most` levels, or fewer: the first one, and others until those before them weigh `enough`. Each turn
// of the loop takes the next smaller logit. The sums are those of heads/drawing.py, in the same order.
template <class Weight>
__device__ __forceinline__ Cut cut_after(int most, double enough, const float* logits, int levels, float high, int lane,
                                         const Weight& weight) {
  const Share mine(levels, lane);
  Cut cut{high, -1, 0};
  for (int rank = 0;;) {
    int equal = 0;
    float next = -INFINITY;
    for (int k = mine.first; k < mine.last; k++) {
      equal += logits[k] == cut.logit;
      if (logits[k] < cut.logit) next = fmaxf(next, logits[k]);
    }
    const int up_to = up_to_lane(equal, lane), all = shuffle(up_to, 31);
    const double each = weight(cut.logit);
    int kept = 0;
    for (; kept < all && rank < most && (rank == 0 || cut.weight < enough); kept++, rank++) cut.weight += each;
    next = over_warp(next, [](float a, float b) { return fmaxf(a, b); });
    if (kept == all && next > -INFINITY) {
      cut.logit = next;
      continue;
    }
    int left = kept - (up_to - equal);  // how many of those kept are at or after this lane's first level
    for (int k = mine.first; k < mine.last && left > 0; k++)
      if (logits[k] == cut.logit) left--, cut.last = k;
    cut.last = over_warp(cut.last, [](int a, int b) { return max(a, b); });
    return cut;
  }
}

// Draws with top-k or top-p. It is a function of its own, so that it costs the plain draw no registers.
__device__ __noinline__ inline int draw_from_likeliest(const float* logits, int levels, const DrawOptions& options,
                                                       double u, float high, int lane) {
  const float inverse_temperature = options.inverse_temperature;
  const auto weight_of = [=](float logit) { return expf((logit - high) * inverse_temperature); };
  const int most = options.top_k > 0 ? options.top_k : levels;
  Cut cut{-INFINITY, -1, 0};
  if (options.top_k > 0) {
    cut = cut_after(most, INFINITY, logits, levels, high, lane, weight_of);
  } else {
    const Share mine(levels, lane);
    for (int k = mine.first; k < mine.last; k++) cut.weight += weight_of(logits[k]);
    cut.weight = over_warp(cut.weight, [](double a, double b) { return a + b; });
  }
  if (options.top_p < 1) cut = cut_after(most, options.top_p * cut.weight, logits, levels, high, lane, weight_of);
  return pick(levels, u, lane, [&](int k) { return cut.keeps(logits, k) ? weight_of(logits[k]) : 0.f; });
}

// Draws from softmax(logits / temperature), as heads/drawing.py does; -1 if a logit is not finite.
__device__ inline int draw(const float* logits, int levels, const DrawOptions& options, double u, int lane) {
  const float inverse_temperature = options.inverse_temperature;
  const Share mine(levels, lane);
  float high = -INFINITY, zero = 0;
  for (int k = mine.first; k < mine.last; k++) {
    high = fmaxf(high, logits[k]);
    zero += logits[k] - logits[k];  // stays 0 while all are finite
  }
  high = over_warp(high, [](float a, float b) { return fmaxf(a, b); });
  zero = over_warp(zero, [](float a, float b) { return a + b; });
  if (zero != 0) return -1;
  if (inverse_temperature == 0) {
    int found = levels;
    for (int k = mine.last - 1; k >= mine.first; k--)
      if (logits[k] == high) found = k;
    return over_warp(found, [](int a, int b) { return min(a, b); });
  }
  if (options.excludes_levels) return draw_from_likeliest(logits, levels, options, u, high, lane);
  return pick(levels, u, lane, [=](int k) { return expf((logits[k] - high) * inverse_temperature); });
}

// ln of the probability of a level under softmax(logits). The logits must be finite.
__device__ inline double log_probability_of(int level, const float* logits, int levels, int lane) {
  float high = -INFINITY;
  for (int k = lane; k < levels; k += 32) high = fmaxf(high, logits[k]);
  high = over_warp(high, [](float a, float b) { return fmaxf(a, b); });
  double sum = 0;
  for (int k = lane; k < levels; k += 32) sum += exp(static_cast<double>(logits[k] - high));
  sum = over_warp(sum, [](double a, double b) { return a + b; });
  return static_cast<double>(logits[level] - high) - log(sum);
}

}  // namespace pcf::cuda

// A warp draws a level from a sub-pixel's logits. All lanes call with the same arguments and get the same result; each
// lane handles some neighbouring levels.
#pragma once

#include "cuda/kernels/block.h"

namespace pcf::cuda {

constexpr int kEach = 8;  // levels that a lane has in its registers

// A distribution's logits in shared memory.
struct Logits {
  uint32_t at;
  __device__ float operator[](int level) const { return in_shared<const float>(at + level * 4); }

  // Those from level `first` on, of which there are `count`, and behind them the least finite number. all_lanes: all of
  // the warp have kEach.
  PCF_DEVICE void read(float (&x)[kEach], int first, int count, bool all_lanes) const {
    if (all_lanes && at % 16 == 0) {
#pragma unroll
      for (int k = 0; k < kEach; k += 4) {
        const float4 four = in_shared<const float4>(at + (first + k) * 4);
        x[k] = four.x, x[k + 1] = four.y, x[k + 2] = four.z, x[k + 3] = four.w;
      }
      return;
    }
#pragma unroll
    for (int k = 0; k < kEach; k++) x[k] = k < count ? (*this)[first + k] : -FLT_MAX;
  }
};

PCF_DEVICE double sum_over_warp(double x) {
#pragma unroll
  for (int apart = 16; apart; apart /= 2) x += __shfl_xor_sync(kAllLanes, x, apart);
  return x;
}

// The sum of this lane's x and those of the lanes below.
template <class T>
PCF_DEVICE T up_to_lane(T x, int lane) {
  for (int apart = 1; apart < 32; apart *= 2) {
    const T below = __shfl_up_sync(kAllLanes, x, apart);
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
PCF_DEVICE int pick(int levels, double u, int lane, const Weight& weight) {
  const Share mine(levels, lane);
  double sum = 0;
  for (int k = mine.first; k < mine.last; k++) sum += weight(k);
  const double up_to = up_to_lane(sum, lane);
  const double wanted = u * __shfl_sync(kAllLanes, up_to, 31), below = __shfl_up_sync(kAllLanes, up_to, 1);
  double before = lane == 0 ? 0 : below;
  const double target = wanted < before ? before : wanted;  // rounding draws no level without weight
  int found = levels;
  for (int k = mine.first; k < mine.last && found == levels; k++) {
    before += weight(k);
    if (target < before) found = k;
  }
  found = __reduce_min_sync(kAllLanes, found);
  if (found < levels) return found;
  for (int k = mine.first; k < mine.last; k++)
    if (weight(k) > 0) found = k;
  return __reduce_max_sync(kAllLanes, found == levels ? 0 : found);
}

// -- top-k and nucleus sampling

// A cut through the levels, sorted by falling logits and, for equal logits, by rising level: it keeps those up to and
// including level `last`, which has this logit.
struct Cut {
  float logit;
  int last;       // -1: no level of this logit
  double weight;  // of the levels before the cut

  __device__ bool keeps(Logits logits, int k) const { return logits[k] > logit || (logits[k] == logit && k <= last); }
};

// Keeps the first `most` levels, or fewer: the first one, and others until those before them weigh `enough`. Each turn
// of the loop takes the next smaller logit. The sums are those of heads/drawing.py, in the same order.
template <class Weight>
PCF_DEVICE Cut cut_after(int most, double enough, Logits logits, int levels, float high, int lane,
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
    const int up_to = up_to_lane(equal, lane), all = __shfl_sync(kAllLanes, up_to, 31);
    const double each = weight(cut.logit);
    int kept = 0;
    for (; kept < all && rank < most && (rank == 0 || cut.weight < enough); kept++, rank++) cut.weight += each;
    next = max_over_warp(next);
    if (kept == all && next > -INFINITY) {
      cut.logit = next;
      continue;
    }
    int left = kept - (up_to - equal);  // how many of those kept are at or after this lane's first level
    for (int k = mine.first; k < mine.last && left > 0; k++)
      if (logits[k] == cut.logit) left--, cut.last = k;
    cut.last = __reduce_max_sync(kAllLanes, cut.last);
    return cut;
  }
}

constexpr uint32_t kInfinity = 0x7f800000;  // its bits

// As `draw` without top-k and top-p, for at most 32 * kEach levels. kMany draws at once, as one alone mostly waits for
// its own sums. noise(m): the m-th draw's, asked for as late as may be.
template <int kMany>
struct DrawInRegisters {
  float x[kMany][kEach], highest[kMany];
  bool finite[kMany];
  int drawn[kMany];

  template <class Noise>
  PCF_DEVICE DrawInRegisters(const Logits (&logits)[kMany], int levels, float inverse_temperature, const Noise& noise,
                             int lane) {
    const int first = kEach * lane, mine = levels - first;
#pragma unroll
    for (int m = 0; m < kMany; m++) logits[m].read(x[m], first, mine, levels == 32 * kEach);
#pragma unroll
    for (int m = 0; m < kMany; m++) {
      float high = -INFINITY;
      uint32_t largest = 0;
#pragma unroll
      for (int k = 0; k < kEach; k++)
        high = fmaxf(high, x[m][k]), largest = max(largest, __float_as_uint(x[m][k]) & 0x7fffffff);
      finite[m] = __ballot_sync(kAllLanes, largest < kInfinity) == kAllLanes;
      highest[m] = max_over_warp(high);
    }
    double u[kMany];
#pragma unroll
    for (int m = 0; m < kMany; m++) u[m] = noise(m);
    inverse_temperature == 0 ? take_highest() : pick_level(inverse_temperature, u, mine, lane);
#pragma unroll
    for (int m = 0; m < kMany; m++)
      if (!finite[m]) drawn[m] = -1;
  }

 private:
  PCF_DEVICE void take_highest() {
#pragma unroll
    for (int m = 0; m < kMany; m++) {
      int k = kEach;
#pragma unroll
      for (int before = kEach - 1; before >= 0; before--)
        if (x[m][before] == highest[m]) k = before;
      const int lane = __ffs(__ballot_sync(kAllLanes, k < kEach)) - 1;
      drawn[m] = kEach * lane + __shfl_sync(kAllLanes, k, lane);
    }
  }

  PCF_DEVICE void pick_level(float inverse_temperature, const double (&u)[kMany], int mine, int lane) {
    double up_to[kMany][kEach], with_lane[kMany];
#pragma unroll
    for (int m = 0; m < kMany; m++) {
      with_lane[m] = 0;
#pragma unroll
      for (int k = 0; k < kEach; k++)
        up_to[m][k] = with_lane[m] += widened(expf((x[m][k] - highest[m]) * inverse_temperature));
    }
#pragma unroll
    for (int apart = 1; apart < 32; apart *= 2)
#pragma unroll
      for (int m = 0; m < kMany; m++) {
        const double below = __shfl_up_sync(kAllLanes, with_lane[m], apart);
        if (lane >= apart) with_lane[m] += below;
      }
#pragma unroll
    for (int m = 0; m < kMany; m++) {
      const double all = __shfl_sync(kAllLanes, with_lane[m], 31), below = __shfl_up_sync(kAllLanes, with_lane[m], 1);
      const double before = lane == 0 ? 0 : below, wanted = u[m] * all;
      const double target = wanted < before ? before : wanted;  // as in pick()
      const auto passes = [&](double sum) { return before + sum <= target; };
      // How many levels are passed over, by halves: sums don't fall.
      const bool half = passes(up_to[m][3]);
      const bool quarter = passes(half ? up_to[m][5] : up_to[m][1]);
      const double a = quarter ? up_to[m][2] : up_to[m][0], b = quarter ? up_to[m][6] : up_to[m][4];
      const int passed = 4 * half + 2 * quarter + passes(half ? b : a);
      const uint32_t left = __ballot_sync(kAllLanes, !passes(up_to[m][7]) && mine > 0);
      const int found = __ffs(left | 1u << 31) - 1;
      const int level = kEach * found + __shfl_sync(kAllLanes, passed, found);  // here, so that draws need no branch
      drawn[m] = left ? level : -1;
    }
#pragma unroll
    for (int m = 0; m < kMany; m++)
      if (drawn[m] < 0) drawn[m] = last_with_weight(up_to[m]);
  }

  // Where rounding leaves no level that is not passed over.
  static __device__ int last_with_weight(const double (&up_to)[kEach]) {
    int last = 0;
#pragma unroll
    for (int k = 1; k < kEach; k++)
      if (up_to[k] > up_to[k - 1]) last = k;
    const int found = 31 - __clz(__ballot_sync(kAllLanes, up_to[7] > 0));
    return kEach * found + __shfl_sync(kAllLanes, last, found);
  }
};

__device__ inline bool draws_in_registers(int levels, const DrawOptions& options) {
  return levels <= 32 * kEach && options.top_k == 0 && options.top_p >= 1;
}

// Draws from softmax(logits / temperature), as heads/drawing.py does; -1 if a logit is not finite. It is a function of
// its own, so that it costs draws in registers none.
__device__ __noinline__ inline int draw(Logits logits, int levels, DrawOptions options, double u, int lane) {
  const Share mine(levels, lane);
  float high = -INFINITY, zero = 0;
  for (int k = mine.first; k < mine.last; k++) {
    high = fmaxf(high, logits[k]);
    zero += logits[k] - logits[k];  // stays 0 while all are finite
  }
  high = max_over_warp(high);
  if (__ballot_sync(kAllLanes, zero == 0) != kAllLanes) return -1;
  const float inverse_temperature = options.inverse_temperature;
  if (inverse_temperature == 0) {
    int found = levels;
    for (int k = mine.last - 1; k >= mine.first; k--)
      if (logits[k] == high) found = k;
    return __reduce_min_sync(kAllLanes, found);
  }
  const auto weight_of = [=](float logit) { return expf((logit - high) * inverse_temperature); };
  const int most = options.top_k > 0 ? options.top_k : levels;
  Cut cut{-INFINITY, -1, 0};  // it keeps all
  if (options.top_k > 0) cut = cut_after(most, INFINITY, logits, levels, high, lane, weight_of);
  if (options.top_p < 1) {
    if (options.top_k == 0)
      for (int k = mine.first; k < mine.last; k++) cut.weight += weight_of(logits[k]);
    const double all = options.top_k == 0 ? sum_over_warp(cut.weight) : cut.weight;
    cut = cut_after(most, options.top_p * all, logits, levels, high, lane, weight_of);
  }
  return pick(levels, u, lane, [&](int k) { return cut.keeps(logits, k) ? weight_of(logits[k]) : 0.f; });
}

// ln of the probability of a level under softmax(logits). The logits must be finite.
__device__ inline double log_probability_of(int level, Logits logits, int levels, int lane) {
  float high = -INFINITY;
  for (int k = lane; k < levels; k += 32) high = fmaxf(high, logits[k]);
  high = max_over_warp(high);
  double sum = 0;
  for (int k = lane; k < levels; k += 32) sum += exp(static_cast<double>(logits[k] - high));
  return static_cast<double>(logits[level] - high) - log(sum_over_warp(sum));
}

}  // namespace pcf::cuda

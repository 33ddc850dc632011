// Draws a level from logits, and gives its log-probability.
#pragma once

#include <cmath>

#include "cpu/simd/exponential.h"
#include "cpu/simd/vector.h"

namespace pcf::cpu {
namespace {

constexpr int kPart = 16;  // levels whose probabilities are summed together

template <class T>
inline double part_sum(const T* p) {
  double lane[4] = {};
  for (int i = 0; i < kPart; i += 4)
    for (int j = 0; j < 4; j++) lane[j] += p[i + j];
  return (lane[0] + lane[1]) + (lane[2] + lane[3]);
}

// The largest logit; NaN if any logit is not finite.
template <class T>
T largest(const T* logits, int levels) {
  Vec<T> high = broadcast(logits[0]), zero = {};
  T result = logits[0], bad = 0;
  int k = 0;
  for (; k + kLanes<T> <= levels; k += kLanes<T>) {
    const Vec<T> v = load(logits + k);
    high = v > high ? v : high;
    zero += v - v;  // stays 0 while all are finite
  }
  for (int i = 0; i < kLanes<T>; i++) {
    result = high[i] > result ? high[i] : result;
    bad += zero[i];
  }
  for (; k < levels; k++) {
    result = logits[k] > result ? logits[k] : result;
    bad += logits[k] - logits[k];
  }
  return result + bad;
}

template <class T>
bool weigh(const T* logits, int levels, double temperature, T* weights) {
  const T high = largest(logits, levels);
  if (high != high) return false;
  if (temperature == 0) {
    bool found = false;
    for (int k = 0; k < levels; k++) {
      const bool first = !found && logits[k] == high;
      found |= first;
      weights[k] = first;
    }
    return true;
  }
  const T inverse = static_cast<T>(1 / temperature);
  for (int k = 0; k < levels; k++) weights[k] = exponential((logits[k] - high) * inverse);
  return true;
}

template <class T>
double sum(const T* x, int n) {
  double total = 0;
  int k = 0;
  for (; k + kPart <= n; k += kPart) total += part_sum(x + k);
  for (; k < n; k++) total += x[k];
  return total;
}

template <class T>
int pick(const T* weights, int levels, double u) {
  const double target = u * sum(weights, levels);
  double before = 0;
  int k = 0;
  for (; k + kPart <= levels; k += kPart) {  // skip the parts that end before the target
    const double part = part_sum(weights + k);
    if (target < before + part) break;
    before += part;
  }
  for (; k < levels; k++) {
    before += weights[k];
    if (target < before) return k;
  }
  for (k = levels - 1; k > 0 && !(weights[k] > 0);) k--;
  return k;
}

template <class T>
double log_probability(const T* logits, int levels, int level, T* scratch) {
  if (!weigh(logits, levels, 1, scratch)) return __builtin_nan("");
  return double{logits[level]} - double{largest(logits, levels)} - std::log(sum(scratch, levels));
}

}  // namespace
}  // namespace pcf::cpu

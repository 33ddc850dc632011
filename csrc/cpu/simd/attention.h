// The average of pixels' values, weighed by how one query meets their keys.
#pragma once

#include "cpu/simd/drawing.h"
#include "cpu/simd/exponential.h"
#include "cpu/simd/kernels.h"
#include "cpu/simd/vector.h"

namespace pcf::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kMostVectors = 4;  // of one average, for each of kPhases: of 32 registers
#else
constexpr int kMostVectors = 2;
#endif
constexpr int kPhases = 4;  // sums that do not wait for each other: key j is in phase j % kPhases

// The scores of kKeysTogether keys, also of those that do not count.
template <class T, class E>
void meet(const Query<T, E>& q, const E* keys, T* scores) {
  constexpr int kAll = kKeysTogether / kLanes<T>, kTogether = kAll < 8 ? kAll : 8;
  for (int k = 0; k < kAll; k += kTogether) {
    Vec<T> sums[kTogether] = {};
    const E* next = keys + k * kLanes<T>;
    for (int d = 0; d < q.depth; d++, next += kKeysTogether) {
      for (int v = 0; v < kTogether; v++)  // of its next keys, which lie behind what other heads read of these
        __builtin_prefetch(next + kKeysTogether * q.key_stride + v * kLanes<T>, 0, kIntoL2);
      const Vec<T> x = broadcast(q.query[d]);
      for (int v = 0; v < kTogether; v++) sums[v] += x * load_wide<T>(next + v * kLanes<T>);
    }
    for (int v = 0; v < kTogether; v++) store(scores + (k + v) * kLanes<T>, sums[v]);
  }
}

// So many vectors of the average, from channel `first` on.
template <int vectors, class T, class E>
void average(const Query<T, E>& q, T scale, int first) {
  constexpr int kAhead = 32;  // keys
  Vec<T> sums[kPhases][vectors] = {};
  for (int r = 0; r < q.count; r++) {
    int j = q.ranges[r].first;
    const int end = q.ranges[r].end;
    const E* values = q.values + j * q.value_stride + first;
    const auto add = [&](int phase) {
      __builtin_prefetch(values + kAhead * q.value_stride, 0, kIntoL2);
      const Vec<T> weight = broadcast(q.weights[j]);
      for (int v = 0; v < vectors; v++) sums[phase][v] += weight * load_wide<T>(values + v * kLanes<T>);
      j++, values += q.value_stride;
    };
    // Each phase has a loop, or a turn, of its own, so that all sums stay in registers.
    if (j % kPhases == 1 && j < end) add(1);
    if (j % kPhases == 2 && j < end) add(2);
    if (j % kPhases == 3 && j < end) add(3);
    for (; j + kPhases <= end;) add(0), add(1), add(2), add(3);
    if (j < end) add(0);
    if (j < end) add(1);
    if (j < end) add(2);
  }
  for (int v = 0; v < vectors; v++)
    store(q.out + first + v * kLanes<T>, ((sums[0][v] + sums[1][v]) + (sums[2][v] + sums[3][v])) * scale);
}

// q.weights = what values are multiplied with, but for a factor, which is returned. Sums go through the keys in order,
// in parts of so many, whatever the registers' width.
template <class T, class E>
T weigh_keys(const Query<T, E>& q) {
  T largest = -__builtin_huge_val();
  for (int r = 0; r < q.count; r++) {
    const auto [begin, end] = q.ranges[r];
    for (int first = begin / kKeysTogether * kKeysTogether; first < end; first += kKeysTogether) {
      T scores[kKeysTogether];
      meet(q, q.keys + int64_t{first} * q.key_stride, scores);
      const int low = begin > first ? begin - first : 0,
                high = end - first < kKeysTogether ? end - first : kKeysTogether;
      for (int j = low; j < high; j++) {
        const T score = scores[j] * (q.scale ? q.scale[first + j] : T(1)) + (q.added ? q.added[first + j] : T(0));
        q.weights[first + j] = score;
        largest = score > largest || score != score ? score : largest;
      }
    }
  }
  double total = q.epsilon;
  for (int r = 0; r < q.count; r++) {
    T* const weights = q.weights + q.ranges[r].first;
    const int n = q.ranges[r].end - q.ranges[r].first;
    for (int j = 0; j < n; j++) weights[j] = exponential(weights[j] - largest);
    total += sum(weights, n);
    if (q.factors)
      for (int j = 0; j < n; j++) weights[j] *= q.factors[q.ranges[r].first + j];
  }
  // A mask that does not vanish makes the result NaN, which the caller tells of.
  const bool counts = q.count > 0 && !(largest - q.fill >= q.vanishes);
  return counts ? T(__builtin_nan("")) : q.count ? static_cast<T>(1 / total) : T(0);
}

template <class T, class E>
void attend(const Query<T, E>& q) {
  const T scale = q.query ? weigh_keys(q) : T(1);
  for (int r = 0; !q.query && r < q.count; r++)
    for (int j = q.ranges[r].first; j < q.ranges[r].end; j++) q.weights[j] = q.factors ? q.factors[j] : T(1);
  int c = 0;
  for (; c + kMostVectors * kLanes<T> <= q.width; c += kMostVectors * kLanes<T>) average<kMostVectors>(q, scale, c);
  for (; c + 2 * kLanes<T> <= q.width; c += 2 * kLanes<T>) average<2>(q, scale, c);
  for (; c + kLanes<T> <= q.width; c += kLanes<T>) average<1>(q, scale, c);
  for (; c < q.width; c++) {
    T sums[kPhases] = {};
    for (int r = 0; r < q.count; r++)
      for (int j = q.ranges[r].first; j < q.ranges[r].end; j++)
        sums[j % kPhases] += q.weights[j] * convert<T>(q.values[j * q.value_stride + c]);
    q.out[c] = ((sums[0] + sums[1]) + (sums[2] + sums[3])) * scale;
  }
}

}  // namespace
}  // namespace pcf::cpu

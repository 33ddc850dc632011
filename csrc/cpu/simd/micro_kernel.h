// The product of rows with packed weights: M rows by G blocks of channels in registers.
#pragma once

#include <cstdint>

#include "cpu/simd/kernels.h"
#include "cpu/simd/vector.h"

namespace pcf::cpu {
namespace {

// -- weights in words, and the x that they go with, of which Factor is what a word is multiplied with: `Same` keeps one
// T in a word, `Bf16` two depths in 32 bits, the even one in the lower half

template <class T>
struct Same {
  static constexpr int depths = 1;
  using X = T;
  using Word = T;
  using Factor = T;
  static Vec<T> factor(const T* x, int k) { return broadcast(x[k]); }
  static Vec<T> expand(Vec<T> word, int) { return word; }
  static void multiply_add(Vec<T>& sum, Vec<T> x, Vec<T> w) { sum += x * w; }
  static void put(Word* word, int, T w) { *word = w; }
};

struct Bf16 : Same<float> {
  static constexpr int depths = 2;
  using Word = uint32_t;
  static Vec<float> expand(Vec<uint32_t> word, int odd) { return (Vec<float>)(odd ? word & 0xffff0000u : word << 16); }
  static void put(Word* word, int odd, float w) {  // the upper half of w, to which the passes have rounded it
    const uint32_t bits = __builtin_bit_cast(uint32_t, w);
    *word |= odd ? bits & 0xffff0000u : bits >> 16;
  }
};

// Asks for so many bytes of weights, far ahead of those at w, to be brought into L2. What comes from L3 or memory would
// else be waited for at each page, where the processor's own prefetching ends. What is in L2 does not become slower.
template <int kBytes>
inline void fetch_ahead(const char* w) {
  constexpr int kAhead = 4096;
#pragma GCC unroll 32
  for (int line = 0; line < kBytes; line += 64) __builtin_prefetch(w + kAhead + line, 0, kIntoL2);
}

// -- M rows by G blocks; `next`: what is fetched into L2 meanwhile, or null for what is ahead in the same blocks

template <int N>
struct Constant {
  constexpr operator int() const { return N; }
};

template <class T, class W, int M, int G>
void tile(Rows<const typename W::X> rows, const char* w, int64_t block_bytes, const char* next, int depth,
          const Result<T>& result, int channel) {
  using Word = typename W::Word;
  using Factor = typename W::Factor;
  const typename W::X* x[M];
  Vec<T> sum[M][G * kVectors];
#pragma GCC unroll 16
  for (int m = 0; m < M; m++) {
    x[m] = rows[m];
    if constexpr (M <= 4)  // another core has just written half of it
      for (int64_t b = 0; b < int64_t{depth} * int64_t{sizeof(Factor)}; b += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(x[m]) + b);
#pragma GCC unroll 16
    for (int j = 0; j < G * kVectors; j++) sum[m][j] = load(result.from[m] + channel + j * kLanes<T>);
  }

  // Multiplies with the words at depth k, which hold `count` depths. With one row, each word is loaded once and
  // expanded at once. With several, the weights of one depth stay in registers while the rows pass.
  const auto word_at = [&](int k, int j) __attribute__((always_inline)) {
    return load(reinterpret_cast<const Word*>(w + j / kVectors * block_bytes) + int64_t{k} / W::depths * kBlock<T> +
                j % kVectors * kLanes<T>);
  };
  const auto multiply = [&](int k, auto count) __attribute__((always_inline)) {
    if constexpr (M == 1) {
      Vec<Factor> xk[count];
      for (int d = 0; d < count; d++) xk[d] = W::factor(x[0], k + d);
#pragma GCC unroll 16
      for (int j = 0; j < G * kVectors; j++) {
        const auto word = word_at(k, j);
        for (int d = 0; d < count; d++) W::multiply_add(sum[0][j], xk[d], W::expand(word, d));
      }
    } else {
      for (int d = 0; d < count; d++) {
        Vec<Factor> wk[G * kVectors];
#pragma GCC unroll 16
        for (int j = 0; j < G * kVectors; j++) wk[j] = W::expand(word_at(k, j), d);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
          const Vec<Factor> xk = W::factor(x[m], k + d);
#pragma GCC unroll 16
          for (int j = 0; j < G * kVectors; j++) W::multiply_add(sum[m][j], xk, wk[j]);
        }
      }
    }
  };
  const auto prefetch = [&](int k) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int g = 0; g < G; g++)
      fetch_ahead<kBlock<T> * sizeof(Word)>(w + g * block_bytes + k / W::depths * (kBlock<T> * sizeof(Word)));
  };
  int k = 0;
  for (; k + W::depths <= depth; k += W::depths) {
    if constexpr (M >= 4) {  // with fewer rows, it takes longer than it saves
      if (next)
        __builtin_prefetch(next + k / W::depths * (kBlock<T> * sizeof(Word) / 2), 0, kIntoL2);
      else
        prefetch(k);
    }
    multiply(k, Constant<W::depths>());
  }
  if (W::depths == 2 && k < depth) multiply(k, Constant<1>());

  const auto each_sum = [&](auto f) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
#pragma GCC unroll 16
      for (int j = 0; j < G * kVectors; j++) f(sum[m][j], m, channel + j * kLanes<T>);
  };
  if (result.added) each_sum([&](Vec<T>& s, int m, int c) { s += load(result.added[m] + c); });
  if (result.relu) each_sum([&](Vec<T>& s, int, int) { s = s < 0 ? Vec<T>{} : s; });  // keeps NaN
  each_sum([&](Vec<T>& s, int m, int c) { store<T>(result.out[m] + c, s); });
#if defined(__AVX512BF16__)
  if constexpr (sizeof(T) == 4)
    if (result.rounded) each_sum([&](Vec<T>& s, int m, int c) { store_rounded(result.rounded[m] + c, s); });
#endif
}

// With few rows, several blocks are done at once, so that enough sums are in flight to hide multiply-add's latency.
constexpr int group_of(int rows) { return rows == 1 ? 4 : 2 * rows <= kMaxRows ? 2 : 1; }

template <class T, class W, int M>
void rows_by_blocks(int rows, Rows<const typename W::X> x, Packed w, int first, int last, const char* next,
                    const Result<T>& result) {
  if constexpr (M > 0) {
    if (rows < M) return rows_by_blocks<T, W, M - 1>(rows, x, w, first, last, next, result);
    constexpr int G = group_of(M);
    int b = first;
    for (; b + G <= last; b += G) tile<T, W, M, G>(x, w.block(b), w.block_bytes, next, w.depth, result, b * kBlock<T>);
    if constexpr (G > 2)
      for (; b + 2 <= last; b += 2)
        tile<T, W, M, 2>(x, w.block(b), w.block_bytes, next, w.depth, result, b * kBlock<T>);
    for (; b < last; b++) tile<T, W, M, 1>(x, w.block(b), w.block_bytes, next, w.depth, result, b * kBlock<T>);
  }
}

// With more rows than a tile has, a block of weights stays in the caches while they pass; so many tiles of them that
// the rows do so, too, while the blocks pass.
template <class T, class W>
void matmul_as(Rows<const typename W::X> x, int rows, Packed w, int first, int last, const Result<T>& result) {
  constexpr int kTilesTogether = 16;
  const auto parted = [](int n, int part, int parts) { return static_cast<int>(int64_t{n} * part / parts); };
  const int tiles = (rows + kMaxRows - 1) / kMaxRows, groups = (tiles + kTilesTogether - 1) / kTilesTogether;
  const int step = tiles == 1 ? last - first : 1;
  // What comes into L2 beside a group's t-th tile: half of the next block, since a tile passes faster than memory gives
  // the whole of it. Only the first block is waited for, and there is nothing beside the other tiles.
  const auto next = [&](int b, int t) -> const char* {
    const int half = t - (b == first);
    if (tiles == 1 || half < 0) return nullptr;
    const char* const then = b + 1 < last ? w.block(b + 1) : static_cast<const char*>(w.after);
    return !then || half > 1 ? w.block(b) : then + half * (w.block_bytes / 2);
  };
  for (int g = 0; g < groups; g++)
    for (int b = first; b < last; b += step)
      for (int t = parted(tiles, g, groups); t < parted(tiles, g + 1, groups); t++) {
        const int r = parted(rows, t, tiles), end = parted(rows, t + 1, tiles);
        rows_by_blocks<T, W, kMaxRows>(end - r, x + r, w, b, b + step, next(b, t - parted(tiles, g, groups)),
                                       result.behind(r));
      }
}

}  // namespace
}  // namespace pcf::cpu

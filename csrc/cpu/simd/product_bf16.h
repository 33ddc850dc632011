// The product of rows with weights of bf16. Processors that multiply bf16 take rows of bf16 too, so rows are rounded
// first: to nearest, ties to even, denormals to zero. Sums are float32, but in them, too, these processors take
// denormals for zero. Other processors expand the weights.
#pragma once

#include "cpu/simd/micro_kernel.h"

namespace pcf::cpu {
namespace {

#if defined(__AVX512BF16__)

constexpr int kMostRows = 32, kMostDepth = 512;  // that are rounded at once
constexpr int kDepthStep = 32;                   // they are padded to a multiple of this

// A few rows that are rounded: row i begins at first + i * pitch. `padded` is the depth, padded with zeros.
struct RoundedRows {
  const Bfloat16* first;
  int rows, depth, padded, pitch;
};

// Rounds n elements; behind them, zeros may be written up to a multiple of 32, if there is `room`.
void round_row(const float* x, int n, Bfloat16* to, bool room) {
  int k = 0;
  for (; k + 32 <= n; k += 32)
    _mm512_storeu_si512(to + k, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + k + 16), _mm512_loadu_ps(x + k)));
  if (k == n) return;
  const __mmask32 live = (__mmask32{1} << (n - k)) - 1;
  const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(live), x + k);
  const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(live >> 16), x + k + 16);
  _mm512_mask_storeu_epi16(to + k, room ? ~__mmask32{0} : live, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

void round_rows(Rows<const float> in, int rows, int first, int last, Rows<Bfloat16> out) {
  for (int r = 0; r < rows; r++) round_row(in[r] + first, last - first, out[r] + first, false);
}

#if defined(__AMX_BF16__)

constexpr int kTileRows = 16, kDepthsOfRounded = kDepthStep;
constexpr int padded_depth(int depth) { return (depth + kDepthStep - 1) / kDepthStep * kDepthStep; }

// The tile registers 0...3 hold the sums of two tiles of rows by two of channels, 4 and 5 their x, 6 and 7 weights.
class Multiplier {
 public:
  ~Multiplier() { _tile_release(); }

  void operator()(const RoundedRows& x, Packed w, int first, int last, const Result<float>& result) {
    set_rows(x.rows > kTileRows ? (x.rows + 1) / 2 : x.rows, x.rows > kTileRows ? x.rows / 2 : 0);
    alignas(64) float sums[kMostRows * kBlock<float>];
    for (int b = first; b < last; b++) {
      multiply(x, static_cast<const char*>(w.data) + b * w.block_bytes, sums);
      for (int i = 0; i < x.rows; i++)
        for (int j = 0; j < kBlock<float>; j += kLanes<float>) {
          const int c = b * kBlock<float> + j;
          Vec<float> sum = load(result.from[i] + c) + load(sums + i * kBlock<float> + j);
          if (result.added) sum += load(result.added[i] + c);
          if (result.relu) sum = sum < 0 ? Vec<float>{} : sum;
          store<float>(result.out[i] + c, sum);
          if (result.rounded) store_rounded(result.rounded[i] + c, sum);
        }
    }
  }

 private:
  void set_rows(int first, int second) {
    if (first == first_ && second == second_) return;
    first_ = first, second_ = second;
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    const int rows[] = {first, first, second, second, first, second, kTileRows, kTileRows};
    for (int t = 0; t < 8; t++)
      if (rows[t] > 0) config.row_bytes[t] = 64, config.rows[t] = static_cast<uint8_t>(rows[t]);
    _tile_loadconfig(&config);
  }

  void multiply(const RoundedRows& x, const char* w, float* sums) const {
    constexpr int64_t kRow = kBlock<float> * sizeof(float);  // of weights and of sums
    const int64_t pitch = x.pitch * sizeof(Bfloat16);
    const Bfloat16 *above = x.first, *below = above + first_ * x.pitch;
    __asm__ volatile("" ::: "memory");  // compilers do not know that tiles are loaded from memory
    _tile_zero(0);
    _tile_zero(1);
    if (second_ == 0) {
      for (int k = 0; k < x.padded; k += kDepthStep, w += kDepthStep / 2 * kRow) {
        _tile_loadd(4, above + k, pitch);
        _tile_loadd(6, w, kRow);
        _tile_loadd(7, w + 64, kRow);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
      }
    } else {
      _tile_zero(2);
      _tile_zero(3);
      for (int k = 0; k < x.padded; k += kDepthStep, w += kDepthStep / 2 * kRow) {
        _tile_loadd(4, above + k, pitch);
        _tile_loadd(5, below + k, pitch);
        _tile_loadd(6, w, kRow);
        _tile_loadd(7, w + 64, kRow);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(2, sums + first_ * kBlock<float>, kRow);
      _tile_stored(3, sums + first_ * kBlock<float> + 16, kRow);
    }
    _tile_stored(0, sums, kRow);
    _tile_stored(1, sums + 16, kRow);
  }

  int first_ = 0, second_ = 0;  // rows of the two tiles
};

#else

constexpr int kDepthsOfRounded = 2;
constexpr int padded_depth(int depth) { return depth + depth % 2; }

// Words of two depths, for x as well.
struct Pairs : Same<uint32_t> {
  using X = Bfloat16;
  static Vec<uint32_t> factor(const Bfloat16* x, int pair) {
    uint32_t both;
    __builtin_memcpy(&both, x + int64_t{2} * pair, sizeof both);
    return broadcast(both);
  }
  static void multiply_add(Vec<float>& sum, Vec<uint32_t> x, Vec<uint32_t> w) {
    sum = (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
  }
};

struct Multiplier {
  void operator()(const RoundedRows& x, Packed w, int first, int last, const Result<float>& result) {
    const Bfloat16* rows[kMostRows];
    for (int i = 0; i < x.rows; i++) rows[i] = x.first + i * x.pitch;
    w.depth = (x.depth + 1) / 2;
    matmul_as<float, Pairs>(rows, x.rows, w, first, last, result);
  }
};

#endif

// Multiplies copies of the rows, a few at a time. copy(x, depth, to): copies and rounds, and pads with zeros.
template <class X, class Copy>
void matmul_of_copies(Rows<const X> x, int rows, Packed w, int first, int last, const Result<float>& result,
                      const Copy& copy) {
  alignas(64) Bfloat16 copies[kMostRows * (kMostDepth + kDepthStep)];
  Multiplier multiply;
  const int groups = (rows + kMostRows - 1) / kMostRows;
  for (int g = 0; g < groups; g++) {
    const int r = int64_t{rows} * g / groups, n = int64_t{rows} * (g + 1) / groups - r;
    for (int k = 0; k < w.depth; k += kMostDepth) {
      const int depth = w.depth - k < kMostDepth ? w.depth - k : kMostDepth;
      const int steps = (depth + kDepthStep - 1) / kDepthStep;
      const int pitch = (steps | 1) * kDepthStep;  // an odd number of cache lines, so that rows lie in different sets
      for (int i = 0; i < n; i++) copy(x[r + i] + k, depth, copies + i * pitch);
      Packed part = w;
      part.data = static_cast<const char*>(w.data) + int64_t{k} / 2 * kBlock<float> * sizeof(Bf16::Word);
      Result<float> sums = result.behind(r);
      if (k > 0) sums.from = sums.out;
      if (k + depth < w.depth) sums.added = nullptr, sums.relu = false, sums.rounded = nullptr;
      multiply({copies, n, depth, steps * kDepthStep, pitch}, part, first, last, sums);
    }
  }
}

void matmul_bf16(Rows<const float> x, int rows, Packed w, int first, int last, const Result<float>& result) {
  matmul_of_copies(x, rows, w, first, last, result,
                   [](const float* x, int depth, Bfloat16* to) { round_row(x, depth, to, true); });
}

void matmul_rounded(Rows<const Bfloat16> x, int rows, Packed w, int first, int last, const Result<float>& result) {
#if defined(__AMX_BF16__)
  matmul_of_copies(x, rows, w, first, last, result,
                   [](const Bfloat16* x, int depth, Bfloat16* to) { __builtin_memcpy(to, x, depth * sizeof(*x)); });
#else
  w.depth /= 2;
  matmul_as<float, Pairs>(x, rows, w, first, last, result);
#endif
}

#else

constexpr int padded_depth(int depth) { return depth + depth % 2; }

void matmul_bf16(Rows<const float> x, int rows, Packed w, int first, int last, const Result<float>& result) {
  matmul_as<float, Bf16>(x, rows, w, first, last, result);
}

#endif

}  // namespace
}  // namespace pcf::cpu

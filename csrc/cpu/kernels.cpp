// One instruction set's kernels. Everything here has internal linkage or the instruction set in its name, and no
// standard template is instantiated: else the linker could pick wide code for a narrow processor.
#include "kernels.h"

#include "exponential.h"

#ifndef PCF_ISA
#error "PCF_ISA names the instruction set: sse2, avx2, avx512 or portable"
#endif

namespace pcf {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kMaxRows = 12;  // 32 registers: 24 sums
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kMaxRows = 6;   // 16 registers: 12 sums, 2 weights, 1 broadcast
#else
constexpr int kVectorBytes = 16, kMaxRows = 6;
#endif
constexpr int kVectors = 2;  // per block

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);
template <class T>
constexpr int kBlock = kVectors * kLanes<T>;

template <class T>
inline Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
inline void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}
template <class T>
inline Vec<T> broadcast(T x) {
  return x - Vec<T>{};  // x - 0 is x to the bit, so this is one broadcast; x + 0 is not, for x = -0
}

// -- weights in words: `Same` keeps one T to a word; `Bf16` a pair of depths in 32 bits, the even depth below

template <class T>
struct Same {
  static constexpr int depths = 1;
  using Word = T;
  static Vec<T> expand(Vec<T> word, int) { return word; }
  static void put(Word* word, int, T w) { *word = w; }
};

struct Bf16 {
  static constexpr int depths = 2;
  using Word = uint32_t;
  static Vec<float> expand(Vec<uint32_t> word, int odd) {
    return (Vec<float>)(odd ? word & 0xffff0000u : word << 16);
  }
  static void put(Word* word, int odd, float w) {  // the upper half of w: the passes have rounded it to that
    uint32_t bits;
    __builtin_memcpy(&bits, &w, 4);
    *word |= odd ? bits & 0xffff0000u : bits >> 16;
  }
};

template <class T, class W>
constexpr int64_t bytes_of_block(int depth) {
  return int64_t{(depth + W::depths - 1) / W::depths} * kBlock<T> * sizeof(typename W::Word);
}

template <class T, class W>
void pack_blocks(const T* weight, int depth, int channels, char* packed) {
  const int blocks = (channels + kBlock<T> - 1) / kBlock<T>;
  __builtin_memset(packed, 0, blocks * bytes_of_block<T, W>(depth));
  for (int c = 0; c < channels; c++) {
    auto* words = reinterpret_cast<typename W::Word*>(packed + c / kBlock<T> * bytes_of_block<T, W>(depth));
    for (int k = 0; k < depth; k++)
      W::put(words + int64_t{k / W::depths} * kBlock<T> + c % kBlock<T>, k % W::depths, weight[int64_t{k} * channels + c]);
  }
}

// -- matrix product: M rows by G blocks of channels in registers

template <int N>
struct Constant {
  constexpr operator int() const { return N; }
};

template <class T, class W, int M, int G>
void tile(Rows<const T> rows, const char* w, int64_t block_bytes, int depth, Rows<const T> from, Rows<T> out, int channel) {
  using Word = typename W::Word;
  const T* x[M];
  Vec<T> sum[M][G * kVectors];
#pragma GCC unroll 16
  for (int m = 0; m < M; m++) {
    x[m] = rows[m];
    if constexpr (M <= 4)  // half of it was written by another core just now
      for (int k = 0; k < depth; k += 64 / sizeof(T)) __builtin_prefetch(x[m] + k);
#pragma GCC unroll 16
    for (int j = 0; j < G * kVectors; j++) sum[m][j] = load(from[m] + channel + j * kLanes<T>);
  }

  // The words at depth k, times the `count` depths they hold. One row: each word is loaded once and expanded at once.
  // Several: the weights of one depth stay in registers while the rows pass.
  const auto word_at = [&](int k, int j) __attribute__((always_inline)) {
    return load(reinterpret_cast<const Word*>(w + j / kVectors * block_bytes) + int64_t{k} / W::depths * kBlock<T> +
                j % kVectors * kLanes<T>);
  };
  const auto multiply = [&](int k, auto count) __attribute__((always_inline)) {
    if constexpr (M == 1) {
      Vec<T> xk[count];
      for (int d = 0; d < count; d++) xk[d] = broadcast(x[0][k + d]);
#pragma GCC unroll 16
      for (int j = 0; j < G * kVectors; j++) {
        const auto word = word_at(k, j);
        for (int d = 0; d < count; d++) sum[0][j] += xk[d] * W::expand(word, d);
      }
    } else {
      for (int d = 0; d < count; d++) {
        Vec<T> wk[G * kVectors];
#pragma GCC unroll 16
        for (int j = 0; j < G * kVectors; j++) wk[j] = W::expand(word_at(k, j), d);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
          const Vec<T> xk = broadcast(x[m][k + d]);
#pragma GCC unroll 16
          for (int j = 0; j < G * kVectors; j++) sum[m][j] += xk * wk[j];
        }
      }
    }
  };
  int k = 0;
  for (; k + W::depths <= depth; k += W::depths) multiply(k, Constant<W::depths>());
  if (W::depths == 2 && k < depth) multiply(k, Constant<1>());

#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
#pragma GCC unroll 16
    for (int j = 0; j < G * kVectors; j++) store<T>(out[m] + channel + j * kLanes<T>, sum[m][j]);
}

// Few rows take several blocks at once, so that enough sums are in flight to hide the latency of multiply-add.
constexpr int group_of(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

template <class T, class W, int M>
void rows_by_blocks(int rows, Rows<const T> x, Packed w, int first, int last, Rows<const T> from, Rows<T> out) {
  if constexpr (M > 0) {
    if (rows < M) return rows_by_blocks<T, W, M - 1>(rows, x, w, first, last, from, out);
    constexpr int G = group_of(M);
    const auto block = [&](int b) { return static_cast<const char*>(w.data) + b * w.block_bytes; };
    int b = first;
    for (; b + G <= last; b += G) tile<T, W, M, G>(x, block(b), w.block_bytes, w.depth, from, out, b * kBlock<T>);
    if constexpr (G > 2)
      for (; b + 2 <= last; b += 2) tile<T, W, M, 2>(x, block(b), w.block_bytes, w.depth, from, out, b * kBlock<T>);
    for (; b < last; b++) tile<T, W, M, 1>(x, block(b), w.block_bytes, w.depth, from, out, b * kBlock<T>);
  }
}

template <class T, class W>
void matmul_as(Rows<const T> x, int rows, Packed w, int first, int last, Rows<const T> from, Rows<T> out) {
  const int tiles = (rows + kMaxRows - 1) / kMaxRows;
  const int step = tiles == 1 ? last - first : 1;  // more rows: one block stays in L1 while they pass
  for (int b = first; b < last; b += step)
    for (int t = 0; t < tiles; t++) {
      const int r = int64_t{rows} * t / tiles, end = int64_t{rows} * (t + 1) / tiles;
      rows_by_blocks<T, W, kMaxRows>(end - r, x + r, w, b, b + step, from + r, out + r);
    }
}

template <class T>
void matmul(Rows<const T> x, int rows, Packed w, int first, int last, Rows<const T> from, Rows<T> out) {
  if constexpr (sizeof(T) == 4)
    if (w.weights == Weights::bf16) return matmul_as<T, Bf16>(x, rows, w, first, last, from, out);
  matmul_as<T, Same<T>>(x, rows, w, first, last, from, out);
}

template <class T>
int64_t block_bytes(int depth, Weights weights) {
  return sizeof(T) == 4 && weights == Weights::bf16 ? bytes_of_block<T, Bf16>(depth) : bytes_of_block<T, Same<T>>(depth);
}

template <class T>
void pack(const T* weight, int depth, int channels, Weights weights, void* packed) {
  if constexpr (sizeof(T) == 4)
    if (weights == Weights::bf16) return pack_blocks<T, Bf16>(weight, depth, channels, static_cast<char*>(packed));
  pack_blocks<T, Same<T>>(weight, depth, channels, static_cast<char*>(packed));
}

// -- steps

inline double error_function(double x) { return std::erf(x); }
inline float error_function(float x) { return std::erf(x); }
inline double logarithm_of_1_plus(double x) { return std::log1p(x); }
inline float logarithm_of_1_plus(float x) { return std::log1p(x); }
inline double raised(double x, double exponent) { return std::pow(x, exponent); }
inline float raised(float x, float exponent) { return std::pow(x, exponent); }
inline double square_root(double x) { return std::sqrt(x); }
inline float square_root(float x) { return std::sqrt(x); }

template <class T>
void layer_norm(const T* all, int channels, T epsilon, T* x, int n) {
  double sum = 0, squares = 0;
  for (int c = 0; c < channels; c++) sum += all[c];
  const double mean = sum / channels;
  for (int c = 0; c < channels; c++) squares += (all[c] - mean) * (all[c] - mean);
  const T shift = static_cast<T>(mean), scale = static_cast<T>(1 / square_root(squares / channels + epsilon));
  for (int c = 0; c < n; c++) x[c] = (x[c] - shift) * scale;
}

// x: [rows, n], dense, channels from `first` on; operand: of the same rows.
template <class T>
void apply(const BoundStep<T>& step, Rows<const T> operand, T* x, int rows, int first, int n) {
  const T alpha = step.alpha;
  const auto each = [&](auto f) {
    for (int i = 0; i < rows * n; i++) x[i] = f(x[i]);
  };
  const auto each_channel = [&](auto f) {
    for (int r = 0; r < rows; r++)
      for (int c = 0; c < n; c++) x[r * n + c] = f(x[r * n + c], first + c);
  };
  const auto each_with_operand = [&](auto f) {
    for (int r = 0; r < rows; r++)
      for (int c = 0; c < n; c++) x[r * n + c] = f(x[r * n + c], operand[r][first + c]);
  };
  switch (step.kind) {
    case StepKind::affine: {
      const T *scale = step.scale, *shift = step.shift;
      return each_channel([=](T v, int c) { return v * scale[c] + shift[c]; });
    }
    case StepKind::add:
    case StepKind::add_condition:
      return each_with_operand([=](T v, T o) { return v + alpha * o; });
    case StepKind::multiply:
    case StepKind::multiply_condition:
      return each_with_operand([](T v, T o) { return v * o; });
    case StepKind::relu:
      return each([](T v) { return v < 0 ? T(0) : v; });  // keeps NaN
    case StepKind::leaky_relu:
      return each([=](T v) { return v < 0 ? v * alpha : v; });
    case StepKind::elu:
      return each([=](T v) { return v < 0 ? alpha * (exponential(v) - T(1)) : v; });
    case StepKind::silu:
      return each([](T v) { return v * logistic(v); });
    case StepKind::sigmoid:
      return each([](T v) { return logistic(v); });
    case StepKind::tanh:
      return each([](T v) { return hyperbolic_tangent(v); });
    case StepKind::gelu:
      return each([](T v) { return v * T(0.5) * (T(1) + error_function(v * T(0.70710678118654752440))); });
    case StepKind::gelu_tanh:
      return each([](T v) {
        const T inner = T(0.79788456080286535588) * (v + T(0.044715) * v * v * v);
        return v * T(0.5) * (T(1) + hyperbolic_tangent(inner));
      });
    case StepKind::softplus:
      return each([=](T v) {
        return v * alpha > 20 ? v : logarithm_of_1_plus(exponential(v * alpha)) / alpha;  // 20 as in PyTorch
      });
    case StepKind::power:
      if (alpha == 2) return each([](T v) { return v * v; });
      if (alpha == -1) return each([](T v) { return T(1) / v; });
      if (alpha == T(0.5)) return each([](T v) { return square_root(v); });
      if (alpha == T(-0.5)) return each([](T v) { return T(1) / square_root(v); });
      return each([=](T v) { return raised(v, alpha); });
    case StepKind::layer_norm:
      for (int r = 0; r < rows; r++) layer_norm(operand[r], step.operand_channels, alpha, x + r * n, n);
      return;
  }
}

// Rows pass together, as many as fit, so that the latency of exp and division hides.
template <class T>
void epilogue(const BoundStep<T>* steps, int n_steps, int rows, int first, int last, Rows<const T> in, Rows<T> out) {
  constexpr int kChunk = 512;
  alignas(64) T x[kChunk];
  for (int c = first; c < last; c += kChunk) {
    const int n = last - c < kChunk ? last - c : kChunk, together = kChunk / n;
    for (int r = 0; r < rows; r += together) {
      const int count = rows - r < together ? rows - r : together;
      for (int i = 0; i < count; i++) __builtin_memcpy(x + i * n, in[r + i] + c, n * sizeof(T));
      for (int s = 0; s < n_steps; s++) apply(steps[s], steps[s].operand ? steps[s].operand + r : nullptr, x, count, c, n);
      for (int i = 0; i < count; i++) __builtin_memcpy(out[r + i] + c, x + i * n, n * sizeof(T));
    }
  }
}

// -- draw

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

template <class T>
constexpr Kernels<T> table() {
  return {kBlock<T>, block_bytes<T>, pack<T>, matmul<T>, epilogue<T>, weigh<T>, pick<T>, log_probability<T>};
}

}  // namespace

#define PCF_JOIN_(a, b) a##b
#define PCF_JOIN(a, b) PCF_JOIN_(a, b)
extern const Kernels<float> PCF_JOIN(kernels_f32_, PCF_ISA);
extern const Kernels<double> PCF_JOIN(kernels_f64_, PCF_ISA);
const Kernels<float> PCF_JOIN(kernels_f32_, PCF_ISA) = table<float>();
const Kernels<double> PCF_JOIN(kernels_f64_, PCF_ISA) = table<double>();

}  // namespace pcf

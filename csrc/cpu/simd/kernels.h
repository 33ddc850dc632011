// The arithmetic of the CPU sampler, compiled once per instruction set (kernels.cpp) and chosen at run time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/simd/element.h"
#include "program.h"

namespace pcf::cpu {

// A weight matrix [depth, channels] packed as blocks of `block` channels, each [depth][block], zero-padded.
struct Packed {
  const void* data;
  int depth;
  int64_t block_bytes;
  WeightFormat format;
  const void* after = nullptr;  // the block of the next product's matrix that it begins with, if that is known

  const char* block(int number) const { return static_cast<const char*>(data) + number * block_bytes; }
};

// Rows of a matrix: row r starts at rows[r].
template <class T>
using Rows = T* const*;

// What a product makes of each row r: out[r] = from[r] + x[r] . W, then + added[r], unless that is null, then relu
// where it is asked for, and rounded[r] = out[r], unless that is null. `from` may be `out` itself.
template <class T>
struct Result {
  Rows<const T> from;
  Rows<T> out;
  Rows<const T> added = nullptr;
  bool relu = false;
  Rows<Bfloat16> rounded = nullptr;  // only where the processor multiplies bf16
  Result behind(int rows) const {
    return {from + rows, out + rows, added ? added + rows : nullptr, relu, rounded ? rounded + rows : nullptr};
  }
};

// A step with its operand resolved for one call.
template <class T>
struct BoundStep {
  StepKind kind;
  T alpha;
  Rows<const T> operand;  // of steps that read a value or a condition
  const T *scale, *shift;
  int operand_channels = 0;  // of steps that read all of them
};

constexpr int kKeysTogether = 64;  // of an attention

constexpr int kMostMixed = 8;

// Arrays, of which each begins `apart` after the one before; at most kMostMixed.
template <class T>
struct Mixed {
  const T* first;
  int64_t apart;
  int count;
};

// One query of one head, or null, where factors are all that weighs the values. keys: of whole blocks of kKeysTogether
// pixels, [depth][kKeysTogether] each, of which the next begins after kKeysTogether * key_stride; values:
// [pixels][value_stride]; those that are not known yet hold any finite numbers. scale, added, factors: by pixel, or
// null. weights: room for a number for each pixel, in whole blocks. E: the element type of keys and values.
template <class T, class E>
struct Query {
  const T* query;
  const E *keys, *values;
  int64_t key_stride, value_stride;
  int depth, width;
  const KeyRange* ranges;
  int count;  // of the ranges
  const T *scale, *added, *factors;
  double epsilon;
  T fill, vanishes;
  T *weights, *out;  // out: [width]
};

template <class T>
struct Kernels {
  int block;  // output channels in a packed block
  // Where the processor multiplies bf16, x is rounded to it, too, if weights are. Depths of rows that are kept in bf16
  // are multiples of this; 0: the processor does not multiply bf16.
  int depths_of_rounded = 0;
  bool multiplies_bf16() const { return depths_of_rounded > 0; }

  // Gives the bytes of one packed block; packs weight [depth, channels] into all of its blocks.
  int64_t (&block_bytes)(int depth, WeightFormat);
  void (&pack)(const T* weight, int depth, int channels, WeightFormat, void* packed);

  // The product of x and W for the blocks first...last-1. Sums run over depth in the same order whatever the number of
  // rows, so a result does not depend on how images are batched. All rows of the result are padded to whole blocks.
  // Sums are in T, whatever the weights.
  void (&matmul)(Rows<const T> x, int rows, Packed, int first, int last, const Result<T>&);

  // The same of rows that are rounded already, by weights of bf16.
  void (*matmul_rounded)(Rows<const Bfloat16> x, int rows, Packed, int first, int last, const Result<T>&) = nullptr;

  // Rounds the channels first...last-1: to nearest, ties to even, denormals to zero.
  void (*round)(Rows<const T> in, int rows, int first, int last, Rows<Bfloat16> out) = nullptr;

  // out[r][c] = steps(in[r][c]) for channels first...last-1; `in` and `out` may be the same.
  void (&epilogue)(const BoundStep<T>* steps, int n_steps, int rows, int first, int last, Rows<const T> in,
                   Rows<T> out);

  // out[o] = from[o] + the sum over the arrays k of coefficients[o][k] * in[k], for n elements, a multiple of
  // `block`. from: null for zeros.
  void (&mix)(const Mixed<T>& in, const T* coefficients, int outputs, Rows<const T> from, Rows<T> out, int n);

  // Averages values by how a query meets their keys; NaN if what stands for masked scores, `fill`, is no `vanishes`
  // below the largest of them.
  void (&attend)(const Query<T, T>&);
  void (*attend_bf16)(const Query<T, Bfloat16>&) = nullptr;

  // exp((logits - largest) / temperature); at temperature 0, 1 for the first of the largest and 0 for all others.
  // False if a logit is not finite. `weights` may be `logits`.
  bool (&weigh)(const T* logits, int levels, double temperature, T* weights);

  // The smallest k with u < cdf_k of the weights; the last level with a weight if rounding leaves none.
  int (&pick)(const T* weights, int levels, double u);

  // ln softmax(logits)[level]. scratch: [levels].
  double (&log_probability)(const T* logits, int levels, int level, T* scratch);
};

// The kernels of an instruction set named in cpu_features.h.
template <class T>
const Kernels<T>& kernels(const char* isa);
template <>
const Kernels<float>& kernels<float>(const char* isa);
template <>
const Kernels<double>& kernels<double>(const char* isa);

}  // namespace pcf::cpu

// The arithmetic of the CPU sampler, compiled once per instruction set (kernels.cpp) and chosen at run time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "program.h"

namespace pcf {

// A weight matrix [depth, channels] packed as blocks of `block` channels, each [depth][block], zero-padded.
struct Packed {
  const void* data;
  int depth;
  int64_t block_bytes;
  Weights weights;
};

// Rows of a matrix: row r starts at rows[r].
template <class T>
using Rows = T* const*;

// A step with its operand resolved for one call.
template <class T>
struct BoundStep {
  StepKind kind;
  T alpha;
  Rows<const T> operand;  // add, multiply and conditions
  const T *scale, *shift;
};

template <class T>
struct Kernels {
  int block;  // output channels in a packed block

  // Bytes of one packed block, and packing of weight [depth, channels] into all of its blocks.
  int64_t (*block_bytes)(int depth, Weights);
  void (*pack)(const T* weight, int depth, int channels, Weights, void* packed);

  // out[r] = from[r] + x[r] . W for the blocks first...last-1. Sums run over depth in one order whatever the number
  // of rows, so a result does not depend on how images are batched. `from` may be `out` itself; from and out are
  // padded to whole blocks.
  void (*matmul)(Rows<const T> x, int rows, Packed, int first, int last, Rows<const T> from, Rows<T> out);

  // out[r][c] = steps(in[r][c]) for channels first...last-1; `in` and `out` may be the same.
  void (*epilogue)(const BoundStep<T>* steps, int n_steps, int rows, int first, int last, Rows<const T> in, Rows<T> out);

  // The smallest k with u < cdf_k of softmax(logits / temperature), the last level if rounding leaves none; argmax
  // at temperature 0. -1 if a logit is not finite. scratch: [levels], may be `logits`.
  int (*draw)(const T* logits, int levels, double temperature, double u, T* scratch);
};

// The kernels of an instruction set named in cpu_features.h.
template <class T>
const Kernels<T>& kernels(const char* isa);
template <>
const Kernels<float>& kernels<float>(const char* isa);
template <>
const Kernels<double>& kernels<double>(const char* isa);

}  // namespace pcf

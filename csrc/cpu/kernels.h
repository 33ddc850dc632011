// The arithmetic of the CPU sampler, compiled once per instruction set (kernels.cpp) and chosen at run time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "program.h"

namespace pcf {

// Rows of a matrix that lie at two strides: `outer` groups of `inner` rows.
template <class T>
struct Rows {
  T* data;
  int64_t outer_stride, inner_stride;
};

// A weight matrix [depth, channels] packed as blocks of `block` channels, each [depth][block], zero-padded.
struct Packed {
  const void* data;
  int depth;
  int64_t block_bytes;
  Weights weights;
};

// A step with its operand resolved for one call: the operand's row m starts at operand.data + m * strides.
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

  // out[m] = from[m] + x[m] . W for the blocks first...last-1. Sums run over depth in one order whatever the
  // number of rows, so a result does not depend on how images are batched. `from` may be `out` itself; x, from
  // and out are rows of T, out padded to whole blocks.
  void (*matmul)(Rows<const T> x, int outer, int inner, Packed, int first, int last, Rows<const T> from, Rows<T> out);

  // out[m][c] = steps(in[m][c]) for channels first...last-1; `in` and `out` may be the same.
  void (*epilogue)(const BoundStep<T>* steps, int n_steps, int outer, int inner, int first, int last,
                   Rows<const T> in, Rows<T> out);

  // The smallest k with u < cdf_k of softmax(logits / temperature), the last level if rounding leaves none; argmax
  // at temperature 0. -1 if a logit is not finite. scratch: [levels], may be `logits`.
  int (*draw)(const T* logits, int levels, double temperature, double u, T* scratch);
};

// The kernels of an instruction set named in cpu_features.h.
template <class T>
const Kernels<T>& kernels(const char* isa);

}  // namespace pcf

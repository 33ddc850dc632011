// The pointwise arithmetic of the layers' ops, compiled once per instruction set (layer_kernels.cpp). E: float, double
// or Bfloat16, which is computed in float32.
#pragma once

#include <cstdint>

#include "cpu/simd/element.h"

namespace pcf::cpu {

// n values of each half of a gate's input. linear: a itself instead of tanh(a). condition_a, condition_b: added to a
// and b; null for none, one value each (condition_stride 0), or n values each (1).
template <class E>
struct GateInput {
  bool linear;
  const E *a, *b, *condition_a, *condition_b;
  int64_t condition_stride;
};

// Logits of n sub-pixels: logit k of sub-pixel i is data[i * stride + k * level_stride].
template <class E>
struct Logits {
  const E* data;
  int64_t stride, level_stride;
  int levels;
};

// A pixel of a recurrence. Its gates i, f, g and o lie one after the other, `hidden` of each.
template <class E>
struct CellForward {
  const Computed<E>* products;  // of the states before it: i, f, g and o, kCellChannels of each
  const E* sums;
  Computed<E>*c, *h;  // c: the cell before it -> its own
  E *out, *gates;     // gates: null if they are not kept
};
constexpr int kCellChannels = 16;

template <class E>
struct CellBackward {
  const E *gates, *grad;                  // grad: of h, by what reads it elsewhere
  const Computed<E>*c, *before, *grad_h;  // grad_h: by the states after it
  Computed<E>* grad_c;                    // of c by the states after it -> of the cell before
  Computed<E>* grad_products;
  E* grad_sums;
};

// Part of a weighted sum of rows: for sum r, factor * (rows[r] + offset).
template <class T>
struct RowTerm {
  const T* const* rows;
  int64_t offset;
  T factor;
};

// References, so that a table that lacks one does not compile.
template <class E>
struct LayerKernels {
  // out = tanh(a) * logistic(b), or a * logistic(b)
  void (&gate)(const GateInput<E>&, E* out, int64_t n);
  // The gradients of a and b; they may be written over `grad`.
  void (&gate_gradient)(const GateInput<E>&, const E* grad, E* grad_a, E* grad_b, int64_t n);

  // a = elu(x), b = elu(-x)
  void (&concat_elu)(const E* x, E* a, E* b, int64_t n);
  // The gradient of x, from a and b and their gradients.
  void (&concat_elu_gradient)(const E* a, const E* b, const E* grad_a, const E* grad_b, E* grad_x, int64_t n);

  // The log of the sum of exp over each sub-pixel's logits.
  void (&log_sum_exp)(const Logits<E>&, int n, double* out);
  // grad = scale * (softmax - one-hot of target), laid out like the logits, or 0 where the target is `ignored`.
  void (&nll_gradient)(const Logits<E>&, int n, const double* log_sum_exp, const int64_t* target, int64_t ignored,
                       Computed<E> scale, E* grad);

  // out[r] = the sum of 1...6 terms, for r < rows, [width] each; out[r] may be one of the terms' rows
  void (&combine)(const RowTerm<Computed<E>>*, int terms, Computed<E>* const* out, int rows, int width);
  // to += the sum of rows, [width] each
  void (&add_up)(const Computed<E>* const* rows, int n, Computed<E>* to, int width);

  // For n <= kCellChannels channels of each pixel, from `first` on; `products` begin at them.
  void (&cells)(const CellForward<E>*, int pixels, int hidden, int first, int n);
  // c = f * before + i * g
  void (&cell_of_gates)(const E* gates, const Computed<E>* before, Computed<E>* c, int hidden);
  void (&cell_gradients)(const CellBackward<E>*, int pixels, int hidden);
};

// The kernels of an instruction set named in cpu_features.h.
template <class E>
const LayerKernels<E>& layer_kernels(const char* isa);
template <>
const LayerKernels<float>& layer_kernels<float>(const char* isa);
template <>
const LayerKernels<double>& layer_kernels<double>(const char* isa);
template <>
const LayerKernels<Bfloat16>& layer_kernels<Bfloat16>(const char* isa);

}  // namespace pcf::cpu

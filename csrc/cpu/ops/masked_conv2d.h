// Masked 2-D convolution, stride 1: only live taps are computed. Sums are in float32, or float64 for float64 tensors.
// Where the processor multiplies bf16, weights of bf16 and what they meet are multiplied as such, after a scale.
// No result depends on the number of threads, except that of the weight gradient.
#pragma once

#include <array>
#include <optional>

#include "cpu/ops/feature_map.h"
#include "program.h"

namespace pcf::cpu {

// A weight [O, I, kH, kW] and its mask, of the same shape and element type. Both are borrowed and only read.
struct MaskedWeight {
  FeatureMap weight, mask;

  Element element() const { return mask.element; }
  int out() const { return mask.images; }
  int in() const { return mask.channels; }

  // The product of both, in the type T; E: the element type.
  template <class T, class E>
  T at(int o, int i, int ky, int kx) const {
    return convert<T>(*weight.at<E>(o, i, ky, kx)) * convert<T>(*mask.at<E>(o, i, ky, kx));
  }
};

struct Geometry {
  std::array<int, 2> padding, dilation;  // vertical, horizontal
};

// out = activation(scale * (convolution + bias) + shift + condition + residual). Those that are null or empty are left
// out.
struct ConvEpilogue {
  const void *bias = nullptr, *scale = nullptr, *shift = nullptr;  // [O], float64 with float64 tensors, else float32
  const void* condition = nullptr;                                 // [N, O] of the same type
  std::optional<FeatureMap> residual{};                            // [N, O, H', W']
  std::optional<StepKind> activation{};
  double alpha = 1;

  bool is_none_or_relu() const { return activation.value_or(StepKind::relu) == StepKind::relu; }
};

// out [N, O, H', W'] from x [N, I, H, W]; out must not overlap anything else.
void masked_conv2d(const FeatureMap& x, const MaskedWeight&, const Geometry&, const ConvEpilogue&,
                   const FeatureMap& out, int threads);

// grad_x [N, I, H, W] from grad [N, O, H', W'].
void masked_conv2d_input_gradient(const FeatureMap& grad, const MaskedWeight&, const Geometry&,
                                  const FeatureMap& grad_x, int threads);

// grad_weight [O, I, kH, kW], dense, of the weight's element type: exactly 0 where the mask is 0; grad_bias [O] or
// null. `weight.weight` is not read.
void masked_conv2d_weight_gradient(const FeatureMap& grad, const FeatureMap& x, const MaskedWeight& weight,
                                   const Geometry&, void* grad_weight, void* grad_bias, int threads);

}  // namespace pcf::cpu

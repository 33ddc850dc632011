// What the components of a mixture of logistics give to pixels side by side, and its gradients.
#pragma once

#include <cmath>
#include <limits>

#include "cpu/ops/layer_kernels.h"
#include "cpu/simd/exponential.h"

namespace pcf::cpu {
namespace {

// The probability of a level under one logistic, exp(-exponent) * factor, and the derivatives of its logarithm.
template <class T>
struct LevelMass {
  T exponent, factor, by_mean, by_log_scale;
};

// x: the level's place in [-1, 1]; edge: -1 at the lowest level and 1 at the highest, which reach to infinity, else 0.
//
// A level reaches from v to u scales beyond the mean, if both are seen from the side that it lies on, so its mass is
// logistic(u) - logistic(v) = exp(-v) (1 - exp(v - u)) / ((1 + exp(-u)) (1 + exp(-v))), in which nothing cancels. At an
// edge it is logistic(v), with v counted from the level's end into the image. Where the mass is very small, it is the
// density in the level's middle, of distance d: exp(-d) / (scale (1 + exp(-d))^2) times the level's width.
template <class T>
__attribute__((always_inline)) inline LevelMass<T> level_mass(T x, T edge, T mean, T log_scale, T half_width,
                                                              T log_width) {
  constexpr T kLeastLogScale = -7, kLeastMass = static_cast<T>(1e-5), kFar = 80;
  const T s = log_scale < kLeastLogScale ? kLeastLogScale : log_scale, inverse = exponential(-s);
  const T middle = (x - mean) * inverse, distance = middle < 0 ? -middle : middle, half = half_width * inverse;
  const bool is_edge = edge != 0;
  const T v = is_edge ? half - edge * middle : distance - half;
  const T step = exponential(-half), of_v = exponential(-clamped(v, kFar));  // exp(-v)
  const T of_d = of_v * step, of_u = of_d * step;                            // exp(-d), exp(-u)
  const T sinh_by_half = polynomial(half * half, T(1) / 6227020800, T(1) / 39916800, T(1) / 362880, T(1) / 5040,
                                    T(1) / 120, T(1) / 6, T(1));
  const T width = half < T(0.5) ? 2 * step * half * sinh_by_half : 1 - step * step;  // 1 - exp(v - u)
  const bool is_density = of_v * width <= kLeastMass * (1 + of_u) * (1 + of_v);
  const T inner = 1 / (1 + of_v), outer = 1 / (1 + (is_density ? of_d : of_u)), beyond = of_v * inner;

  LevelMass<T> m;
  m.exponent = is_edge ? (v < 0 ? -v : 0) : is_density ? distance + s + log_width : 0;
  m.factor = is_edge ? (v < 0 ? beyond : inner) : is_density ? outer * outer : beyond * width * outer;
  const T by_distance = is_density ? (of_d - 1) * outer : of_u * outer - inner;
  const T by_middle = is_edge ? -edge * beyond : middle < 0 ? -by_distance : by_distance;
  const T by_log_half = half * ((step * step + of_u) * outer + (1 + of_u) * inner) / width;
  const T by_s = is_edge ? -v * beyond : -distance * by_distance - (is_density ? 1 : by_log_half);
  m.by_mean = -inverse * by_middle;
  m.by_log_scale = log_scale < kLeastLogScale ? 0 : by_s;
  return m;
}

// A log-sum-exp of each pixel in two parts of the computed type, so that subtracting it loses nothing.
template <class T>
struct SplitLanes {
  T high[kMixturePixels], low[kMixturePixels];
  explicit SplitLanes(const double* x) {
    for (int j = 0; j < kMixturePixels; j++) {
      high[j] = static_cast<T>(x[j]);
      low[j] = static_cast<T>(x[j] - static_cast<double>(high[j]));
    }
  }
};

// A component in all pixels of a block: the product over the colours, and what the gradient takes of each.
template <class T>
struct ComponentMass {
  T exponent[kMixturePixels], factor[kMixturePixels];
  T coefficient[kMostColours][kMixturePixels];
  T by_mean[kMostColours][kMixturePixels], by_log_scale[kMostColours][kMixturePixels];
};

template <bool kSlopes, class T>
void component_mass(const MixtureBlock<T>& b, int k, ComponentMass<T>& of) {
  constexpr int n = kMixturePixels;
  for (int j = 0; j < n; j++) of.exponent[j] = 0, of.factor[j] = 1;
  for (int c = 0; c < b.colours; c++) {
    const T *means = b.parameters + b.channel(c, 0, k), *log_scales = b.parameters + b.channel(c, 1, k);
    const T *x = b.x + c * n, *edge = b.edge + c * n;
    T mean[n];
    for (int j = 0; j < n; j++) mean[j] = means[j];
    if (b.colours > 1) {
      const T* coefficients = b.parameters + b.channel(c, 2, k);
      for (int j = 0; j < n; j++) of.coefficient[c][j] = hyperbolic_tangent(coefficients[j]);
    }
    for (int d = 0; d < c; d++)
      for (int j = 0; j < n; j++) mean[j] += of.coefficient[c - 1 + d][j] * b.x[d * n + j];
    for (int j = 0; j < n; j++) {
      const auto m = level_mass(x[j], edge[j], mean[j], log_scales[j], b.half_width, b.log_width);
      of.exponent[j] += m.exponent, of.factor[j] *= m.factor;
      if constexpr (kSlopes) of.by_mean[c][j] = m.by_mean, of.by_log_scale[c][j] = m.by_log_scale;
    }
  }
}

// The log of the sum of exp(logit) times the component's mass, for each pixel.
template <class T>
void mixture_log_sum_exp(const MixtureBlock<T>& b, double* out) {
  constexpr int n = kMixturePixels;
  T high[n], sum[n] = {};
  for (int j = 0; j < n; j++) high[j] = -std::numeric_limits<T>::max();
  for (int k = 0; k < b.components; k++) {
    ComponentMass<T> of;
    component_mass<false>(b, k, of);
    for (int j = 0; j < n; j++) {
      const T term = b.parameters[k * n + j] - of.exponent[j], before = high[j];
      high[j] = term > before ? term : before;
      sum[j] = sum[j] * exponential(before - high[j]) + of.factor[j] * exponential(term - high[j]);
    }
  }
  for (int j = 0; j < n; j++) out[j] = high[j] + std::log(double{sum[j]});
}

// of_logits, of_mixture: logs of the sums of exp(logit), without and with the masses. grad is laid out like the
// parameters; channels that nothing reads are left as they are.
template <class T>
void mixture_gradient(const MixtureBlock<T>& b, const double* of_logits, const double* of_mixture, T scale,
                      T* __restrict__ grad) {
  constexpr int n = kMixturePixels;
  struct Coefficient {
    int colour, times;  // it takes part in the mean of this colour, times the x of that one
  };
  constexpr Coefficient kCoefficients[] = {{1, 0}, {2, 0}, {2, 1}};
  const SplitLanes<T> all(of_logits), mixed(of_mixture);
  for (int k = 0; k < b.components; k++) {
    ComponentMass<T> of;
    component_mass<true>(b, k, of);
    T given[n];
    for (int j = 0; j < n; j++) {
      const T logit = b.parameters[k * n + j];
      const T share = of.factor[j] * exponential(((logit - of.exponent[j]) - mixed.high[j]) - mixed.low[j]);
      grad[k * n + j] = scale * (exponential((logit - all.high[j]) - all.low[j]) - share);
      given[j] = -scale * share;
    }
    for (int c = 0; c < b.colours; c++) {
      T *means = grad + b.channel(c, 0, k), *log_scales = grad + b.channel(c, 1, k);
      for (int j = 0; j < n; j++) means[j] = given[j] * of.by_mean[c][j];
      for (int j = 0; j < n; j++) log_scales[j] = given[j] * of.by_log_scale[c][j];
      if (b.colours == 1) continue;
      const auto [colour, times] = kCoefficients[c];
      T* const coefficients = grad + b.channel(c, 2, k);
      for (int j = 0; j < n; j++) {
        const T t = of.coefficient[c][j];
        coefficients[j] = given[j] * of.by_mean[colour][j] * b.x[times * n + j] * (1 - t * t);
      }
    }
  }
}

}  // namespace
}  // namespace pcf::cpu

// What the components of a mixture of logistics give to pixels side by side, and its gradients.
#pragma once

#include <cmath>
#include <limits>

#include "cpu/ops/layer_kernels.h"
#include "cpu/simd/vector_exponential.h"

namespace pcf::cpu {
namespace {

// What a component gives to some pixels of a block, exp(-exponent) * factor, and what the gradient takes of each
// colour: its x and coefficient, and the derivatives of its logarithm.
template <class T>
struct ComponentMass {
  Vec<T> exponent, factor;
  Vec<T> x[kMostColours], coefficient[kMostColours], by_mean[kMostColours], by_log_scale[kMostColours];
};

// A level reaches from v to u scales beyond the mean, if both are seen from the side that it lies on, so its mass is
// logistic(u) - logistic(v) = exp(-v) (1 - exp(v - u)) / ((1 + exp(-u)) (1 + exp(-v))), in which nothing cancels. At an
// edge, beyond which the level goes on, it is logistic(v), with v counted from its end in the image. Where the mass is
// very small, it is the density in the level's middle, of distance d: exp(-d) / (scale (1 + exp(-d))^2) times its
// width.
//
// The colours take turns at each step, since it is long until a step's result is there.
template <int colours, class T>
__attribute__((always_inline)) inline ComponentMass<T> component_mass(const MixtureBlock<T>& b, int k, int first) {
  constexpr T kLeastLogScale = -7, kLeastMass = static_cast<T>(1e-5), kFar = 80;
  const Vec<T> zero = {}, one = broadcast(T(1));
  const auto parameter = [&](int c, int which) {
    return load(b.parameters + b.channel(c, which, k) * b.plane + first);
  };
  const auto each = [](const auto& f) {
#pragma GCC unroll 3
    for (int c = 0; c < colours; c++) f(c);
  };
  ComponentMass<T> of;
  Vec<T> s[colours], inverse[colours], half[colours], step[colours], width[colours];
  Vec<T> middle[colours], distance[colours], v[colours], of_v[colours];

  each([&](int c) {
    of.x[c] = load(b.x + c * kMixturePixels + first);
    s[c] = at_least(parameter(c, 1), kLeastLogScale);
    inverse[c] = exp_and_rest<T>(-at_most(s[c], kFar)).exp;
    half[c] = b.half_width * inverse[c];
  });
  each([&](int c) {
    const auto [exp, rest] = exp_and_rest<T>(-at_most(half[c], kFar));
    step[c] = exp;
    width[c] = rest * (1 + exp);  // 1 - exp(v - u)
  });
  if (colours > 1)
    each([&](int c) {
      const Vec<T> a = parameter(c, 2);
      const auto [exp, rest] = exp_and_rest<T>(-2 * at_most(absolute<T>(a), kFar / 2));
      const Vec<T> size = rest / (1 + exp);
      of.coefficient[c] = a < 0 ? -size : size;
    });
  each([&](int c) {
    const Vec<T> edge = load(b.edge + c * kMixturePixels + first);
    Vec<T> mean = parameter(c, 0);
    for (int d = 0; d < c; d++) mean += of.coefficient[c - 1 + d] * of.x[d];
    middle[c] = (of.x[c] - mean) * inverse[c];
    distance[c] = absolute<T>(middle[c]);
    v[c] = edge != 0 ? half[c] - edge * middle[c] : distance[c] - half[c];
    of_v[c] = exp_and_rest<T>(-at_most(at_least(v[c], -kFar), kFar)).exp;  // exp(-v)
  });
  of.exponent = zero, of.factor = one;
  each([&](int c) {
    const Vec<T> edge = load(b.edge + c * kMixturePixels + first), of_d = of_v[c] * step[c], of_u = of_d * step[c];
    const auto is_edge = edge != 0, is_density = of_v[c] * width[c] <= kLeastMass * (1 + of_u) * (1 + of_v[c]);
    const Vec<T> inner = 1 / (1 + of_v[c]), outer = 1 / (1 + (is_density ? of_d : of_u)), beyond = of_v[c] * inner;
    of.exponent += is_edge ? (v[c] < 0 ? -v[c] : zero) : is_density ? distance[c] + s[c] + b.log_width : zero;
    of.factor *= is_edge ? (v[c] < 0 ? beyond : inner) : is_density ? outer * outer : beyond * width[c] * outer;

    const Vec<T> by_distance = is_density ? (of_d - 1) * outer : of_u * outer - inner;
    const Vec<T> by_middle = is_edge ? -edge * beyond : middle[c] < 0 ? -by_distance : by_distance;
    const Vec<T> by_log_half = half[c] * ((step[c] * step[c] + of_u) * outer + (1 + of_u) * inner) / width[c];
    const Vec<T> by_s = is_edge ? -v[c] * beyond : -distance[c] * by_distance - (is_density ? one : by_log_half);
    of.by_mean[c] = -inverse[c] * by_middle;
    of.by_log_scale[c] = parameter(c, 1) < kLeastLogScale ? zero : by_s;
  });
  return of;
}

template <int colours, class T>
void mixture_log_sum_exp_of(const MixtureBlock<T>& b, double* out) {
  for (int first = 0; first < kMixturePixels; first += kLanes<T>) {
    Vec<T> high = broadcast(-std::numeric_limits<T>::max()), sum = {};
    for (int k = 0; k < b.components; k++) {
      const ComponentMass<T> of = component_mass<colours>(b, k, first);
      const Vec<T> term = load(b.parameters + k * b.plane + first) - of.exponent;
      const Vec<T> less = exp_and_rest<T>(at_least<T>(-absolute<T>(term - high), -80)).exp;
      sum = term > high ? sum * less + of.factor : sum + of.factor * less;
      high = term > high ? term : high;
    }
    for (int j = 0; j < kLanes<T>; j++) out[first + j] = high[j] + std::log(double{sum[j]});
  }
}

template <class T>
void mixture_log_sum_exp(const MixtureBlock<T>& b, double* out) {
  b.colours() == 1 ? mixture_log_sum_exp_of<1>(b, out) : mixture_log_sum_exp_of<kMostColours>(b, out);
}

// exp(x - log_sum_exp), of which nothing is lost as that is split in two parts.
template <class T>
inline Vec<T> share(Vec<T> x, const double* log_sum_exp) {
  Vec<T> high, low;
  for (int j = 0; j < kLanes<T>; j++) {
    high[j] = static_cast<T>(log_sum_exp[j]);
    low[j] = static_cast<T>(log_sum_exp[j] - static_cast<double>(high[j]));
  }
  const Vec<T> difference = (x - high) - low;
  return difference < -80 ? Vec<T>{} : exp_and_rest<T>(difference).exp;
}

template <int colours, class T>
void mixture_gradient_of(const MixtureBlock<T>& b, const double* of_logits, const double* of_mixture, T scale, T* grad,
                         int64_t grad_plane) {
  struct Coefficient {
    int colour, times;  // it takes part in the mean of this colour, times the x of that one
  };
  constexpr Coefficient kCoefficients[] = {{1, 0}, {2, 0}, {2, 1}};
  for (int first = 0; first < kMixturePixels; first += kLanes<T>) {
    for (int k = 0; k < b.components; k++) {
      const ComponentMass<T> of = component_mass<colours>(b, k, first);
      const Vec<T> logit = load(b.parameters + k * b.plane + first);
      const Vec<T> mixed = of.factor * share<T>(logit - of.exponent, of_mixture + first), given = -scale * mixed;
      store(grad + k * grad_plane + first, scale * (share<T>(logit, of_logits + first) - mixed));
      for (int c = 0; c < colours; c++) {
        const auto put = [&](int which, Vec<T> x) { store(grad + b.channel(c, which, k) * grad_plane + first, x); };
        put(0, given * of.by_mean[c]);
        put(1, given * of.by_log_scale[c]);
        if (colours == 1) {  // which has no use for a coefficient
          if (b.channels > b.channel(0, 2, 0)) put(2, Vec<T>{});
          continue;
        }
        const auto [colour, times] = kCoefficients[c];
        put(2, given * of.by_mean[colour] * of.x[times] * (1 - of.coefficient[c] * of.coefficient[c]));
      }
    }
  }
}

template <class T>
void mixture_gradient(const MixtureBlock<T>& b, const double* of_logits, const double* of_mixture, T scale, T* grad,
                      int64_t grad_plane) {
  const auto of = b.colours() == 1 ? mixture_gradient_of<1, T> : mixture_gradient_of<kMostColours, T>;
  of(b, of_logits, of_mixture, scale, grad, grad_plane);
}

}  // namespace
}  // namespace pcf::cpu

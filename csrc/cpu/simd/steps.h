// The formula of each kind of step (pixelcnn_fast/program/steps.py lists them).
#pragma once

#include <cmath>

#include "cpu/simd/error_function.h"
#include "cpu/simd/exponential.h"
#include "cpu/simd/kernels.h"
#include "cpu/simd/vector.h"

namespace pcf::cpu {
namespace {

template <class T>
void layer_norm(const T* all, int channels, T epsilon, T* x, int n) {
  double sum = 0, squares = 0;
  for (int c = 0; c < channels; c++) sum += all[c];
  const double mean = sum / channels;
  for (int c = 0; c < channels; c++) squares += (all[c] - mean) * (all[c] - mean);
  const T shift = static_cast<T>(mean), scale = static_cast<T>(1 / std::sqrt(squares / channels + epsilon));
  for (int c = 0; c < n; c++) x[c] = (x[c] - shift) * scale;
}

// x: [rows, n], dense, channels from `first` on; operand: the same rows of it.
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
    case StepKind::add_condition: return each_with_operand([=](T v, T o) { return v + alpha * o; });
    case StepKind::multiply:
    case StepKind::multiply_condition: return each_with_operand([](T v, T o) { return v * o; });
    case StepKind::maximum:  // NaN if either is, like minimum
      return each_with_operand([](T v, T o) { return v < o || o != o ? o : v; });
    case StepKind::minimum: return each_with_operand([](T v, T o) { return v > o || o != o ? o : v; });
    case StepKind::at_least: return each([=](T v) { return v < alpha ? alpha : v; });  // keeps NaN, like at_most
    case StepKind::at_most: return each([=](T v) { return v > alpha ? alpha : v; });
    case StepKind::relu: return each([](T v) { return v < 0 ? T(0) : v; });  // keeps NaN
    case StepKind::leaky_relu: return each([=](T v) { return v < 0 ? v * alpha : v; });
    case StepKind::elu: return each([=](T v) { return v < 0 ? alpha * (exponential(v) - T(1)) : v; });
    case StepKind::silu: return each([](T v) { return v * logistic(v); });
    case StepKind::sigmoid: return each([](T v) { return logistic(v); });
    case StepKind::tanh: return each([](T v) { return hyperbolic_tangent(v); });
    case StepKind::gelu:
      return each([](T v) { return v * T(0.5) * (T(1) + error_function(v * T(0.70710678118654752440))); });
    case StepKind::gelu_tanh:
      return each([](T v) {
        const T inner = T(0.79788456080286535588) * (v + T(0.044715) * v * v * v);
        return v * T(0.5) * (T(1) + hyperbolic_tangent(inner));
      });
    case StepKind::hardswish:
      return each([](T v) {
        const T shifted = v + T(3), clamped = shifted < 0 ? T(0) : shifted > 6 ? T(6) : shifted;
        return v * clamped / T(6);
      });
    case StepKind::exp: return each([](T v) { return exponential_of_any(v); });
    case StepKind::log: return each([](T v) { return std::log(v); });
    case StepKind::erf: return each([](T v) { return error_function(v); });
    case StepKind::erfc: return each([](T v) { return complementary_error_function(v); });
    case StepKind::softplus:
      return each([=](T v) {
        return v * alpha > 20 ? v : std::log1p(exponential(v * alpha)) / alpha;  // 20 as in PyTorch
      });
    case StepKind::power:
      if (alpha == 2) return each([](T v) { return v * v; });
      if (alpha == -1) return each([](T v) { return T(1) / v; });
      if (alpha == T(0.5)) return each([](T v) { return std::sqrt(v); });
      if (alpha == T(-0.5)) return each([](T v) { return T(1) / std::sqrt(v); });
      return each([=](T v) { return std::pow(v, alpha); });
    case StepKind::layer_norm:
      for (int r = 0; r < rows; r++) layer_norm(operand[r], step.operand_channels, alpha, x + r * n, n);
      return;
  }
}

// Not memcpy: compilers make it a string instruction, which starts slowly.
template <class T>
inline void copy(const T* from, T* to, int n) {
  int c = 0;
  for (; c + kLanes<T> <= n; c += kLanes<T>) store<T>(to + c, load(from + c));
  for (; c < n; c++) to[c] = from[c];
}

// As many rows as fit are done together, which hides the latency of exp and division.
template <class T>
void epilogue(const BoundStep<T>* steps, int n_steps, int rows, int first, int last, Rows<const T> in, Rows<T> out) {
  constexpr int kChunk = 512;
  alignas(64) T x[kChunk];
  for (int c = first; c < last; c += kChunk) {
    const int n = last - c < kChunk ? last - c : kChunk, together = kChunk / n;
    for (int r = 0; r < rows; r += together) {
      const int count = rows - r < together ? rows - r : together;
      for (int i = 0; i < count; i++) copy(in[r + i] + c, x + i * n, n);
      for (int s = 0; s < n_steps; s++)
        apply(steps[s], steps[s].operand ? steps[s].operand + r : nullptr, x, count, c, n);
      for (int i = 0; i < count; i++) copy<T>(x + i * n, out[r + i] + c, n);
    }
  }
}

}  // namespace
}  // namespace pcf::cpu

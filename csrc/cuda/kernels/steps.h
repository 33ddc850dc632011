// The formula of each kind of step (pixelcnn_fast/program/steps.py lists them).
#pragma once

#include "cuda/layout.h"

#ifdef __CUDACC__
#define PCF_ON_BOTH __host__ __device__ __forceinline__
#else
#define PCF_ON_BOTH inline
#endif

namespace pcf::cuda {

// Estimates of the GPU's special function unit, without the branches of a division: 1 / x and 2^x, to about a unit in
// the last place, and tanh, to 2^-11 of its size. The host's are at least as exact.
#ifdef __CUDA_ARCH__
#define PCF_ESTIMATE(instruction, otherwise) \
  float y;                                   \
  asm(instruction " %0, %1;" : "=f"(y) : "f"(x));
#else
#define PCF_ESTIMATE(instruction, otherwise) const float y = otherwise;
#endif
PCF_ON_BOTH float reciprocal(float x) { PCF_ESTIMATE("rcp.approx.ftz.f32", 1.f / x) return y; }
PCF_ON_BOTH float power_of_two(float x) { PCF_ESTIMATE("ex2.approx.ftz.f32", exp2f(x)) return y; }
PCF_ON_BOTH float estimated_tanh(float x) { PCF_ESTIMATE("tanh.approx.f32", tanhf(x)) return y; }

// As exact as the numbers are that are stored.
PCF_ON_BOTH float logistic(float x, Math math) {
  const bool is_narrow = math == Math::bf16 || math == Math::fp16;
  return reciprocal(1.f + (is_narrow ? power_of_two(-1.44269504f * x) : expf(-x)));
}
PCF_ON_BOTH float hyperbolic_tangent(float x, Math math) {
  if (math == Math::bf16) return estimated_tanh(x);
  return math == Math::fp16 ? 2.f * logistic(2.f * x, math) - 1.f : tanhf(x);
}

// x[i] = formula(x[i]). operand: what the step reads, or its scale; shift: the shift of steps that have a scale. A kind
// that reads all channels of a value is given 1 / sqrt(variance + alpha) and the mean instead. math: how what follows
// is stored.
//
// The planner calls it, too, whose compiler checks that the switch is complete (-Werror=switch), which a compiler of
// kernels does not. There must be no `default` for the same reason.
PCF_ON_BOTH void apply_formula(StepKind kind, float alpha, float (&x)[4], const float (&operand)[4],
                               const float (&shift)[4], Math math) {
  const auto each = [&](auto formula) {
    for (int i = 0; i < 4; i++) x[i] = formula(x[i]);
  };
  const auto each_with_operand = [&](auto formula) {
    for (int i = 0; i < 4; i++) x[i] = formula(x[i], operand[i], shift[i]);
  };
  switch (kind) {
    case StepKind::affine:
      return each_with_operand([](float v, float scale, float shift) { return v * scale + shift; });
    case StepKind::add:
    case StepKind::add_condition: return each_with_operand([=](float v, float o, float) { return v + alpha * o; });
    case StepKind::multiply:
    case StepKind::multiply_condition: return each_with_operand([](float v, float o, float) { return v * o; });
    case StepKind::maximum:  // NaN if either is, like minimum
      return each_with_operand([](float v, float o, float) { return v < o || o != o ? o : v; });
    case StepKind::minimum: return each_with_operand([](float v, float o, float) { return v > o || o != o ? o : v; });
    case StepKind::layer_norm:
      return each_with_operand([](float v, float scale, float mean) { return (v - mean) * scale; });
    case StepKind::at_least: return each([=](float v) { return v < alpha ? alpha : v; });  // keeps NaN, like at_most
    case StepKind::at_most: return each([=](float v) { return v > alpha ? alpha : v; });
    case StepKind::relu: return each([](float v) { return v < 0 ? 0.f : v; });  // keeps NaN
    case StepKind::leaky_relu: return each([=](float v) { return v < 0 ? v * alpha : v; });
    case StepKind::elu: return each([=](float v) { return v < 0 ? alpha * (expf(v) - 1.f) : v; });
    case StepKind::silu: return each([=](float v) { return v * logistic(v, math); });
    case StepKind::sigmoid: return each([=](float v) { return logistic(v, math); });
    case StepKind::tanh: return each([=](float v) { return hyperbolic_tangent(v, math); });
    case StepKind::gelu: return each([](float v) { return 0.5f * v * (1.f + erff(v * 0.70710678f)); });
    case StepKind::gelu_tanh:
      return each([](float v) { return 0.5f * v * (1.f + tanhf(0.79788456f * (v + 0.044715f * v * v * v))); });
    case StepKind::hardswish:
      return each([](float v) {
        const float shifted = v + 3.f, clamped = shifted < 0 ? 0.f : shifted > 6 ? 6.f : shifted;
        return v * clamped / 6.f;
      });
    case StepKind::exp: return each([](float v) { return expf(v); });
    case StepKind::log: return each([](float v) { return logf(v); });
    case StepKind::erf: return each([](float v) { return erff(v); });
    case StepKind::erfc: return each([](float v) { return erfcf(v); });
    case StepKind::softplus: return each([=](float v) { return v * alpha > 20 ? v : log1pf(expf(v * alpha)) / alpha; });
    case StepKind::power: return each([=](float v) { return powf(v, alpha); });
  }
}

}  // namespace pcf::cuda

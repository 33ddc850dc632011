// One instruction set's kernels. Everything here has internal linkage or the instruction set in its name, and no
// standard template is instantiated: otherwise the linker could pick code that is too wide for the processor.
#include "cpu/simd/kernels.h"

#include "cpu/simd/drawing.h"
#include "cpu/simd/product.h"
#include "cpu/simd/steps.h"

#ifndef PCF_ISA
#error "PCF_ISA names the instruction set, as in cpu_features.h"
#endif

namespace pcf::cpu {
namespace {

template <class T>
constexpr Kernels<T> table() {
  Kernels<T> k{kBlock<T>, 0,           block_bytes<T>, pack<T>, matmul<T>,         nullptr,
               nullptr,   epilogue<T>, weigh<T>,       pick<T>, log_probability<T>};
#if defined(__AVX512BF16__)
  if constexpr (sizeof(T) == 4)
    k.depths_of_rounded = kDepthsOfRounded, k.matmul_rounded = matmul_rounded, k.round = round_rows;
#endif
  return k;
}

}  // namespace

#define PCF_JOIN_(a, b) a##b
#define PCF_JOIN(a, b) PCF_JOIN_(a, b)
extern const Kernels<float> PCF_JOIN(kernels_f32_, PCF_ISA);
extern const Kernels<double> PCF_JOIN(kernels_f64_, PCF_ISA);
const Kernels<float> PCF_JOIN(kernels_f32_, PCF_ISA) = table<float>();
const Kernels<double> PCF_JOIN(kernels_f64_, PCF_ISA) = table<double>();

}  // namespace pcf::cpu

#include <stdexcept>
#include <string>

#include "cpu/ops/layer_kernels.h"
#include "cpu/simd/kernels.h"

namespace pcf::cpu {

#define PCF_EACH_ISA(f) \
  PCF_IF_PORTABLE(f) PCF_IF_SSE2(f) PCF_IF_AVX2(f) PCF_IF_AVX512(f) PCF_IF_AVX512_BF16(f) PCF_IF_AMX_BF16(f)
#ifdef PCF_HAVE_PORTABLE
#define PCF_IF_PORTABLE(f) f(portable)
#else
#define PCF_IF_PORTABLE(f)
#endif
#ifdef PCF_HAVE_SSE2
#define PCF_IF_SSE2(f) f(sse2)
#else
#define PCF_IF_SSE2(f)
#endif
#ifdef PCF_HAVE_AVX2
#define PCF_IF_AVX2(f) f(avx2)
#else
#define PCF_IF_AVX2(f)
#endif
#ifdef PCF_HAVE_AVX512
#define PCF_IF_AVX512(f) f(avx512)
#else
#define PCF_IF_AVX512(f)
#endif
#ifdef PCF_HAVE_AVX512_BF16
#define PCF_IF_AVX512_BF16(f) f(avx512_bf16)
#else
#define PCF_IF_AVX512_BF16(f)
#endif
#ifdef PCF_HAVE_AMX_BF16
#define PCF_IF_AMX_BF16(f) f(amx_bf16)
#else
#define PCF_IF_AMX_BF16(f)
#endif

#define PCF_DECLARE(isa)                                     \
  extern const Kernels<float> kernels_f32_##isa;             \
  extern const Kernels<double> kernels_f64_##isa;            \
  extern const LayerKernels<float> layer_kernels_f32_##isa;  \
  extern const LayerKernels<double> layer_kernels_f64_##isa; \
  extern const LayerKernels<Bfloat16> layer_kernels_bf16_##isa;
PCF_EACH_ISA(PCF_DECLARE)

namespace {

[[noreturn]] void not_built(const char* isa) {
  throw std::invalid_argument(std::string("no kernels were built for the instruction set ") + isa);
}

}  // namespace

#define PCF_DEFINE(Table, function, E, prefix)   \
  template <>                                    \
  const Table<E>& function<E>(const char* isa) { \
    const std::string name = isa;                \
    PCF_EACH_ISA(PCF_RETURN_##prefix)            \
    not_built(isa);                              \
  }
#define PCF_RETURN_kernels_f32(isa) \
  if (name == #isa) return kernels_f32_##isa;
#define PCF_RETURN_kernels_f64(isa) \
  if (name == #isa) return kernels_f64_##isa;
#define PCF_RETURN_layer_f32(isa) \
  if (name == #isa) return layer_kernels_f32_##isa;
#define PCF_RETURN_layer_f64(isa) \
  if (name == #isa) return layer_kernels_f64_##isa;
#define PCF_RETURN_layer_bf16(isa) \
  if (name == #isa) return layer_kernels_bf16_##isa;
PCF_DEFINE(Kernels, kernels, float, kernels_f32)
PCF_DEFINE(Kernels, kernels, double, kernels_f64)
PCF_DEFINE(LayerKernels, layer_kernels, float, layer_f32)
PCF_DEFINE(LayerKernels, layer_kernels, double, layer_f64)
PCF_DEFINE(LayerKernels, layer_kernels, Bfloat16, layer_bf16)

}  // namespace pcf::cpu

#include <stdexcept>
#include <string>

#include "kernels.h"

namespace pcf {

#define PCF_EACH_ISA(f) PCF_IF_PORTABLE(f) PCF_IF_SSE2(f) PCF_IF_AVX2(f) PCF_IF_AVX512(f)
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

#define PCF_DECLARE(isa)                        \
  extern const Kernels<float> kernels_f32_##isa; \
  extern const Kernels<double> kernels_f64_##isa;
PCF_EACH_ISA(PCF_DECLARE)

namespace {
template <class T>
const Kernels<T>& either(const Kernels<float>& f32, const Kernels<double>& f64) {
  if constexpr (sizeof(T) == 4)
    return f32;
  else
    return f64;
}
}  // namespace

template <class T>
const Kernels<T>& kernels(const char* isa) {
#define PCF_RETURN(name) \
  if (std::string(isa) == #name) return either<T>(kernels_f32_##name, kernels_f64_##name);
  PCF_EACH_ISA(PCF_RETURN)
  throw std::invalid_argument(std::string("no kernels were built for the instruction set ") + isa);
}

template const Kernels<float>& kernels<float>(const char*);
template const Kernels<double>& kernels<double>(const char*);

}  // namespace pcf

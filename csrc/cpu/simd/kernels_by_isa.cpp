#include <stdexcept>
#include <string>

#include "cpu/ops/layer_kernels.h"
#include "cpu/simd/kernels.h"
#include "isas.h"

namespace pcf::cpu {

#define PCF_DECLARE(isa, table) extern const table##isa;
#define PCF_RETURN(isa, table) \
  if (name == #isa) return table##isa;
// A function that gives the table of kernels of an instruction set; PCF_EACH_ISA lists those that are built.
#define PCF_DEFINE(Table, function, E, table)                                             \
  PCF_EACH_ISA(PCF_DECLARE, Table<E> table)                                               \
  template <>                                                                             \
  const Table<E>& function<E>(const char* isa) {                                          \
    const std::string name = isa;                                                         \
    PCF_EACH_ISA(PCF_RETURN, table)                                                       \
    throw std::invalid_argument("no kernels were built for the instruction set " + name); \
  }
PCF_DEFINE(Kernels, kernels, float, kernels_f32_)
PCF_DEFINE(Kernels, kernels, double, kernels_f64_)
PCF_DEFINE(LayerKernels, layer_kernels, float, layer_kernels_f32_)
PCF_DEFINE(LayerKernels, layer_kernels, double, layer_kernels_f64_)
PCF_DEFINE(LayerKernels, layer_kernels, Bfloat16, layer_kernels_bf16_)

}  // namespace pcf::cpu

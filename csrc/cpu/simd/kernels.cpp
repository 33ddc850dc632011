// One instruction set's kernels. All of it, with what it includes, has internal linkage or the instruction set in its
// name, and no standard template is instantiated: otherwise the linker could pick code that is too wide for the
// processor.
#include "cpu/simd/kernels.h"

#include "cpu/simd/attention.h"
#include "cpu/simd/drawing.h"
#include "cpu/simd/mix.h"
#include "cpu/simd/product_bf16.h"
#include "cpu/simd/steps.h"

#ifndef PCF_ISA
#error "PCF_ISA names the instruction set, as in cpu_features.h"
#endif

namespace pcf::cpu {
namespace {

// -- products of a few rows with packed weights

template <class T, class W>
constexpr int64_t bytes_of_block(int depth) {
  const int padded = W::depths == 1 ? depth : padded_depth(depth);
  return int64_t{padded / W::depths} * kBlock<T> * sizeof(typename W::Word);
}

template <class T, class W>
void pack_blocks(const T* weight, int depth, int channels, char* packed) {
  const int blocks = (channels + kBlock<T> - 1) / kBlock<T>;
  for (int b = 0; b < blocks; b++) {
    auto* words = reinterpret_cast<typename W::Word*>(packed + b * bytes_of_block<T, W>(depth));
    const int rest = channels - b * kBlock<T>, here = rest < kBlock<T> ? rest : kBlock<T>;
    if (here < kBlock<T> || W::depths > 1) __builtin_memset(words, 0, bytes_of_block<T, W>(depth));
    for (int k = 0; k < depth; k++)
      for (int c = 0; c < here; c++)
        W::put(words + int64_t{k / W::depths} * kBlock<T> + c, k % W::depths,
               weight[int64_t{k} * channels + b * kBlock<T> + c]);
  }
}

template <class T>
void matmul(Rows<const T> x, int rows, Packed w, int first, int last, const Result<T>& result) {
  if constexpr (sizeof(T) == 4)
    if (w.format == WeightFormat::bf16) return matmul_bf16(x, rows, w, first, last, result);
  matmul_as<T, Same<T>>(x, rows, w, first, last, result);
}

template <class T>
int64_t block_bytes(int depth, WeightFormat format) {
  return sizeof(T) == 4 && format == WeightFormat::bf16 ? bytes_of_block<T, Bf16>(depth)
                                                        : bytes_of_block<T, Same<T>>(depth);
}

template <class T>
void pack(const T* weight, int depth, int channels, WeightFormat format, void* packed) {
  if constexpr (sizeof(T) == 4)
    if (format == WeightFormat::bf16) return pack_blocks<T, Bf16>(weight, depth, channels, static_cast<char*>(packed));
  pack_blocks<T, Same<T>>(weight, depth, channels, static_cast<char*>(packed));
}

// -- the table

template <class T>
constexpr Kernels<T> table() {
  Kernels<T> k{
      .block = kBlock<T>,
      .block_bytes = block_bytes<T>,
      .pack = pack<T>,
      .matmul = matmul<T>,
      .epilogue = epilogue<T>,
      .mix = mix<T>,
      .attend = attend<T, T>,
      .weigh = weigh<T>,
      .pick = pick<T>,
      .log_probability = log_probability<T>,
  };
  if constexpr (sizeof(T) == 4) k.attend_bf16 = attend<T, Bfloat16>;
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

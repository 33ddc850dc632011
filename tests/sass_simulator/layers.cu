// Layers of products as the sampler runs them: 8 warps, each with 16 of 128 channels, weights from L2 ahead of their
// use, values of 8 sites in shared memory, a barrier after each layer. And the same with one defect in each layer.
#include <cstdint>

enum Defect { kNone, kLoad, kBarrier, kConflict, kDivision };
constexpr int kAhead = 8, kFragments = 8;  // of 16 channels each: 128 channels

struct Layer {
  uint32_t in, out, sums, sites;  // byte offsets in shared memory; sites: 8
};

__device__ __forceinline__ uint4 stream(const uint4* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

template <Defect kDefect>
__global__ void __launch_bounds__(256, 1) layers(const uint4* __restrict__ weights, const Layer* __restrict__ plan,
                                                 const volatile uint32_t* table, int count) {
  extern __shared__ __align__(128) char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int i = threadIdx.x; i < count; i += 256) reinterpret_cast<Layer*>(shared)[i] = plan[i];
  __syncthreads();
  const uint4* next = weights + warp * count * kFragments * 32 + lane;
  uint4 ahead[kAhead];
#pragma unroll
  for (int j = 0; j < kAhead; j++, next += 32) ahead[j] = stream(next);
  // A lane's 8 bytes of a fragment; in the conflict, all lanes' words lie in banks 0 and 1 of their half warp.
  const uint32_t mine = kDefect == kConflict ? lane * 128 : lane * 8, step = kDefect == kConflict ? 8 : 256;
  for (int i = 0; i < count; i++) {
    const Layer layer = reinterpret_cast<const Layer*>(shared)[i];
    float s[4] = {};
    const char* in = shared + layer.in + mine;
#pragma unroll
    for (int f = 0; f < kFragments; f++) {
      const uint4 a = ahead[f % kAhead];
      ahead[f % kAhead] = stream(next);
      next += 32;
      const uint2 b = *reinterpret_cast<const uint2*>(in + f * step);
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
          : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
    }
    uint32_t at = layer.out + warp * 256 + lane * 8;
    if (kDefect == kLoad) at += table[__float_as_uint(s[0]) >> 31];  // depends on the products
    if (kDefect == kDivision) at += 7 / (layer.sites + (__float_as_uint(s[0]) >> 31));
    if (kDefect == kBarrier) __syncthreads();
    uint2 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y.x) : "f"(fmaxf(s[1], 0.f)), "f"(fmaxf(s[0], 0.f)));
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y.y) : "f"(fmaxf(s[3], 0.f)), "f"(fmaxf(s[2], 0.f)));
    *reinterpret_cast<uint2*>(shared + at) = y;
    __syncthreads();
  }
}
template __global__ void layers<kNone>(const uint4*, const Layer*, const volatile uint32_t*, int);
template __global__ void layers<kLoad>(const uint4*, const Layer*, const volatile uint32_t*, int);
template __global__ void layers<kBarrier>(const uint4*, const Layer*, const volatile uint32_t*, int);
template __global__ void layers<kConflict>(const uint4*, const Layer*, const volatile uint32_t*, int);
template __global__ void layers<kDivision>(const uint4*, const Layer*, const volatile uint32_t*, int);

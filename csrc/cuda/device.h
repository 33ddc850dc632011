// What kernels use of CUDA, and how they are launched. The tests have another device.h with the same functions, which
// runs kernels on the host (tests/csrc/emulation), so kernels use nothing else.
#pragma once

#include <cstddef>
#include <cstdint>

#ifndef __CUDACC__
#include "emulation/device.h"
#else
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace pcf::cuda {

__device__ __forceinline__ unsigned thread_index() { return threadIdx.x; }
__device__ __forceinline__ unsigned block_index() { return blockIdx.x; }
__device__ __forceinline__ unsigned block_index_y() { return blockIdx.y; }
__device__ __forceinline__ char* shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }

// Clusters exist from sm_90 on; kernels that use them are launched nowhere else.
__device__ __forceinline__ void sync_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}
// The same location in the shared memory of another block of the cluster.
template <class T>
__device__ __forceinline__ T* map_to_block(T* mine, unsigned rank) {
  uint64_t there = reinterpret_cast<uint64_t>(mine);
#if __CUDA_ARCH__ >= 900
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(mine), "r"(rank));
#endif
  return reinterpret_cast<T*>(there);
}

// Copies 16 bytes from global to shared memory, both aligned, bypassing L1. The copy is done once the group that it was
// committed in has been waited for; wait_copies waits for all but the last kLeft groups.
__device__ __forceinline__ void copy_async(void* to, const void* from) {
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <unsigned kLeft>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// A flag tells other blocks that what was written before it is there.
enum class Scope { cluster, device };
template <Scope kScope>
__device__ __forceinline__ void publish(uint32_t* flag, uint32_t value) {
#if __CUDA_ARCH__ >= 900
  if (kScope == Scope::cluster) {
    asm volatile("st.release.cluster.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
    return;
  }
#endif
  asm volatile("st.release.gpu.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
template <Scope kScope>
__device__ __forceinline__ uint32_t observe(const uint32_t* flag) {
  uint32_t value;
#if __CUDA_ARCH__ >= 900
  if (kScope == Scope::cluster) {
    asm volatile("ld.acquire.cluster.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    return value;
  }
#endif
  asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
// Adds one to a number that others observe.
__device__ __forceinline__ void arrive(uint32_t* number) {
  asm volatile("red.release.gpu.add.u32 [%0], 1;" ::"l"(number) : "memory");
}
__device__ __forceinline__ void pause() { __nanosleep(20); }

__device__ __forceinline__ void atomic_min(unsigned long long* at, unsigned long long value) { atomicMin(at, value); }

constexpr unsigned kAllLanes = 0xffffffff;
template <class T>
__device__ __forceinline__ T shuffle(T value, int from) {
  return __shfl_sync(kAllLanes, value, from);
}
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}
template <class T>
__device__ __forceinline__ T shuffle_up(T value, int by) {
  return __shfl_up_sync(kAllLanes, value, by);
}

// -- numbers: two narrow ones in a register, the first in its lower half

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ uint32_t pack_fp16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ float2 unpack_bf16(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000)};
}
__device__ __forceinline__ float2 unpack_fp16(uint32_t pair) {
  float2 result;
  asm("{.reg .f16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
      : "=f"(result.x), "=f"(result.y)
      : "r"(pair));
  return result;
}
__device__ __forceinline__ uint32_t round_tf32(uint32_t bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}

// -- sum[16, 8] += a[16, k] . b[k, 8]; each lane holds its part of the three, as PTX lays them out

#define PCF_MMA(name, shape_and_types)                                                                    \
  __device__ __forceinline__ void name(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { \
    asm("mma.sync.aligned." shape_and_types " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"      \
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                          \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                              \
  }
PCF_MMA(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
PCF_MMA(mma_fp16, "m16n8k16.row.col.f32.f16.f16.f32")
PCF_MMA(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef PCF_MMA

// -- the host's side

using Stream = cudaStream_t;

struct Launch {
  unsigned blocks, blocks_y = 1, threads;
  size_t shared_bytes = 0;
  unsigned cluster = 1;
  bool cooperative = false;
};

inline void check(cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error("CUDA error " + std::to_string(error) + ": " + cudaGetErrorString(error));
}

// A launch as CUDA expects it. attributes: room for two, which the result refers to.
template <class... Parameters>
cudaLaunchConfig_t configured(void (*kernel)(Parameters...), const Launch& how, Stream stream,
                              cudaLaunchAttribute* attributes) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(how.shared_bytes)));
  if (how.cluster > 8) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(how.blocks, how.blocks_y);
  config.blockDim = dim3(how.threads);
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  if (how.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {how.cluster, 1, 1};
  }
  if (how.cooperative) {
    attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
    attributes[config.numAttrs++].val.cooperative = 1;
  }
  return config;
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& how, Stream stream, const Arguments&... arguments) {
  cudaLaunchAttribute attributes[2];
  const cudaLaunchConfig_t config = configured(kernel, how, stream, attributes);
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

// How many clusters of such a launch the device runs at once: fewer than its multiprocessors would hold if a cluster's
// size does not divide that of the device's groups of multiprocessors.
template <class... Parameters>
int clusters_at_once(void (*kernel)(Parameters...), const Launch& how) {
  cudaLaunchAttribute attributes[2];
  const cudaLaunchConfig_t config = configured(kernel, how, nullptr, attributes);
  int count = 0;
  check(cudaOccupancyMaxActiveClusters(&count, kernel, &config));
  return count;
}

inline void zero(void* memory, size_t bytes, Stream stream) { check(cudaMemsetAsync(memory, 0, bytes, stream)); }

}  // namespace pcf::cuda
#endif

// What kernels use of CUDA, beside its own functions for indices, barriers and lanes. The tests have another device.h,
// which runs kernels on the host (tests/csrc/emulation), with these functions and those of CUDA's that kernels use.
#pragma once

#include "cuda/standard.h"

#ifndef __CUDACC__
#include "emulation/device.h"
#else
#define PCF_DEVICE __device__ __forceinline__

namespace pcf::cuda {

PCF_DEVICE char* shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

// So that the compiler knows which memory a pointer is to, wherever it comes from.
PCF_DEVICE char* in_global_memory(uint64_t address) {
  char* const at = reinterpret_cast<char*>(address);
  __builtin_assume(__isGlobal(at));
  return at;
}

// Copies 16 bytes from global to shared memory, both aligned, bypassing L1; zeros if not `there`; nothing if not
// `wanted`, without a branch. The copy is done once its thread has waited for all of its copies.
PCF_DEVICE void copy_async(void* to, const void* from, bool there, bool wanted) {
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile(
      "{.reg .pred wanted; setp.ne.s32 wanted, %3, 0;\n"
      "@wanted cp.async.cg.shared.global [%0], [%1], 16, %2;}" ::"r"(shared),
      "l"(from), "r"(there ? 16 : 0), "r"(int{wanted})
      : "memory");
}
PCF_DEVICE void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// -- mbarriers: barriers at which one arrives before one waits. They are 8 bytes of shared memory. A phase of one is
// over when so many arrivals have come and, in a cluster, as many bytes as are expected; then the next begins.

PCF_DEVICE uint32_t shared_address(uint32_t at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared_memory())) + at;
}
// By one thread; __syncthreads() must follow before it is used.
PCF_DEVICE void init_barrier(uint32_t at, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(at)), "r"(arrivals) : "memory");
}
// At the barrier of one's own block: those who have seen the phase end see what was written before.
PCF_DEVICE void arrive_here(uint32_t at) {
  asm volatile("{.reg .b64 state; mbarrier.arrive.shared.b64 state, [%0];}" ::"r"(shared_address(at)) : "memory");
}
// Whether the phase of this parity is over: 0, then 1, then 0 again. From sm_90 on, it waits for a while.
PCF_DEVICE bool phase_is_over(uint32_t at, unsigned parity) {
  uint32_t is_over;
#if defined __CUDA_ARCH__ && __CUDA_ARCH__ < 900
#define PCF_WAIT "mbarrier.test_wait"
#else
#define PCF_WAIT "mbarrier.try_wait"
#endif
  asm volatile("{.reg .pred over; " PCF_WAIT
               ".parity.shared.b64 over, [%1], %2;\n"
               "selp.u32 %0, 1, 0, over;}"
               : "=r"(is_over)
               : "r"(shared_address(at)), "r"(parity)
               : "memory");
  return is_over;
}

// Grows by one every 2^32 cycles, which are two seconds or more.
PCF_DEVICE uint32_t time_passed() {
  uint32_t time;
  asm volatile("mov.u32 %0, %%clock_hi;" : "=r"(time));
  return time;
}
PCF_DEVICE void end_thread() { asm volatile("exit;"); }

// -- clusters, from sm_90 on: blocks that write to each other's shared memory; `at` is an offset of shared memory in
// all of them

PCF_DEVICE unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All that any thread of the cluster wrote before is seen after it. Slow: it waits for all writes to global memory.
PCF_DEVICE void sync_cluster() { asm volatile("barrier.cluster.arrive; barrier.cluster.wait;" ::: "memory"); }

PCF_DEVICE uint32_t address_in(unsigned rank, uint32_t at) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(at)), "r"(rank));
  return address;
}

// NVRTC and nvcc before 12.8 take these only with the order that is theirs without a word, which does more.
#if 100 * __CUDACC_VER_MAJOR__ + __CUDACC_VER_MINOR__ < 1208
#define PCF_RELAXED(scope)
#else
#define PCF_RELAXED(scope) ".relaxed" scope
#endif
// More bytes in this phase of one's own barrier.
PCF_DEVICE void expect_bytes(uint32_t at, int bytes) {
  asm volatile("mbarrier.expect_tx" PCF_RELAXED(".cta") ".shared::cta.b64 [%0], %1;" ::"r"(shared_address(at)),
               "r"(bytes)
               : "memory");
}
// At that of another block: it says only that what was read before has been read.
PCF_DEVICE void arrive(uint32_t at, unsigned rank) {
  asm volatile("mbarrier.arrive" PCF_RELAXED(".cluster") ".shared::cluster.b64 _, [%0];" ::"r"(address_in(rank, at))
               : "memory");
}
// Writes 4 or 8 bytes to another block's shared memory, and counts them at its barrier: they are seen by whoever has
// seen that phase end.
template <class T>
PCF_DEVICE void send(unsigned rank, uint32_t at, T value, uint32_t barrier) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  if constexpr (sizeof(T) == 4)
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(address_in(rank, at)),
        "r"(reinterpret_cast<const uint32_t&>(value)), "r"(address_in(rank, barrier))
        : "memory");
  else
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(address_in(rank, at)),
        "l"(reinterpret_cast<const uint64_t&>(value)), "r"(address_in(rank, barrier))
        : "memory");
}

// 16 bytes of global memory that nobody writes meanwhile, and that are not read again soon.
PCF_DEVICE uint4 stream(const void* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

// 16 bytes of shared memory, in the code's order: else compilers read more of them ahead than there are registers for.
PCF_DEVICE float4 shared_in_order(uint32_t at) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(shared_address(at))
               : "memory");
  return v;
}

// Waits for a number that was loaded. If nobody needs it in the end, the compiler waits much later, and then for all
// loads that share its scoreboard: a warp's whole stream of weights.
PCF_DEVICE float arrived(float x) {
  float same;
  asm("add.rn.f32 %0, %1, 0f80000000;" : "=f"(same) : "f"(x));
  return same;
}
PCF_DEVICE double arrived(double x) {
  double same;
  asm("add.rn.f64 %0, %1, 0d8000000000000000;" : "=d"(same) : "d"(x));
  return same;
}

constexpr unsigned kAllLanes = 0xffffffff;

// Of numbers, none of which is NaN: as integers they have the same order, if the bits of negative ones are turned.
PCF_DEVICE float max_over_warp(float x) {
  const auto turned = [](int bits) { return bits ^ (bits >> 31 & 0x7fffffff); };
  return __int_as_float(turned(__reduce_max_sync(kAllLanes, turned(__float_as_int(x)))));
}

// -- numbers: two narrow ones in a register, the first in its lower half

// Of numbers that are not negative; denormal ones become 0. In integers, as conversions take as long as exponentials
// do, in the same unit.
PCF_DEVICE double widened(float x) {
  const uint32_t bits = x < FLT_MIN ? 0 : __float_as_uint(x);
  return __hiloint2double(static_cast<int>(bits ? (bits >> 3) + (896 << 20) : 0), static_cast<int>(bits << 29));
}
PCF_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
PCF_DEVICE uint32_t pack_fp16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
PCF_DEVICE float2 unpack_bf16(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000)};
}
PCF_DEVICE float2 unpack_fp16(uint32_t pair) {
  float2 result;
  asm("{.reg .f16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
      : "=f"(result.x), "=f"(result.y)
      : "r"(pair));
  return result;
}

// -- sum[16, 8] += a[16, k] . b[k, 8]; each lane holds its part of the three, as PTX lays them out

#define PCF_MMA(name, shape_and_types)                                                               \
  PCF_DEVICE void name(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {            \
    asm("mma.sync.aligned." shape_and_types " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                     \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                         \
  }
PCF_MMA(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
PCF_MMA(mma_fp16, "m16n8k16.row.col.f32.f16.f16.f32")
#undef PCF_MMA

}  // namespace pcf::cuda
#endif

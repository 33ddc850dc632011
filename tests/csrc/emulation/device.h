// csrc/cuda/kernels/device.h for the host: the same functions, and CUDA's own that kernels use, on the scheduler's
// fibers.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "cuda/narrow.h"
#include "scheduler.h"

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline
#define PCF_DEVICE inline
#define __noinline__
#define __grid_constant__
#define __launch_bounds__(...)
// What lanes tell each other through the scheduler is no access to memory.
#define EMULATION_UNSEEN __attribute__((no_sanitize("thread")))

struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

// -- CUDA's own

using std::max;
using std::min;

// An index, which is each thread's own.
template <unsigned (*kIndex)()>
struct Index {
  struct {
    operator unsigned() const { return kIndex(); }
  } x;
};
constexpr Index<emulation::thread_index> threadIdx;
constexpr Index<emulation::block_index> blockIdx;

inline void __syncthreads(unsigned line = __builtin_LINE()) {
  if (!emulation::left_out("__syncthreads", line)) emulation::sync_block(line);
}
inline void __syncwarp(unsigned line = __builtin_LINE()) {
  if (!emulation::left_out("__syncwarp", line)) emulation::sync_lanes(nullptr, nullptr, true);
}

inline void atomicMin(unsigned long long* at, unsigned long long value) {
  unsigned long long now = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (value < now && !__atomic_compare_exchange_n(at, &now, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

constexpr uint32_t kAllLanes = 0xffffffff;  // the only lanes that kernels ask for

template <class T>
struct Shuffle {
  T value;
  int from;
};
template <class T>
T __shfl_sync(uint32_t, T value, int from) {
  Shuffle<T> mine{value, from};
  emulation::sync_lanes(
      &mine,
      [](void** posts) EMULATION_UNSEEN {
        T values[32];
        for (int lane = 0; lane < 32; lane++) values[lane] = static_cast<Shuffle<T>*>(posts[lane])->value;
        for (int lane = 0; lane < 32; lane++) {
          auto* post = static_cast<Shuffle<T>*>(posts[lane]);
          post->value = values[post->from & 31];
        }
      },
      false);
  return mine.value;
}
inline int lane_index() { return static_cast<int>(threadIdx.x & 31u); }
template <class T>
T __shfl_xor_sync(uint32_t lanes, T value, int mask) {
  return __shfl_sync(lanes, value, lane_index() ^ mask);
}
template <class T>
T __shfl_up_sync(uint32_t lanes, T value, int by) {
  return __shfl_sync(lanes, value, lane_index() < by ? lane_index() : lane_index() - by);
}
// combine(combine(lane 0's, lane 1's), ...)
template <class T, class Combine>
T over_lanes(T x, const Combine&) {
  emulation::sync_lanes(
      &x,
      [](void** posts) EMULATION_UNSEEN {
        T found = *static_cast<T*>(posts[0]);
        for (int lane = 1; lane < 32; lane++) found = Combine{}(found, *static_cast<T*>(posts[lane]));
        for (int lane = 0; lane < 32; lane++) *static_cast<T*>(posts[lane]) = found;
      },
      false);
  return x;
}
inline uint32_t __ballot_sync(uint32_t, bool mine) {
  return over_lanes(static_cast<uint32_t>(mine) << lane_index(), [](uint32_t a, uint32_t b) { return a | b; });
}
inline int __reduce_min_sync(uint32_t, int x) {
  return over_lanes(x, [](int a, int b) { return min(a, b); });
}
inline int __reduce_max_sync(uint32_t, int x) {
  return over_lanes(x, [](int a, int b) { return max(a, b); });
}
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }

namespace pcf::cuda {

inline char* shared_memory() { return emulation::shared_memory(); }

inline char* in_global_memory(uint64_t address) { return emulation::global_memory(address); }

inline void end_thread() { emulation::end_thread(); }
inline uint32_t time_passed() { return emulation::time_passed(); }

// Writing a byte to itself tells the sanitizers of a copy that the scheduler makes unseen.
inline void copy_async(void* to, const void* from, bool there, bool wanted) {
  if (!wanted) return;
  alignas(16) static const char zeros[16] = {};
  if (!there) from = zeros;
  volatile char *target = static_cast<char*>(to), value = *static_cast<const volatile char*>(from);
  (void)value;
  *target = *target;
  emulation::copy_async(to, from);
}
inline void wait_copies(unsigned line = __builtin_LINE()) {
  if (!emulation::left_out("wait_copies", line)) emulation::wait_copies();
}

// -- clusters. A barrier's 8 bytes are written when it begins and looked at by whoever uses it, so that the thread
// sanitizer sees a use that nothing orders behind the beginning.

inline unsigned cluster_rank() { return emulation::cluster_rank(); }
inline void sync_cluster(unsigned line = __builtin_LINE()) {
  if (!emulation::left_out("sync_cluster", line)) emulation::sync_cluster(line);
}
inline volatile uint64_t* barrier_of(unsigned rank, uint32_t at) {
  return reinterpret_cast<volatile uint64_t*>(emulation::in_cluster(rank, at, 8));
}
inline void init_barrier(uint32_t at, int arrivals) {
  *barrier_of(cluster_rank(), at) = emulation::kBarrier;
  emulation::init_barrier(at, arrivals);
}
inline void expect_bytes(uint32_t at, int bytes, unsigned line = __builtin_LINE()) {
  if (emulation::left_out("expect_bytes", line)) return;
  (void)*barrier_of(cluster_rank(), at);
  emulation::expect_bytes(at, bytes);
}
inline void arrive(uint32_t at, unsigned rank, unsigned line = __builtin_LINE()) {
  if (emulation::left_out("arrive", line)) return;
  (void)*barrier_of(rank, at);
  emulation::arrive(at, rank);
}
inline void arrive_here(uint32_t at, unsigned line = __builtin_LINE()) { arrive(at, cluster_rank(), line); }
inline bool phase_is_over(uint32_t at, unsigned parity, unsigned line = __builtin_LINE()) {
  if (emulation::left_out("phase_is_over", line)) return true;
  (void)*barrier_of(cluster_rank(), at);
  return emulation::phase_is_over(at, parity);
}
// Writes to itself what lies there, as copy_async does.
template <class T>
void send(unsigned rank, uint32_t at, T value, uint32_t barrier) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  Bits bits;
  std::memcpy(&bits, &value, sizeof bits);
  auto* target = reinterpret_cast<volatile Bits*>(emulation::in_cluster(rank, at, sizeof bits));
  (void)*barrier_of(rank, barrier);
  *target = *target;
  emulation::send(rank, at, bits, sizeof bits, barrier);
}

inline uint4 stream(const void* from) { return *static_cast<const uint4*>(from); }

inline float4 shared_in_order(uint32_t at) { return *reinterpret_cast<const float4*>(shared_memory() + at); }

template <class T>
T arrived(T x) {
  return x;
}

// -- numbers

inline float max_over_warp(float x) {
  return over_lanes(x, [](float a, float b) { return max(a, b); });
}
inline double widened(float x) { return x < FLT_MIN ? 0 : x; }
inline uint32_t pack_bf16(float low, float high) { return to_bf16(low) | uint32_t{to_bf16(high)} << 16; }
inline uint32_t pack_fp16(float low, float high) { return to_fp16(low) | uint32_t{to_fp16(high)} << 16; }
inline float from_bf16(uint32_t half) { return std::bit_cast<float>(half << 16); }

inline float from_fp16(uint32_t half) {
  const uint32_t sign = (half & 0x8000) << 16, rest = half & 0x7fff;
  if (rest >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000 | rest << 13);
  if (rest < 0x400) return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(static_cast<float>(rest) * 0x1p-24f));
  return std::bit_cast<float>(sign | ((rest << 13) + 0x38000000));
}
inline float2 unpack_bf16(uint32_t pair) { return {from_bf16(pair & 0xffff), from_bf16(pair >> 16)}; }
inline float2 unpack_fp16(uint32_t pair) { return {from_fp16(pair & 0xffff), from_fp16(pair >> 16)}; }

// -- sum[16, 8] += a[16, k] . b[k, 8], each lane holding its part of the three, as PTX lays them out

struct Mma {
  float* sum;
  uint32_t a[4], b[2];
};

// unpack(bits) -> float. A register holds two values, neighbours in k.
template <float (*kUnpack)(uint32_t)>
void mma(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Mma mine{sum, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  emulation::sync_lanes(
      &mine,
      [](void** posts) EMULATION_UNSEEN {
        float left[16][16], right[16][8];
        for (int lane = 0; lane < 32; lane++) {
          const Mma& post = *static_cast<Mma*>(posts[lane]);
          const int group = lane / 4, member = lane % 4;
          for (int half = 0; half < 2; half++) {
            const auto unpacked = [&](uint32_t pair) { return kUnpack(half ? pair >> 16 : pair & 0xffff); };
            for (int r = 0; r < 4; r++) left[group + r % 2 * 8][member * 2 + half + r / 2 * 8] = unpacked(post.a[r]);
            for (int r = 0; r < 2; r++) right[member * 2 + half + r * 8][group] = unpacked(post.b[r]);
          }
        }
        for (int lane = 0; lane < 32; lane++)
          for (int r = 0; r < 4; r++) {
            float& s = static_cast<Mma*>(posts[lane])->sum[r];
            for (int k = 0; k < 16; k++) s += left[lane / 4 + r / 2 * 8][k] * right[k][lane % 4 * 2 + r % 2];
          }
      },
      false);
}
inline void mma_bf16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma<from_bf16>(sum, a, b); }
inline void mma_fp16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma<from_fp16>(sum, a, b); }

}  // namespace pcf::cuda

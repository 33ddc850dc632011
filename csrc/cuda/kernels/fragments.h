// How a warp multiplies fragments (layout.h), for each kind of numbers. Lane = 4 * group + member.
#pragma once

#include "cuda/kernels/device.h"
#include "cuda/layout.h"

namespace pcf::cuda {

// Shared memory by offset, so that the compiler knows which memory it is.
template <class T>
__device__ __forceinline__ T& in_shared(uint32_t at) {
  return *reinterpret_cast<T*>(shared_memory() + at);
}

// sums += weights . values, for 16 channels and 8 sites. The tensor cores' products alternate between two sets of sums,
// so that one need not wait for the other.
template <Math kMath>
struct Fragment {
  // A lane's values of a fragment. `at`: where those of site `group` lie.
  static __device__ __forceinline__ uint4 values(uint32_t at, int lane) {
    return in_shared<const uint4>(at + lane % 4 * 16);
  }

  static __device__ __forceinline__ void multiply(float (&sums)[2][4], const uint4 (&weights)[2], const uint4& values) {
    product(sums[0], weights[0], values.x, values.y);
    product(sums[1], weights[1], values.z, values.w);
  }

  // x: those of (channel 2 group, site 2 member), (2 group, 2 member + 1), (2 group + 1, 2 member), (2 group + 1,
  // 2 member + 1).
  static __device__ __forceinline__ void finish(float (&x)[4], const float (&sums)[2][4], int) {
#pragma unroll
    for (int r = 0; r < 4; r++) x[r] = sums[0][r] + sums[1][r];
  }

 private:
  static __device__ __forceinline__ void product(float (&sum)[4], const uint4& w, uint32_t low, uint32_t high) {
    const uint32_t a[4] = {w.x, w.y, w.z, w.w};
    if constexpr (kMath == Math::tf32) {
      const uint32_t b[2] = {round_tf32(low), round_tf32(high)};
      mma_tf32(sum, a, b);
    } else {
      const uint32_t b[2] = {low, high};
      kMath == Math::bf16 ? mma_bf16(sum, a, b) : mma_fp16(sum, a, b);
    }
  }
};

// Exact float32: fused multiply-adds. A lane sums one channel, lane / 2, at all 8 sites over half of the input
// channels.
template <>
struct Fragment<Math::fp32> {
  // Where the lane's half of each site's values lies.
  struct Places {
    uint32_t of_site[8];
  };
  static __device__ __forceinline__ Places values(uint32_t at, int lane) {
    Places p;
#pragma unroll
    for (int site = 0; site < 8; site++) p.of_site[site] = shuffle(at, site * 4) + lane % 2 * 32;
    return p;
  }

  static __device__ __forceinline__ void multiply(float (&sums)[2][4], const uint4 (&weights)[2], const Places& p) {
#pragma unroll
    for (int site = 0; site < 8; site++)
#pragma unroll
      for (int quarter = 0; quarter < 2; quarter++)
        add_dot(sums[site / 4][site % 4], weights[quarter], in_shared<const float4>(p.of_site[site] + quarter * 16));
  }

  static __device__ __forceinline__ void finish(float (&x)[4], const float (&sums)[2][4], int lane) {
    float of_channel[8];
#pragma unroll
    for (int site = 0; site < 8; site++)
      of_channel[site] = sums[site / 4][site % 4] + shuffle_xor(sums[site / 4][site % 4], 1);
    const int source = lane / 4 * 4;  // it has channel 2 group
#pragma unroll
    for (int member = 0; member < 4; member++)
#pragma unroll
      for (int r = 0; r < 4; r++) {
        const float found = shuffle(of_channel[2 * member + r % 2], source + r / 2 * 2);
        if (lane % 4 == member) x[r] = found;
      }
  }

 private:
  static __device__ __forceinline__ void add_dot(float& sum, const uint4& a, const float4& b) {
    sum = fmaf(as_float(a.x), b.x, sum);
    sum = fmaf(as_float(a.y), b.y, sum);
    sum = fmaf(as_float(a.z), b.z, sum);
    sum = fmaf(as_float(a.w), b.w, sum);
  }
};

template <Math kMath>
constexpr int kDepth = depth_of(kMath);

// Where a channel of a site lies in a value of `tiles` tiles of sites, from the site on.
template <Math kMath>
__device__ __forceinline__ uint32_t offset_of(unsigned channel, int tiles) {
  return channel / kDepth<kMath> * (tiles * kFragmentBytes) + channel % kDepth<kMath> * (kSiteBytes / kDepth<kMath>);
}

// Two neighbouring channels, the first of them even, as they are stored.
template <Math kMath>
struct Pair {
  float2 stored;
  __device__ __forceinline__ explicit Pair(float first, float second) : stored{first, second} {}
  __device__ __forceinline__ float2 values() const { return stored; }
};
template <>
struct Pair<Math::bf16> {
  uint32_t stored;
  __device__ __forceinline__ explicit Pair(float first, float second) : stored(pack_bf16(first, second)) {}
  __device__ __forceinline__ float2 values() const { return unpack_bf16(stored); }
};
template <>
struct Pair<Math::fp16> {
  uint32_t stored;
  __device__ __forceinline__ explicit Pair(float first, float second) : stored(pack_fp16(first, second)) {}
  __device__ __forceinline__ float2 values() const { return unpack_fp16(stored); }
};

// One channel, as it is stored.
template <Math kMath>
__device__ __forceinline__ auto stored(float x) {
  if constexpr (kMath == Math::bf16)
    return static_cast<uint16_t>(pack_bf16(x, 0));
  else if constexpr (kMath == Math::fp16)
    return static_cast<uint16_t>(pack_fp16(x, 0));
  else
    return x;
}

}  // namespace pcf::cuda

// How a warp reads and multiplies fragments (plan.h), for each kind of numbers. Lane = 4 * group + member.
#pragma once

#include "cuda/device.h"
#include "cuda/plan.h"

namespace pcf::cuda {

// sum[16 channels, 8 images] += weights . input. A lane's sums are those of two neighbouring channels and images:
// (channel 2g, image 2m), (2g, 2m + 1), (2g + 1, 2m), (2g + 1, 2m + 1). The two halves of the depth go to two sums,
// so that the second product need not wait for the first; both may be the same array.
template <Math kMath>
struct Fragment {
  struct Weights {
    uint4 half[2];
  };
  struct Input {
    uint4 x;
  };
  static __device__ __forceinline__ Weights weights(const char* fragment, int lane) {
    const uint4* at = reinterpret_cast<const uint4*>(fragment) + lane;
    return {at[0], at[32]};
  }
  static __device__ __forceinline__ Input input(const char* fragment, int lane) {
    return {reinterpret_cast<const uint4*>(fragment)[lane]};
  }
  static __device__ __forceinline__ void multiply(float (&even)[4], float (&odd)[4], const Weights& w,
                                                  const Input& in) {
    product(even, w.half[0], in.x.x, in.x.y);
    product(odd, w.half[1], in.x.z, in.x.w);
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

// Exact float32: fused multiply-adds, for which each lane reads the rows and images of its sums.
template <>
struct Fragment<Math::fp32> {
  struct Weights {
    const float4* row;
  };
  struct Input {
    const float4* image;
  };
  static __device__ __forceinline__ Weights weights(const char* fragment, int lane) {
    return {reinterpret_cast<const float4*>(fragment) + lane / 4};
  }
  static __device__ __forceinline__ Input input(const char* fragment, int lane) {
    return {reinterpret_cast<const float4*>(fragment) + lane % 4 * 8};
  }
  static __device__ __forceinline__ void multiply(float (&even)[4], float (&odd)[4], const Weights& w,
                                                  const Input& in) {
#pragma unroll
    for (int quarter = 0; quarter < 4; quarter++) {
      const float4 first = w.row[quarter * kRows], second = w.row[quarter * kRows + 8];
      const float4 left = in.image[quarter], right = in.image[quarter + 4];
      float (&sum)[4] = quarter % 2 ? odd : even;
      add_dot(sum[0], first, left);
      add_dot(sum[1], first, right);
      add_dot(sum[2], second, left);
      add_dot(sum[3], second, right);
    }
  }

 private:
  static __device__ __forceinline__ void add_dot(float& sum, const float4& a, const float4& b) {
    sum = fmaf(a.x, b.x, sum);
    sum = fmaf(a.y, b.y, sum);
    sum = fmaf(a.z, b.z, sum);
    sum = fmaf(a.w, b.w, sum);
  }
};

template <Math kMath>
constexpr int kDepth = depth_of(kMath);

// Where a channel of an image lies in a column of a value.
template <Math kMath>
__device__ __forceinline__ int offset_of(int channel, int image) {
  constexpr int kImage = kInputBytes / kTile;
  return channel / kDepth<kMath> * kInputBytes + image * kImage + channel % kDepth<kMath> * (kImage / kDepth<kMath>);
}

// Two neighbouring channels, the first of them even.
template <Math kMath>
__device__ __forceinline__ float2 load_pair(const char* at) {
  if constexpr (kMath == Math::bf16) return unpack_bf16(*reinterpret_cast<const uint32_t*>(at));
  if constexpr (kMath == Math::fp16) return unpack_fp16(*reinterpret_cast<const uint32_t*>(at));
  if constexpr (kDepth<kMath> == 16) return *reinterpret_cast<const float2*>(at);
}
template <Math kMath>
__device__ __forceinline__ void store_pair(char* at, float first, float second) {
  if constexpr (kMath == Math::bf16) *reinterpret_cast<uint32_t*>(at) = pack_bf16(first, second);
  if constexpr (kMath == Math::fp16) *reinterpret_cast<uint32_t*>(at) = pack_fp16(first, second);
  if constexpr (kDepth<kMath> == 16) *reinterpret_cast<float2*>(at) = {first, second};
}
template <Math kMath>
__device__ __forceinline__ void store_one(char* at, float x) {
  if constexpr (kMath == Math::bf16) *reinterpret_cast<uint16_t*>(at) = static_cast<uint16_t>(pack_bf16(x, 0));
  if constexpr (kMath == Math::fp16) *reinterpret_cast<uint16_t*>(at) = static_cast<uint16_t>(pack_fp16(x, 0));
  if constexpr (kDepth<kMath> == 16) *reinterpret_cast<float*>(at) = x;
}

}  // namespace pcf::cuda

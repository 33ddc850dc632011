// How a warp multiplies fragments (layout.h), and how their channels are stored. Lane = 4 * group + member.
#pragma once

#include "cuda/kernels/block.h"

namespace pcf::cuda {

// sums += weights . values, for 16 channels and 8 sites. The tensor cores' products alternate between two sets of sums,
// so that one need not wait for the other.
struct NarrowFragment {
  // A lane's values of a fragment. `at`: where those of site `group` lie.
  static PCF_DEVICE uint4 values(uint32_t at, int lane) { return in_shared<const uint4>(at + lane % 4 * 16); }

  static PCF_DEVICE void multiply(float (&sums)[2][4], const uint4 (&weights)[2], const uint4& values) {
    const uint32_t b[2][2] = {{values.x, values.y}, {values.z, values.w}};
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint4& w = weights[half];
      const uint32_t a[4] = {w.x, w.y, w.z, w.w};
      kMath == Math::bf16 ? mma_bf16(sums[half], a, b[half]) : mma_fp16(sums[half], a, b[half]);
    }
  }

  // x: those of (channel 2 group, site 2 member), (2 group, 2 member + 1), (2 group + 1, 2 member), (2 group + 1,
  // 2 member + 1).
  static PCF_DEVICE void finish(float (&x)[4], const float (&sums)[2][4], int) {
#pragma unroll
    for (int r = 0; r < 4; r++) x[r] = sums[0][r] + sums[1][r];
  }
};

// Exact float32: fused multiply-adds. A lane sums one channel, lane / 2, at all 8 sites over half of the input
// channels.
struct ExactFragment {
  // Where the lane's half of each site's values lies.
  struct Places {
    uint32_t of_site[8];
  };
  static PCF_DEVICE Places values(uint32_t at, int lane) {
    Places p;
#pragma unroll
    for (int site = 0; site < 8; site++) p.of_site[site] = __shfl_sync(kAllLanes, at, site * 4) + lane % 2 * 32;
    return p;
  }

  static PCF_DEVICE void multiply(float (&sums)[2][4], const uint4 (&weights)[2], const Places& p) {
#pragma unroll
    for (int site = 0; site < 8; site++)
#pragma unroll
      for (int quarter = 0; quarter < 2; quarter++) {
        const uint4& a = weights[quarter];
        const float4 b = shared_in_order(p.of_site[site] + quarter * 16);
        float& sum = sums[site / 4][site % 4];
        sum = fmaf(__uint_as_float(a.x), b.x, sum), sum = fmaf(__uint_as_float(a.y), b.y, sum);
        sum = fmaf(__uint_as_float(a.z), b.z, sum), sum = fmaf(__uint_as_float(a.w), b.w, sum);
      }
  }

  static PCF_DEVICE void finish(float (&x)[4], const float (&sums)[2][4], int lane) {
    float of_channel[8];
#pragma unroll
    for (int site = 0; site < 8; site++)
      of_channel[site] = sums[site / 4][site % 4] + __shfl_xor_sync(kAllLanes, sums[site / 4][site % 4], 1);
    const int source = lane / 4 * 4;  // it has channel 2 group
#pragma unroll
    for (int member = 0; member < 4; member++)
#pragma unroll
      for (int r = 0; r < 4; r++) {
        const float found = __shfl_sync(kAllLanes, of_channel[2 * member + r % 2], source + r / 2 * 2);
        if (lane % 4 == member) x[r] = found;
      }
  }
};

// Two neighbouring channels, the first of them even, as they are stored.
struct ExactPair {
  float2 stored;
  PCF_DEVICE ExactPair(float first, float second) : stored{first, second} {}
  PCF_DEVICE float2 values() const { return stored; }
};
struct NarrowPair {
  uint32_t stored;
  PCF_DEVICE NarrowPair(float first, float second)
      : stored(kMath == Math::bf16 ? pack_bf16(first, second) : pack_fp16(first, second)) {}
  PCF_DEVICE float2 values() const { return kMath == Math::bf16 ? unpack_bf16(stored) : unpack_fp16(stored); }
};

constexpr bool kExact = kMath == Math::fp32;
using Fragment = std::conditional_t<kExact, ExactFragment, NarrowFragment>;
using Pair = std::conditional_t<kExact, ExactPair, NarrowPair>;
using Stored = std::conditional_t<kExact, float, uint16_t>;  // one channel

PCF_DEVICE Stored stored(float x) {
  return kExact ? static_cast<Stored>(x) : static_cast<Stored>(NarrowPair(x, 0).stored);
}

// Where a channel of a site lies in a value, from its first site on, if a fragment has so many channels.
PCF_DEVICE uint32_t offset_at(unsigned channel, int site, int depth = kDepth) {
  return channel / depth * kColumnBytes + channel % depth * (kSiteBytes / depth) + site * kSiteBytes;
}

}  // namespace pcf::cuda

// The live taps of a masked convolution, and how they are grouped.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/ops/masked_conv2d.h"
#include "cpu/simd/kernels.h"

namespace pcf::cpu {

// A tap of the kernel, and what it reads: map(y + dy, x + dx) for the result at (y, x).
struct KernelTap {
  int ky, kx, dy, dx;
};

inline std::vector<KernelTap> live_taps(const MaskedWeight& w, const Geometry& g) {
  const FeatureMap& mask = w.mask;
  return with_element(w.element(), [&](auto element) {
    const auto live = [&](int ky, int kx) {
      for (int o = 0; o < (mask.stride_n ? w.out() : std::min(w.out(), 1)); o++)
        for (int i = 0; i < (mask.stride_c ? w.in() : std::min(w.in(), 1)); i++)
          if (convert<double>(*mask.at<decltype(element)>(o, i, ky, kx)) != 0) return true;
      return false;
    };
    std::vector<KernelTap> taps;
    for (int ky = 0; ky < mask.height; ky++)
      for (int kx = 0; kx < mask.width; kx++)
        if (live(ky, kx))
          taps.push_back({ky, kx, ky * g.dilation[0] - g.padding[0], kx * g.dilation[1] - g.padding[1]});
    return taps;
  });
}

// The extent of taps around a pixel.
struct Reach {
  int up = 0, down = 0, left = 0, right = 0;
  Reach() = default;
  explicit Reach(const std::vector<KernelTap>& taps) {
    for (const KernelTap& t : taps)
      up = std::max(up, -t.dy), down = std::max(down, t.dy), left = std::max(left, -t.dx),
      right = std::max(right, t.dx);
  }
};

// Horizontally adjacent taps.
struct TapRun {
  int dy, dx;
  std::vector<KernelTap> taps;
};

inline std::vector<TapRun> runs_of(std::vector<KernelTap> taps) {
  std::sort(taps.begin(), taps.end(),
            [](const KernelTap& a, const KernelTap& b) { return std::pair(a.dy, a.dx) < std::pair(b.dy, b.dx); });
  std::vector<TapRun> runs;
  for (const KernelTap& tap : taps) {
    const bool adjacent = !runs.empty() && runs.back().dy == tap.dy && runs.back().taps.back().dx + 1 == tap.dx;
    if (!adjacent) runs.push_back({tap.dy, tap.dx, {}});
    runs.back().taps.push_back(tap);
  }
  return runs;
}

// What weights are packed as: bf16 only where it is multiplied, since expanding it would take time.
template <class T>
WeightFormat packed_as(const MaskedWeight& w, const Kernels<T>& kernels) {
  return w.element() == Element::bfloat16 && kernels.multiplies_bf16() ? WeightFormat::bf16 : WeightFormat::same;
}

constexpr int kFewestChannels = 40;  // with fewer, products of neighbours take too long to prepare

// Whether a run takes fewer products in pairs of pixels (neighbours.h). Its taps must have the same mask: else what
// only one of them masks would cancel out, but for rounding.
inline bool in_pairs(const MaskedWeight& w, const TapRun& run) {
  if (run.taps.size() < 2 || w.in() < kFewestChannels || w.out() < kFewestChannels) return false;
  return with_element(w.element(), [&](auto element) {
    const auto mask = [&](int o, int i, const KernelTap& tap) {
      return convert<double>(*w.mask.at<decltype(element)>(o, i, tap.ky, tap.kx));
    };
    for (int o = 0; o < (w.mask.stride_n ? w.out() : 1); o++)
      for (int i = 0; i < (w.mask.stride_c ? w.in() : 1); i++)
        for (const KernelTap& tap : run.taps)
          if (mask(o, i, tap) != mask(o, i, run.taps[0])) return false;
    return true;
  });
}

}  // namespace pcf::cpu

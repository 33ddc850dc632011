// The live taps of a masked convolution, and how they are grouped.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/ops/masked_conv2d.h"
#include "cpu/simd/kernels.h"

namespace pcf::cpu {

// A tap of the kernel, and what it reads: map(y + dy, x + dx) for the result at (y, x).
struct Tap {
  int ky, kx, dy, dx;
};

inline std::vector<Tap> live_taps(const MaskedWeight& w, const Geometry& g) {
  std::vector<Tap> taps;
  with_element(w.element, [&](auto element) {
    const auto* mask = static_cast<const decltype(element)*>(w.mask);
    const int64_t* s = w.mask_strides;
    const auto live = [&](int ky, int kx) {
      for (int o = 0; o < (s[0] ? w.out : std::min(w.out, 1)); o++)
        for (int i = 0; i < (s[1] ? w.in : std::min(w.in, 1)); i++)
          if (convert<double>(mask[o * s[0] + i * s[1] + ky * s[2] + kx * s[3]]) != 0) return true;
      return false;
    };
    for (int ky = 0; ky < w.height; ky++)
      for (int kx = 0; kx < w.width; kx++)
        if (live(ky, kx)) taps.push_back({ky, kx, ky * g.dilation_y - g.pad_y, kx * g.dilation_x - g.pad_x});
  });
  return taps;
}

// The extent of taps around a pixel.
struct Reach {
  int up = 0, down = 0, left = 0, right = 0;
  Reach() = default;
  explicit Reach(const std::vector<Tap>& taps) {
    for (const Tap& t : taps)
      up = std::max(up, -t.dy), down = std::max(down, t.dy), left = std::max(left, -t.dx),
      right = std::max(right, t.dx);
  }
};

// Horizontally adjacent taps.
struct Run {
  int dy, dx;
  std::vector<Tap> taps;
};

inline std::vector<Run> runs_of(std::vector<Tap> taps) {
  std::sort(taps.begin(), taps.end(),
            [](const Tap& a, const Tap& b) { return std::pair(a.dy, a.dx) < std::pair(b.dy, b.dx); });
  std::vector<Run> runs;
  for (const Tap& tap : taps) {
    const bool adjacent = !runs.empty() && runs.back().dy == tap.dy && runs.back().taps.back().dx + 1 == tap.dx;
    if (!adjacent) runs.push_back({tap.dy, tap.dx, {}});
    runs.back().taps.push_back(tap);
  }
  return runs;
}

// What weights are packed as: bf16 only where it is multiplied, since expanding it would take time.
template <class T>
Weights packed_as(const MaskedWeight& w, const Kernels<T>& kernels) {
  return w.element == Element::bfloat16 && kernels.multiplies_bf16() ? Weights::bf16 : Weights::same;
}

constexpr int kFewestChannels = 40;  // with fewer, products of neighbours take too long to prepare

// Whether a run takes fewer products in pairs of pixels (neighbours.h). Its taps must have the same mask: else what
// only one of them masks would cancel out, but for rounding.
inline bool in_pairs(const MaskedWeight& w, const Run& run) {
  if (run.taps.size() < 2 || w.in < kFewestChannels || w.out < kFewestChannels) return false;
  return with_element(w.element, [&](auto element) {
    const auto* mask = static_cast<const decltype(element)*>(w.mask);
    const int64_t* m = w.mask_strides;
    const auto place = [&](const Tap& tap) { return tap.ky * m[2] + tap.kx * m[3]; };
    const int64_t first = place(run.taps[0]);
    for (int o = 0; o < (m[0] ? w.out : 1); o++)
      for (int i = 0; i < (m[1] ? w.in : 1); i++) {
        const auto* at = mask + o * m[0] + i * m[1];
        for (size_t t = 1; t < run.taps.size(); t++)
          if (convert<double>(at[place(run.taps[t])]) != convert<double>(at[first])) return false;
      }
    return true;
  });
}

}  // namespace pcf::cpu

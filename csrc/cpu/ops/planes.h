// A convolution of a single tap whose result is stored channel by channel: its product's rows are output channels, and
// pixels take the place of packed weights. So planes are written as they are computed, and only x may have to be
// transposed.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/memory/pool.h"
#include "cpu/ops/masked_conv2d.h"
#include "cpu/ops/taps.h"
#include "cpu/simd/cpu_features.h"
#include "cpu/simd/kernels.h"
#include "cpu/threads/parallel.h"

namespace pcf::cpu {

template <class T>
class PlaneConvolution {
 public:
  static bool computes(const FeatureMap& in, const FeatureMap& out, const MaskedWeight& w,
                       const std::vector<KernelTap>& taps, const ConvEpilogue& e) {
    const auto is_line = [](const FeatureMap& map) {  // whether pixels are equally far apart
      return map.element == element_of<T> && map.stride_y == map.width * map.stride_x;
    };
    const bool is_plain = !e.condition && !e.residual && e.is_none_or_relu();
    return w.element() == element_of<T> && taps.size() == 1 && taps[0].dy == 0 && taps[0].dx == 0 &&
           in.height == out.height && in.width == out.width && is_line(in) && is_line(out) && out.stride_x == 1 &&
           is_plain && out.height * out.width >= kernels<T>(chosen_isa()).block;
  }

  PlaneConvolution(const MaskedWeight& w, const KernelTap& tap, const ConvEpilogue& e)
      : kernels_(kernels<T>(chosen_isa())), depth_(w.in() + 1), relu_(e.activation), rows_(int64_t{w.out()} * depth_) {
    with_element(w.element(), [&](auto element) {
      for (int o = 0; o < w.out(); o++) {
        T* const row = rows_.data() + int64_t{o} * depth_;
        const T scale = e.scale ? static_cast<const T*>(e.scale)[o] : T(1);
        row[0] = (e.bias ? static_cast<const T*>(e.bias)[o] : T(0)) * scale;  // times a row of ones
        if (e.shift) row[0] += static_cast<const T*>(e.shift)[o];
        for (int i = 0; i < w.in(); i++) row[1 + i] = w.at<T, decltype(element)>(o, i, tap.ky, tap.kx) * scale;
      }
    });
  }

  void run(const FeatureMap& in, const FeatureMap& out, int threads) const {
    const int block = kernels_.block, pixels = out.height * out.width, blocks = (pixels + block - 1) / block;
    const int together = std::clamp(out.images * blocks / (4 * threads), 1, kBlocks);
    const int parts = (blocks + together - 1) / together;
    if (int64_t{out.images} * pixels * static_cast<int64_t>(rows_.size()) < 1 << 20) threads = 1;
    const std::vector<T> zeros(int64_t{together} * block);
    std::vector<Scratch> scratch;
    for (int t = 0; t < threads; t++) scratch.emplace_back(*this, out.channels, together, zeros.data());
    parallel(threads, out.images * parts, [&](int member, int i) {
      const int part = i % parts;
      convolve(in, out, scratch[member], i / parts, part * together, std::min((part + 1) * together, blocks));
    });
  }

 private:
  static constexpr int kBlocks = 32;  // of pixels that are packed at once, at most
  static constexpr int kRows = 12;    // planes that are written at once: few enough for the processor to foresee

  struct Scratch {
    Scratch(const PlaneConvolution& c, int planes, int blocks, const T* zeros)
        : x(int64_t{blocks} * c.depth_ * c.kernels_.block * sizeof(T)), from(planes, zeros),
          rows(rows_from(const_cast<T*>(c.rows_.data()), planes, c.depth_)), to(planes) {}
    Block x;  // pixels, [blocks][depth][block]
    std::vector<const T*> from;
    std::vector<T*> rows, to;
  };

  // The blocks first...last-1 of an image's pixels. The last block ends with the image: it may overlap the one before.
  void convolve(const FeatureMap& in, const FeatureMap& out, Scratch& s, int image, int first, int last) const {
    const int block = kernels_.block, pixels = out.height * out.width;
    const int64_t size = int64_t{depth_} * block;
    const auto begin = [&](int b) { return std::min(b * block, pixels - block); };
    T* const x = static_cast<T*>(s.x.data());
    for (int b = first; b < last; b++) {
      T* const to = x + (b - first) * size;
      const T* from = static_cast<const T*>(in.data) + image * in.stride_n + begin(b) * in.stride_x;
      std::fill_n(to, block, T(1));
      copy_row(from, in.stride_c, in.stride_x, to + block, block, 1, in.channels, block);
    }
    const auto multiply = [&](int b, int count) {
      T* const plane = static_cast<T*>(out.data) + image * out.stride_n + begin(b);
      for (int o = 0; o < out.channels; o++) s.to[o] = plane + o * out.stride_c;
      const Packed packed{x + (b - first) * size, depth_, size * static_cast<int64_t>(sizeof(T)), WeightFormat::same};
      for (int o = 0; o < out.channels; o += kRows)
        kernels_.matmul(s.rows.data() + o, std::min(kRows, out.channels - o), packed, 0, count,
                        {s.from.data() + o, s.to.data() + o, nullptr, relu_});
    };
    const int whole = std::min(last, pixels / block);
    if (whole > first) multiply(first, whole - first);
    if (whole < last) multiply(whole, last - whole);
  }

  const Kernels<T>& kernels_;
  const int depth_;  // one for the bias, with which sums begin, and input channels
  const bool relu_;
  std::vector<T> rows_;  // [output channels][depth]
};

}  // namespace pcf::cpu

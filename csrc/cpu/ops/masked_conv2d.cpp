#include "cpu/ops/masked_conv2d.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "cpu/ops/memory_pool.h"
#include "cpu/ops/neighbours.h"
#include "cpu/ops/taps.h"
#include "cpu/simd/cpu_features.h"
#include "cpu/simd/kernels.h"
#include "cpu/threads/parallel.h"

namespace pcf::cpu {
namespace {

// Pixels in one matrix product: a multiple of every micro-kernel's rows, and few enough to stay in cache.
constexpr int kPixels = 96;

// One convolution between feature maps. Transposed, it is the input gradient, from O to I channels with mirrored taps.
template <class T>
class Convolution {
 public:
  Convolution(const MaskedWeight& w, const Geometry& g, bool transposed, const void* scale, int threads)
      : isa_(chosen_isa()), kernels_(kernels<T>(isa_)), channels_in_(transposed ? w.out : w.in),
        channels_out_(transposed ? w.in : w.out), blocks_((channels_out_ + kernels_.block - 1) / kernels_.block),
        padded_(blocks_ * kernels_.block) {
    std::vector<Tap> taps = live_taps(w, g);
    if (transposed)
      for (Tap& tap : taps) tap.dy = -tap.dy, tap.dx = -tap.dx;
    reach_ = Reach(taps);
    weights_ = int64_t(taps.size()) * channels_in_ * padded_;
    with_element(w.element, [&](auto element) {
      using E = decltype(element);
      for (const Run& run : runs_of(taps)) {
        const auto weight = [&](int tap, int in, int out) {
          if (out >= channels_out_) return T(0);
          const int o = transposed ? in : out, i = transposed ? out : in;
          const int64_t *s = w.weight_strides, *m = w.mask_strides;
          const Tap& t = run.taps[tap];
          const T value = convert<T>(static_cast<const E*>(w.weight)[o * s[0] + i * s[1] + t.ky * s[2] + t.kx * s[3]]) *
                          convert<T>(static_cast<const E*>(w.mask)[o * m[0] + i * m[1] + t.ky * m[2] + t.kx * m[3]]);
          return scale ? value * static_cast<const T*>(scale)[o] : value;
        };
        if (in_pairs(w, run))
          pair_runs_.push_back(
              {run, {isa_, static_cast<int>(run.taps.size()), channels_in_, padded_, weight, threads}});
        else
          runs_.push_back({run, pack(run, weight, threads)});
      }
    });
  }

  void run(const FeatureMap& in, const FeatureMap& out, const ConvEpilogue& epilogue, int threads) const {
    if (int64_t{out.images} * out.height * out.width * weights_ < 1 << 20) threads = 1;
    // Images are split into bands of rows if there are too few images to keep the threads busy.
    const int bands = std::clamp((4 * threads - 1) / std::max(out.images, 1), 1, std::max(1, out.height / 4));
    const Frame frame(*this, in, out);
    std::vector<Scratch> scratch;
    for (int t = 0; t < threads; t++) scratch.emplace_back(*this, out, frame, epilogue);
    parallel(threads, out.images * bands, [&](int member, int i) {
      const int image = i / bands, band = i % bands;
      convolve(in, out, epilogue, frame, scratch[member], image, out.height * band / bands,
               out.height * (band + 1) / bands);
    });
  }

 private:
  struct DirectRun {
    Run run;
    ZeroedBlock weights;  // a matrix [taps * channels in, channels out]
  };
  struct PairRun {
    Run run;
    NeighbourWeights<T> weights;
  };

  // Sizes that follow from the maps: rows that are computed together, and the padded rows of `in` they read.
  struct Frame {
    int rows, kept, pitch, pairs;
    bool direct;  // sums go straight into out's memory
    Frame(const Convolution& c, const FeatureMap& in, const FeatureMap& out) {
      rows = std::clamp(kPixels / std::max(out.width, 1), 1, std::max(out.height, 1));
      kept = rows + c.reach_.up + c.reach_.down;
      pitch =
          c.reach_.left + std::max(in.width, out.width + c.reach_.right) + 1;  // 1: the last pair may be half outside
      pairs = c.pair_runs_.empty() ? 0 : (out.width + 1) / 2;
      direct = out.element == element_of<T> && out.stride_c == 1 && out.channels == c.padded_;
    }
  };

  struct Scratch {
    Scratch(const Convolution& c, const FeatureMap& out, const Frame& f, const ConvEpilogue& e) {
      const int64_t pixels = int64_t{f.rows} * out.width, pairs = int64_t{f.rows} * f.pairs;
      int64_t size = 0;
      const auto take = [&](int64_t n) { return std::exchange(size, size + n); };
      const int64_t at_ring = take(int64_t{f.kept} * f.pitch * c.channels_in_), at_bias = take(c.padded_);
      const int64_t at_sums = take(f.direct ? 0 : pixels * c.padded_), at_spare = take(c.padded_);
      const int64_t at_residual = take(e.residual.data ? pixels * c.channels_out_ : 0);
      const int64_t at_both = take(2 * pairs * c.padded_), at_prepared = take(pairs * c.channels_in_);
      memory.emplace(size * sizeof(T));
      T* begin = reinterpret_cast<T*>(memory->get());
      ring = begin + at_ring, bias = begin + at_bias, sums = begin + at_sums, spare = begin + at_spare;
      residual = begin + at_residual, both = begin + at_both, prepared = begin + at_prepared;
      for (int64_t t = 0; t < pairs; t++) prepared_rows.push_back(prepared + t * c.channels_in_);
    }
    std::optional<ZeroedBlock> memory;
    T* ring;   // the last rows of `in`, [kept][pitch][channels in]: zero left and right of the map
    T* both;   // two sums of each pair of pixels (neighbours.h), [2][rows][pairs][padded channels out]
    T* spare;  // where the second pixel of a pair goes that is half outside
    T *bias, *sums, *residual, *prepared;
    std::vector<T*> x, to, all, prepared_rows, of_sum[kSums], residual_rows, condition_rows;
  };

  template <class Weight>
  ZeroedBlock pack(const Run& run, const Weight& weight, int threads) const {
    const int depth = static_cast<int>(run.taps.size()) * channels_in_, block = kernels_.block;
    const int64_t bytes = kernels_.block_bytes(depth, Weights::same);
    ZeroedBlock packed(blocks_ * bytes);
    parallel(blocks_ * bytes < 1 << 16 ? 1 : threads, blocks_, [&](int, int b) {
      T* to = reinterpret_cast<T*>(packed.get() + b * bytes);
      for (int d = 0; d < depth; d++)
        for (int k = 0; k < block; k++) *to++ = weight(d / channels_in_, d % channels_in_, b * block + k);
    });
    return packed;
  }

  // Rows first...last-1 of one image.
  void convolve(const FeatureMap& in, const FeatureMap& out, const ConvEpilogue& e, const Frame& frame, Scratch& s,
                int image, int first, int last) const {
    for (int o = 0; o < channels_out_; o++) {
      T b = e.bias ? static_cast<const T*>(e.bias)[o] : T(0);
      if (e.scale) b *= static_cast<const T*>(e.scale)[o];
      s.bias[o] = e.shift ? b + static_cast<const T*>(e.shift)[o] : b;
    }
    const auto padded_row = [&](int y) {
      return s.ring + int64_t{(y + reach_.up) % frame.kept} * frame.pitch * channels_in_ + reach_.left * channels_in_;
    };
    int loaded = std::max(first - reach_.up, 0);
    for (int y = first; y < last; y += frame.rows) {
      const int rows = std::min(frame.rows, last - y);
      const int needed = std::min(in.height, y + rows + reach_.down);
      load_rows<T>(in, image, loaded, needed, padded_row, 1, channels_in_);
      loaded = std::max(loaded, needed);

      s.all.resize(rows * out.width);
      for (int p = 0; p < rows * out.width; p++)
        s.all[p] = frame.direct ? static_cast<T*>(out.data) + image * out.stride_n +
                                      (y + p / out.width) * out.stride_y + p % out.width * out.stride_x
                                : s.sums + int64_t{p} * padded_;
      sum(in, out, frame, s, y, rows, padded_row);
      apply(out, e, s, image, y, rows);
      if (!frame.direct)
        store_rows<T>(out, image, y, y + rows, [&](int row) { return s.all[(row - y) * out.width]; }, 1, padded_);
    }
  }

  template <class PaddedRow>
  void sum(const FeatureMap& in, const FeatureMap& out, const Frame& frame, Scratch& s, int y, int rows,
           const PaddedRow& padded_row) const {
    for (T* row : s.all) std::copy_n(s.bias, padded_, row);
    for (const auto& [run, weights] : runs_) {
      s.x.clear(), s.to.clear();
      for (int r = 0; r < rows; r++) {
        const int source = y + r + run.dy;
        if (source < 0 || source >= in.height) continue;
        T* x = padded_row(source) + run.dx * channels_in_;
        for (int p = 0; p < out.width; p++)
          s.x.push_back(x + p * channels_in_), s.to.push_back(s.all[r * out.width + p]);
      }
      const int depth = static_cast<int>(run.taps.size()) * channels_in_;
      const Packed packed{weights.get(), depth, kernels_.block_bytes(depth, Weights::same), Weights::same};
      kernels_.matmul(s.x.data(), static_cast<int>(s.x.size()), packed, 0, blocks_, s.to.data(), s.to.data());
    }
    if (!pair_runs_.empty()) sum_pairs(in, out, frame, s, y, rows, padded_row);
  }

  template <class PaddedRow>
  void sum_pairs(const FeatureMap& in, const FeatureMap& out, const Frame& frame, Scratch& s, int y, int rows,
                 const PaddedRow& padded_row) const {
    const int64_t size = int64_t{rows} * frame.pairs * padded_;
    T *both_at = s.both, *opposite_at = s.both + size;
    std::fill_n(s.both, 2 * size, T(0));
    bool has_opposite = false;
    for (const auto& [run, weights] : pair_runs_) {
      s.x.clear();
      for (auto& of_sum : s.of_sum) of_sum.clear();
      for (int r = 0; r < rows; r++) {
        const int source = y + r + run.dy;
        if (source < 0 || source >= in.height) continue;
        T* x = padded_row(source) + run.dx * channels_in_;
        for (int t = 0; t < frame.pairs; t++) {
          T* const* pair = s.all.data() + r * out.width + 2 * t;
          const int64_t at = (int64_t{r} * frame.pairs + t) * padded_;
          s.x.push_back(x + 2 * t * channels_in_);
          s.of_sum[even].push_back(pair[0]);
          s.of_sum[odd].push_back(2 * t + 1 < out.width ? pair[1] : s.spare);
          s.of_sum[both].push_back(both_at + at);
          s.of_sum[opposite].push_back(opposite_at + at);
        }
      }
      const int pairs = static_cast<int>(s.x.size());
      for (size_t i = 0; i < weights.products.size(); i++) {
        const auto& to = s.of_sum[weights.products[i].product.sum];
        weights.prepare(i, s.x.data(), channels_in_, 0, pairs, s.prepared);
        weights.multiply(i, s.prepared_rows.data(), pairs, 0, padded_, to.data(), to.data());
      }
      has_opposite |= weights.has(opposite);
    }
    for (int r = 0; r < rows; r++)
      for (int t = 0; t < frame.pairs; t++, both_at += padded_, opposite_at += padded_) {
        T* const* pair = s.all.data() + r * out.width + 2 * t;
        layer_kernels<T>(isa_).spread(both_at, has_opposite ? opposite_at : nullptr, pair[0],
                                      2 * t + 1 < out.width ? pair[1] : s.spare, padded_);
      }
  }

  void apply(const FeatureMap& out, const ConvEpilogue& e, Scratch& s, int image, int y, int rows) const {
    std::vector<BoundStep<T>> steps;
    const int pixels = rows * out.width;
    if (e.condition) {
      s.condition_rows.assign(pixels, static_cast<T*>(const_cast<void*>(e.condition)) + int64_t{image} * channels_out_);
      steps.push_back({StepKind::add_condition, 1, s.condition_rows.data(), nullptr, nullptr});
    }
    if (e.residual.data) {
      s.residual_rows.resize(pixels);
      for (int p = 0; p < pixels; p++) s.residual_rows[p] = s.residual + int64_t{p} * channels_out_;
      load_rows<T>(
          e.residual, image, y, y + rows, [&](int row) { return s.residual_rows[(row - y) * out.width]; }, 1,
          channels_out_);
      steps.push_back({StepKind::add, 1, s.residual_rows.data(), nullptr, nullptr});
    }
    if (e.activates) steps.push_back({e.activation, static_cast<T>(e.alpha), nullptr, nullptr, nullptr});
    if (!steps.empty())
      kernels_.epilogue(steps.data(), static_cast<int>(steps.size()), pixels, 0, channels_out_, s.all.data(),
                        s.all.data());
  }

  const char* isa_;
  const Kernels<T>& kernels_;
  const int channels_in_, channels_out_, blocks_, padded_;
  std::vector<DirectRun> runs_;
  std::vector<PairRun> pair_runs_;
  Reach reach_;
  int64_t weights_;
};

}  // namespace

void masked_conv2d(const FeatureMap& x, const MaskedWeight& weight, const Geometry& geometry,
                   const ConvEpilogue& epilogue, const FeatureMap& out, int threads) {
  in_computed_type(x.element, [&](auto t) {
    Convolution<decltype(t)>(weight, geometry, false, epilogue.scale, threads).run(x, out, epilogue, threads);
  });
}

void masked_conv2d_input_gradient(const FeatureMap& grad, const MaskedWeight& weight, const Geometry& geometry,
                                  const FeatureMap& grad_x, int threads) {
  in_computed_type(grad.element, [&](auto t) {
    Convolution<decltype(t)>(weight, geometry, true, nullptr, threads).run(grad, grad_x, {}, threads);
  });
}

}  // namespace pcf::cpu

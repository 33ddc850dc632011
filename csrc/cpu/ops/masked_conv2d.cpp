#include "cpu/ops/masked_conv2d.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "cpu/memory/pool.h"
#include "cpu/ops/neighbours.h"
#include "cpu/ops/planes.h"
#include "cpu/ops/taps.h"
#include "cpu/simd/cpu_features.h"
#include "cpu/simd/kernels.h"
#include "cpu/threads/parallel.h"

namespace pcf::cpu {
namespace {

// Pixels in one matrix product: a multiple of every micro-kernel's rows, and few enough to stay in cache. X is what
// they are kept in.
template <class X>
constexpr int kPixels = sizeof(X) == 2 ? 192 : 96;
constexpr int kPairSums = 4;  // of the pixels of a pair (neighbours.h)

// One convolution between feature maps. Transposed, it is the input gradient, from O to I channels with mirrored taps.
// X: what the rows of `in` are kept in: T or, where the processor multiplies bf16 and they are of that, Bfloat16.
template <class T, class X = T>
class Convolution {
 public:
  Convolution(const MaskedWeight& w, std::vector<KernelTap> taps, bool transposed, const void* scale, int threads)
      : isa_(chosen_isa()), kernels_(kernels<T>(isa_)), packed_as_(packed_as(w, kernels_)),
        channels_in_(transposed ? w.out() : w.in()), channels_out_(transposed ? w.in() : w.out()),
        blocks_((channels_out_ + kernels_.block - 1) / kernels_.block), padded_(blocks_ * kernels_.block) {
    if (transposed)
      for (KernelTap& tap : taps) tap.dy = -tap.dy, tap.dx = -tap.dx;
    reach_ = Reach(taps);
    weights_ = int64_t(taps.size()) * channels_in_ * padded_;
    for (const TapRun& run : runs_of(taps)) {
      const auto fill = [&](int tap, int first, T* to) { gather(w, run.taps[tap], transposed, scale, first, to); };
      if (packed_as_ == WeightFormat::same && in_pairs(w, run))
        pair_runs_.emplace_back(run, of_pairs(run, fill, threads));
      else
        runs_.emplace_back(run, pack(run, fill, threads));
    }
  }

  void run(const FeatureMap& in, const FeatureMap& out, const ConvEpilogue& epilogue, int threads) const {
    if (int64_t{out.images} * out.height * out.width * weights_ < 1 << 20) threads = 1;
    // Images are split into bands of rows if there are too few images to keep the threads busy.
    const int images = std::max(out.images, 1);
    const int wanted = threads == 1 ? 1 : (4 * threads + images - 1) / images;
    const int bands = std::clamp(wanted, 1, std::max(1, out.height / 4));
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
  // Sizes that follow from the maps: rows that are computed together, and the padded rows of `in` they read.
  struct Frame {
    int rows, kept, pairs;
    int64_t before, after;     // where a row of `in` begins and ends between its margins
    int64_t pitch, sum_pitch;  // of rows and of pixels' sums: a line more than they need, so as not to share cache sets
    bool direct;               // sums go straight into out's memory instead
    Frame(const Convolution& c, const FeatureMap& in, const FeatureMap& out) {
      rows = std::clamp(kPixels<X> / std::max(out.width, 1), 1, std::max(out.height, 1));
      kept = rows + c.reach_.up + c.reach_.down;
      const int right = std::max(0, out.width + c.reach_.right - in.width) + 1;  // 1: the last pair may be half outside
      before = int64_t{c.reach_.left} * c.channels_in_;
      after = before + int64_t{in.width} * c.channels_in_;
      pitch = after + int64_t{right} * c.channels_in_ + 64 / static_cast<int>(sizeof(X));
      pairs = c.pair_runs_.empty() ? 0 : (out.width + 1) / 2;
      direct = c.in_blocks(out);
      sum_pitch = c.padded_ + 64 / static_cast<int>(sizeof(T));
    }
  };

  struct Scratch {
    Scratch(const Convolution& c, const FeatureMap& out, const Frame& f, const ConvEpilogue& e) {
      const int64_t pixels = int64_t{f.rows} * out.width, pairs = int64_t{f.rows} * f.pairs;
      const bool copies_residual = e.residual && !c.in_blocks(*e.residual);
      constexpr int64_t in_a_word = sizeof(T) / sizeof(X);
      T* words;
      memory.emplace(arrays<T, Block>({{&words, (f.kept * f.pitch + in_a_word - 1) / in_a_word},
                                       {&bias, c.padded_},
                                       {&sums, f.direct ? 0 : pixels * f.sum_pitch},
                                       {&spare, c.padded_},
                                       {&residual, copies_residual ? pixels * c.padded_ : 0},
                                       {&zeros, c.padded_},
                                       {&shared, 2 * pairs * c.padded_},
                                       {&prepared, pairs * c.channels_in_}}));
      std::fill_n(bias, c.padded_, T(0)), std::fill_n(zeros, c.padded_, T(0));
      if (copies_residual) std::fill_n(residual, pixels * c.padded_, T(0));
      ring = reinterpret_cast<X*>(words);
      for (X* row : rows_from(ring, f.kept, f.pitch)) {
        std::fill_n(row, f.before, X{});
        std::fill(row + f.after, row + f.pitch, X{});
      }
      prepared_rows = rows_from(prepared, pairs, c.channels_in_);
    }
    std::optional<Block> memory;
    X* ring;    // the last rows of `in`, [kept][pitch]: zero left and right of the map
    T* shared;  // the sums that both pixels of a pair have a part of (neighbours.h), [2][rows][pairs][padded channels
                // out]
    T* spare;   // where the second pixel of a pair goes that is half outside
    T *bias, *sums, *residual, *prepared, *zeros;
    std::vector<X*> x;
    std::vector<T*> all, to, prepared_rows, residual_rows;
    std::vector<T*> sums_of_pairs[kPairSums];
    std::vector<const T*> begun, begun_sums[kPairSums];  // what is added to next: the bias, zeros or the sum so far
  };

  // Writes a tap's weights times mask and scale, [channels in][block], for a block of channels out from `first` on.
  void gather(const MaskedWeight& w, const KernelTap& tap, bool transposed, const void* scale, int first, T* to) const {
    const int block = kernels_.block, here = std::min(block, channels_out_ - first);
    const int64_t size = int64_t{channels_in_} * block;
    const auto copy = [&](const FeatureMap& map, T* copied) {
      constexpr int kTogether = 16;  // depths, so that neither what is read nor what is written jumps between lines
      const int64_t along_out = transposed ? map.stride_c : map.stride_n;
      const int64_t along_in = transposed ? map.stride_n : map.stride_c;
      with_element(map.element, [&](auto element) {
        const auto* from = map.at<decltype(element)>(0, 0, tap.ky, tap.kx) + first * along_out;
        for (int in = 0; in < channels_in_; in += kTogether)
          copy_row(from + in * along_in, along_out, along_in, copied + int64_t{in} * block, 1, block, here,
                   std::min(kTogether, channels_in_ - in));
      });
    };
    copy(w.weight, to);
    if (w.mask.stride_n || w.mask.stride_c) {
      std::vector<T> mask(size);
      copy(w.mask, mask.data());
      for (int64_t i = 0; i < size; i++) to[i] *= mask[i];
    } else {
      const T mask =
          with_element(w.element(), [&](auto e) { return convert<T>(*w.mask.at<decltype(e)>(0, 0, tap.ky, tap.kx)); });
      if (mask != 1)
        for (int64_t i = 0; i < size; i++) to[i] *= mask;
    }
    if (scale)
      for (int64_t i = 0; i < size; i++)
        if (i % block < here) to[i] *= static_cast<const T*>(scale)[transposed ? i / block : first + i % block];
    if (packed_as_ == WeightFormat::bf16)
      for (int64_t i = 0; i < size; i++) to[i] = convert<T>(convert<Bfloat16>(to[i]));
  }

  template <class Fill>
  NeighbourWeights<T> of_pairs(const TapRun& run, const Fill& fill, int threads) const {
    const int taps = static_cast<int>(run.taps.size());
    return {isa_, Scheme(2, taps), taps, channels_in_, padded_, fill, threads};
  }

  template <class Fill>
  Block pack(const TapRun& run, const Fill& fill, int threads) const {
    const int taps = static_cast<int>(run.taps.size()), depth = taps * channels_in_, block = kernels_.block;
    const int64_t bytes = kernels_.block_bytes(depth, packed_as_), size = int64_t{channels_in_} * block;
    Block packed(blocks_ * bytes);
    parallel(blocks_ * bytes < 1 << 16 ? 1 : threads, blocks_, [&](int, int b) {
      std::vector<T> of_block(taps * size);
      for (int tap = 0; tap < taps; tap++) fill(tap, b * block, of_block.data() + tap * size);
      kernels_.pack(of_block.data(), depth, block, packed_as_, static_cast<char*>(packed.data()) + b * bytes);
    });
    return packed;
  }

  // Rows first...last-1 of one image.
  void convolve(const FeatureMap& in, const FeatureMap& out, const ConvEpilogue& e, const Frame& frame, Scratch& s,
                int image, int first, int last) const {
    for (int o = 0; o < channels_out_; o++) {
      T b = e.bias ? static_cast<const T*>(e.bias)[o] : T(0);
      if (e.scale) b *= static_cast<const T*>(e.scale)[o];
      if (e.shift) b += static_cast<const T*>(e.shift)[o];
      if (e.condition) b += static_cast<const T*>(e.condition)[int64_t{image} * channels_out_ + o];
      s.bias[o] = b;
    }
    const auto padded_row = [&](int y) { return s.ring + (y + reach_.up) % frame.kept * frame.pitch + frame.before; };
    int loaded = std::max(first - reach_.up, 0);
    for (int y = first; y < last; y += frame.rows) {
      const int rows = std::min(frame.rows, last - y);
      const int needed = std::min(in.height, y + rows + reach_.down);
      load_rows<X>(in, image, loaded, needed, padded_row, 1, channels_in_);
      loaded = std::max(loaded, needed);

      locate(out, frame.direct, image, y, rows, s.sums, frame.sum_pitch, s.all);
      if (e.residual) locate_residual(e, s, image, y, rows);
      if (!sum(in, out, frame, e, s, y, rows, padded_row)) apply(e, s, rows * out.width);
      if (!frame.direct) store(out, frame, s, image, y, rows);
    }
  }

  // Whether products can work on the map's own memory.
  bool in_blocks(const FeatureMap& map) const {
    return map.element == element_of<T> && map.stride_c == 1 && map.channels == padded_;
  }

  // Where the pixels of rows y...y+rows-1 begin: in the map's own memory or, `pitch` apart, in a buffer.
  static void locate(const FeatureMap& map, bool direct, int image, int y, int rows, T* buffer, int64_t pitch,
                     std::vector<T*>& pixels) {
    T* const begin = direct ? static_cast<T*>(map.data) + image * map.stride_n + y * map.stride_y : buffer;
    const int64_t stride_y = direct ? map.stride_y : map.width * pitch, stride_x = direct ? map.stride_x : pitch;
    pixels.clear();
    for (int r = 0; r < rows; r++)
      for (int x = 0; x < map.width; x++) pixels.push_back(begin + r * stride_y + x * stride_x);
  }

  void store(const FeatureMap& out, const Frame& frame, Scratch& s, int image, int y, int rows) const {
    const auto row_at = [&](int row) { return s.all[(row - y) * out.width]; };
    if constexpr (!std::is_same_v<X, T>) {  // rounded where it lies
      s.x.clear();
      for (T* row : s.all) s.x.push_back(reinterpret_cast<X*>(row));
      kernels_.round(s.all.data(), rows * out.width, 0, channels_out_, s.x.data());
    }
    store_rows<X>(out, image, y, y + rows, row_at, 1, frame.sum_pitch * sizeof(T) / sizeof(X));
  }

  void locate_residual(const ConvEpilogue& e, Scratch& s, int image, int y, int rows) const {
    const bool direct = in_blocks(*e.residual);
    locate(*e.residual, direct, image, y, rows, s.residual, padded_, s.residual_rows);
    if (direct) {  // the last product reads it, at once
      for (const T* row : s.residual_rows) prefetch_line<false>(row, channels_out_);
      return;
    }
    const auto row_at = [&](int row) { return s.residual_rows[(row - y) * e.residual->width]; };
    load_rows<T>(*e.residual, image, y, y + rows, row_at, 1, padded_);
  }

  // Writes the bias and all products into s.all. Returns whether the last product went to every pixel and so could
  // apply the epilogue, too.
  template <class PaddedRow>
  bool sum(const FeatureMap& in, const FeatureMap& out, const Frame& frame, const ConvEpilogue& e, Scratch& s, int y,
           int rows, const PaddedRow& padded_row) const {
    bool applied = false;
    s.begun.assign(s.all.size(), s.bias);
    if constexpr (std::is_same_v<X, T>)
      if (!pair_runs_.empty()) sum_pairs(in, out, frame, s, y, rows, padded_row);
    for (const auto& [run, weights] : runs_) {
      const int first = read_rows(in, run, y, rows, padded_row, out.width, 1, s.x) * out.width;
      const int n = static_cast<int>(s.x.size()), depth = static_cast<int>(run.taps.size()) * channels_in_;
      const Packed packed{weights.data(), depth, kernels_.block_bytes(depth, packed_as_), packed_as_};
      const auto matmul = [&] {
        if constexpr (std::is_same_v<X, T>)
          return kernels_.matmul;
        else
          return kernels_.matmul_rounded;
      }();
      Result<T> result{s.begun.data() + first, s.all.data() + first};
      applied = &run == &runs_.back().first && n == static_cast<int>(s.all.size()) && e.is_none_or_relu();
      if (applied) result.added = e.residual ? s.residual_rows.data() : nullptr, result.relu = e.activation.has_value();
      matmul(s.x.data(), n, packed, 0, blocks_, result);
      std::copy_n(s.all.data() + first, n, s.begun.data() + first);
    }
    for (size_t p = 0; p < s.all.size(); p++)
      if (s.begun[p] == s.bias) std::copy_n(s.bias, padded_, s.all[p]);
    return applied;
  }

  // x: where a run reads, for n pixels of each row y...y+rows-1 that are `step` apart, but for rows for which that is
  // outside the map; returns the first of the others, counted from y.
  template <class PaddedRow>
  int read_rows(const FeatureMap& in, const TapRun& run, int y, int rows, const PaddedRow& padded_row, int n, int step,
                std::vector<X*>& x) const {
    const int first = std::clamp(-(y + run.dy), 0, rows), last = std::clamp(in.height - (y + run.dy), first, rows);
    x.clear();
    for (int r = first; r < last; r++) {
      X* const row = padded_row(y + r + run.dy) + run.dx * channels_in_;
      for (int p = 0; p < n; p++) x.push_back(row + int64_t{p} * step * channels_in_);
    }
    return first;
  }

  template <class PaddedRow>
  void sum_pairs(const FeatureMap& in, const FeatureMap& out, const Frame& frame, Scratch& s, int y, int rows,
                 const PaddedRow& padded_row) const {
    const Scheme& scheme = pair_runs_[0].second.scheme;  // their sums are the same for all
    T* shared = s.shared;
    for (int sum = 0; sum < kPairSums; sum++) {
      const int only = scheme.only_output(sum);
      s.begun_sums[sum].assign(rows * frame.pairs, only < 0 ? s.zeros : s.bias);
      s.sums_of_pairs[sum].clear();
      for (int r = 0; r < rows; r++)
        for (int t = 0; t < frame.pairs; t++) {
          const int x = 2 * t + only;
          if (only < 0)
            s.sums_of_pairs[sum].push_back(std::exchange(shared, shared + padded_));
          else
            s.sums_of_pairs[sum].push_back(x < out.width ? s.all[r * out.width + x] : s.spare);
        }
    }
    for (const auto& [run, weights] : pair_runs_) {
      const int first = read_rows(in, run, y, rows, padded_row, frame.pairs, 2, s.x) * frame.pairs;
      const int pairs = static_cast<int>(s.x.size());
      for (size_t i = 0; i < weights.scheme.products.size(); i++) {
        const int sum = weights.scheme.products[i].sum;
        T** const to = s.sums_of_pairs[sum].data() + first;
        const T** const begun = s.begun_sums[sum].data() + first;
        weights.prepare(i, s.x.data(), channels_in_, pairs, s.prepared_rows.data());
        weights.multiply(i, s.prepared_rows.data(), pairs, 0, padded_, begun, to);
        std::copy_n(to, pairs, begun);
      }
    }
    for (int r = 0; r < rows; r++)
      for (int i = 0; i < 2; i++) {
        const int pair = r * frame.pairs, first = r * out.width + i;
        Combination<T> parts;
        for (int sum = 0; sum < kPairSums; sum++)  // a row's are all begun, or none
          if (const T* begun = s.begun_sums[sum][pair]; begun != s.zeros && begun != s.bias)
            parts.add(s.begun_sums[sum].data() + pair, 0, scheme.part(i, sum));
        if (parts.empty()) continue;
        s.to.clear();
        for (int p = first; p < (r + 1) * out.width; p += 2) s.begun[p] = s.all[p], s.to.push_back(s.all[p]);
        parts.write(layer_kernels<T>(isa_), s.to.data(), static_cast<int>(s.to.size()), padded_);
      }
  }

  void apply(const ConvEpilogue& e, Scratch& s, int pixels) const {
    std::vector<BoundStep<T>> steps;
    if (e.residual) steps.push_back({StepKind::add, 1, s.residual_rows.data(), nullptr, nullptr});
    if (e.activation) steps.push_back({*e.activation, static_cast<T>(e.alpha), nullptr, nullptr, nullptr});
    if (!steps.empty())
      kernels_.epilogue(steps.data(), static_cast<int>(steps.size()), pixels, 0, channels_out_, s.all.data(),
                        s.all.data());
  }

  const char* isa_;
  const Kernels<T>& kernels_;
  const WeightFormat packed_as_;
  const int channels_in_, channels_out_, blocks_, padded_;
  // Taps with their weights: a matrix [taps * channels in, channels out], or products for pairs of pixels.
  std::vector<std::pair<TapRun, Block>> runs_;
  std::vector<std::pair<TapRun, NeighbourWeights<T>>> pair_runs_;
  Reach reach_;
  int64_t weights_;
};

// Calls f(T(), X()) with what a convolution of such a map computes in, and keeps its rows in.
template <class F>
void with_rows_of(const FeatureMap& in, const MaskedWeight& w, const F& f) {
  const auto& k = kernels<float>(chosen_isa());
  if (in.element == Element::bfloat16 && packed_as(w, k) == WeightFormat::bf16 &&
      in.channels % k.depths_of_rounded == 0)
    return f(float(), Bfloat16());
  in_computed_type(in.element, [&](auto t) { f(t, t); });
}

}  // namespace

void masked_conv2d(const FeatureMap& x, const MaskedWeight& weight, const Geometry& geometry,
                   const ConvEpilogue& epilogue, const FeatureMap& out, int threads) {
  with_rows_of(x, weight, [&](auto t, auto row) {
    using T = decltype(t);
    const std::vector<KernelTap> taps = live_taps(weight, geometry);
    if (PlaneConvolution<T>::computes(x, out, weight, taps, epilogue))
      return PlaneConvolution<T>(weight, taps[0], epilogue).run(x, out, threads);
    Convolution<T, decltype(row)>(weight, taps, false, epilogue.scale, threads).run(x, out, epilogue, threads);
  });
}

void masked_conv2d_input_gradient(const FeatureMap& grad, const MaskedWeight& weight, const Geometry& geometry,
                                  const FeatureMap& grad_x, int threads) {
  with_rows_of(grad, weight, [&](auto t, auto row) {
    Convolution<decltype(t), decltype(row)>(weight, live_taps(weight, geometry), true, nullptr, threads)
        .run(grad, grad_x, {}, threads);
  });
}

}  // namespace pcf::cpu

#include "cpu/ops/masked_conv2d.h"

#include <algorithm>
#include <vector>

#include "cpu/simd/buffer.h"
#include "cpu/simd/cpu_features.h"
#include "cpu/simd/kernels.h"
#include "cpu/threads/parallel.h"

namespace pcf::cpu {
namespace {

// Pixels in one matrix product: a multiple of every micro-kernel's rows, and few enough to stay in cache.
constexpr int kPixels = 96;
constexpr int kStripPixels = 288;  // the weight gradient sums over this many at once

// A tap of the kernel, and what it reads: map(y + dy, x + dx) for the result at (y, x).
struct Tap {
  int ky, kx, dy, dx;
};

std::vector<Tap> live_taps(const MaskedWeight& w, const Geometry& g) {
  std::vector<Tap> taps;
  with_element(w.element, [&](auto element) {
    const auto* mask = static_cast<const decltype(element)*>(w.mask);
    const int64_t* s = w.mask_strides;
    const auto live = [&](int ky, int kx) {
      for (int o = 0; o < w.out; o++)
        for (int i = 0; i < w.in; i++)
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

// Horizontally adjacent taps as one matrix [taps * channels in, channels out].
struct Run {
  int dy, dx;
  std::vector<Tap> taps;
  Packed weights;
};

std::vector<Run> runs_of(std::vector<Tap> taps) {
  std::sort(taps.begin(), taps.end(),
            [](const Tap& a, const Tap& b) { return std::pair(a.dy, a.dx) < std::pair(b.dy, b.dx); });
  std::vector<Run> runs;
  for (const Tap& tap : taps) {
    const bool adjacent = !runs.empty() && runs.back().dy == tap.dy && runs.back().taps.back().dx + 1 == tap.dx;
    if (!adjacent) runs.push_back({tap.dy, tap.dx, {}, {}});
    runs.back().taps.push_back(tap);
  }
  return runs;
}

// One convolution between feature maps. Transposed, it is the input gradient, from O to I channels with mirrored taps.
template <class T>
class Convolution {
 public:
  Convolution(const MaskedWeight& w, const Geometry& g, bool transposed, const void* scale, int threads)
      : kernels_(kernels<T>(chosen_isa())), channels_in_(transposed ? w.out : w.in),
        channels_out_(transposed ? w.in : w.out), blocks_((channels_out_ + kernels_.block - 1) / kernels_.block),
        padded_(blocks_ * kernels_.block) {
    std::vector<Tap> taps = live_taps(w, g);
    if (transposed)
      for (Tap& tap : taps) tap.dy = -tap.dy, tap.dx = -tap.dx;
    reach_ = Reach(taps);
    runs_ = runs_of(taps);
    packed_ =
        Buffer(int64_t{blocks_} * kernels_.block_bytes(static_cast<int>(taps.size()) * channels_in_, Weights::same));
    char* next = packed_.get();
    for (Run& run : runs_) {
      const int depth = static_cast<int>(run.taps.size()) * channels_in_;
      run.weights = {next, depth, kernels_.block_bytes(depth, Weights::same), Weights::same};
      next += blocks_ * run.weights.block_bytes;
    }
    with_element(w.element, [&](auto element) {
      parallel(packed_.bytes() < 1 << 16 ? 1 : threads, blocks_,
               [&](int, int block) { pack(w, decltype(element)(), transposed, static_cast<const T*>(scale), block); });
    });
  }

  void run(const FeatureMap& in, const FeatureMap& out, const ConvEpilogue& epilogue, int threads) const {
    const int64_t work = int64_t{out.images} * out.height * out.width * packed_.bytes();
    if (work < 1 << 22) threads = 1;
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
  // Sizes that follow from the maps: rows that are computed together, and the padded rows of `in` they read.
  struct Frame {
    int rows, kept, pitch;
    bool direct;  // sums go straight into out's memory
    Frame(const Convolution& c, const FeatureMap& in, const FeatureMap& out) {
      rows = std::clamp(kPixels / std::max(out.width, 1), 1, std::max(out.height, 1));
      kept = rows + c.reach_.up + c.reach_.down;
      pitch = c.reach_.left + std::max(in.width, out.width + c.reach_.right);
      constexpr Element element = sizeof(T) == 8 ? Element::float64 : Element::float32;
      direct = out.element == element && out.stride_c == 1 && out.channels == c.padded_;
    }
  };

  struct Scratch {
    Scratch(const Convolution& c, const FeatureMap& out, const Frame& f, const ConvEpilogue& e)
        : memory((int64_t{f.kept} * f.pitch * c.channels_in_ + c.padded_ +
                  (f.direct ? 0 : int64_t{f.rows} * out.width * c.padded_) +
                  (e.residual.data ? int64_t{f.rows} * out.width * c.channels_out_ : 0)) *
                 sizeof(T)),
          ring(reinterpret_cast<T*>(memory.get())), bias(ring + int64_t{f.kept} * f.pitch * c.channels_in_),
          sums(bias + c.padded_), residual(sums + (f.direct ? 0 : int64_t{f.rows} * out.width * c.padded_)) {}
    Buffer memory;
    T* ring;  // the last rows of `in`, [kept][pitch][channels in]: zero left and right of the map
    T *bias, *sums, *residual;
    std::vector<T*> x, from, to, all, residual_rows, condition_rows;
  };

  template <class E>
  void pack(const MaskedWeight& w, E, bool transposed, const T* scale, int block) {
    const auto *weight = static_cast<const E*>(w.weight), *mask = static_cast<const E*>(w.mask);
    const int first = block * kernels_.block, lanes = std::min(kernels_.block, channels_out_ - first);
    for (const Run& run : runs_) {
      T* to = reinterpret_cast<T*>(static_cast<char*>(const_cast<void*>(run.weights.data)) +
                                   block * run.weights.block_bytes);
      for (size_t t = 0; t < run.taps.size(); t++) {
        const Tap& tap = run.taps[t];
        const auto put = [&](int depth, int lane) {
          const int o = transposed ? depth : first + lane, i = transposed ? first + lane : depth;
          const int64_t *s = w.weight_strides, *m = w.mask_strides;
          const T value = convert<T>(weight[o * s[0] + i * s[1] + tap.ky * s[2] + tap.kx * s[3]]) *
                          convert<T>(mask[o * m[0] + i * m[1] + tap.ky * m[2] + tap.kx * m[3]]);
          to[(int64_t(t) * channels_in_ + depth) * kernels_.block + lane] = scale ? value * scale[o] : value;
        };
        if (transposed)  // in either case in the order of the weight's memory
          for (int depth = 0; depth < channels_in_; depth++)
            for (int lane = 0; lane < lanes; lane++) put(depth, lane);
        else
          for (int lane = 0; lane < lanes; lane++)
            for (int depth = 0; depth < channels_in_; depth++) put(depth, lane);
      }
    }
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
      sum(in, out, s, y, rows, padded_row);
      apply(out, e, s, image, y, rows);
      if (!frame.direct)
        store_rows<T>(out, image, y, y + rows, [&](int row) { return s.all[(row - y) * out.width]; }, 1, padded_);
    }
  }

  template <class PaddedRow>
  void sum(const FeatureMap& in, const FeatureMap& out, Scratch& s, int y, int rows,
           const PaddedRow& padded_row) const {
    std::vector<char> begun(rows, false);
    for (const Run& run : runs_) {
      s.x.clear(), s.from.clear(), s.to.clear();
      for (int r = 0; r < rows; r++) {
        const int source = y + r + run.dy;
        if (source < 0 || source >= in.height) continue;
        T* x = padded_row(source) + run.dx * channels_in_;
        for (int p = 0; p < out.width; p++) {
          T* to = s.all[r * out.width + p];
          s.x.push_back(x + p * channels_in_), s.to.push_back(to), s.from.push_back(begun[r] ? to : s.bias);
        }
        begun[r] = true;
      }
      kernels_.matmul(s.x.data(), static_cast<int>(s.x.size()), run.weights, 0, blocks_, s.from.data(), s.to.data());
    }
    for (int r = 0; r < rows; r++)
      for (int p = r * out.width; !begun[r] && p < (r + 1) * out.width; p++) std::copy_n(s.bias, padded_, s.all[p]);
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

  const Kernels<T>& kernels_;
  const int channels_in_, channels_out_, blocks_, padded_;
  std::vector<Run> runs_;
  Reach reach_;
  Buffer packed_;
};

// Sums grad_weight over strips of rows: a matrix product whose depth is the strip's pixels. Each member sums its own
// part of the strips, and the parts are added in order.
template <class T>
class WeightGradient {
 public:
  WeightGradient(const FeatureMap& grad, const FeatureMap& x, const MaskedWeight& w, const Geometry& g)
      : kernels_(kernels<T>(chosen_isa())), grad_(grad), x_(x), w_(w), taps_(live_taps(w, g)), reach_(taps_),
        blocks_((w.out + kernels_.block - 1) / kernels_.block), padded_(blocks_ * kernels_.block),
        pitch_(reach_.left + std::max(x.width, grad.width + reach_.right)),
        rows_(std::clamp(kStripPixels / std::max(pitch_, 1), 1, std::max(grad.height, 1))),
        plane_(int64_t{rows_ + reach_.up + reach_.down} * pitch_ + reach_.left + reach_.right) {}

  void run(void* grad_weight, void* grad_bias, int threads) const {
    const int strips = (grad_.height + rows_ - 1) / rows_, total = strips * grad_.images;
    if (int64_t{grad_.images} * grad_.height * grad_.width * rows() * w_.out < 1 << 20) threads = 1;
    threads = std::clamp(threads, 1, std::max(total, 1));
    std::vector<Part> parts;
    for (int t = 0; t < threads; t++) parts.emplace_back(*this);
    parallel(threads, threads, [&](int, int i) {
      for (int s = total * i / threads; s < total * (i + 1) / threads; s++)
        add_strip(parts[i], s / strips, s % strips * rows_);
    });
    with_element(w_.element,
                 [&](auto element) { write(parts, static_cast<decltype(element)*>(grad_weight), grad_bias); });
  }

 private:
  int rows() const { return static_cast<int>(taps_.size()) * w_.in; }
  int depth() const { return rows_ * pitch_; }

  struct Part {
    explicit Part(const WeightGradient& g)
        : memory((int64_t{g.rows()} * g.padded_ + g.padded_ + g.w_.in * g.plane_ + int64_t{g.depth()} * g.padded_ +
                  int64_t{g.depth()} * g.padded_) *
                 sizeof(T)),
          sums(reinterpret_cast<T*>(memory.get())), bias(sums + int64_t{g.rows()} * g.padded_),
          packed(bias + g.padded_), strip(packed + int64_t{g.depth()} * g.padded_),
          planes(strip + int64_t{g.depth()} * g.padded_) {
      for (int r = 0; r < g.rows(); r++) sum_rows.push_back(sums + int64_t{r} * g.padded_);
      for (const Tap& t : g.taps_)
        for (int i = 0; i < g.w_.in; i++)
          x_rows.push_back(planes + i * g.plane_ + (g.reach_.up + t.dy) * g.pitch_ + g.reach_.left + t.dx);
    }
    Buffer memory;
    T *sums, *bias;  // [taps * I][padded O], [padded O]
    T* packed;       // the strip of grad in blocks: [blocks][depth][block]
    T* strip;        // the same, [depth][padded O]; zero right of the map
    T* planes;       // the strip of x and the rows around it, channel by channel; zero around the map
    std::vector<T*> sum_rows, x_rows;
  };

  void add_strip(Part& part, int image, int y) const {
    const int rows = std::min(rows_, grad_.height - y);
    const auto plane_row = [&](int row) { return part.planes + (reach_.up + row - y) * pitch_; };
    const int first = y - reach_.up, last = y + rows_ + reach_.down;
    for (int row = first; row < last; row++)
      if (row < 0 || row >= x_.height)
        for (int i = 0; i < w_.in; i++) std::fill_n(plane_row(row) + i * plane_, pitch_, T(0));
    load_rows<T>(
        x_, image, std::max(first, 0), std::min(last, x_.height), [&](int row) { return plane_row(row) + reach_.left; },
        plane_, 1);
    load_rows<T>(
        grad_, image, y, y + rows, [&](int row) { return part.strip + int64_t{row - y} * pitch_ * padded_; }, 1,
        padded_);
    for (int b = 0; b < blocks_; b++)
      for (int p = 0; p < rows * pitch_; p++)
        std::copy_n(part.strip + int64_t{p} * padded_ + b * kernels_.block, kernels_.block,
                    part.packed + (int64_t{b} * depth() + p) * kernels_.block);
    for (int p = 0; p < rows * pitch_; p++)
      for (int o = 0; o < padded_; o++) part.bias[o] += part.strip[int64_t{p} * padded_ + o];
    const int64_t block_bytes = kernels_.block_bytes(depth(), Weights::same);
    kernels_.matmul(part.x_rows.data(), this->rows(), {part.packed, rows * pitch_, block_bytes, Weights::same}, 0,
                    blocks_, part.sum_rows.data(), part.sum_rows.data());
  }

  template <class E>
  void write(const std::vector<Part>& parts, E* grad_weight, void* grad_bias) const {
    const auto total = [&](int64_t at) {
      T sum = 0;
      for (const Part& part : parts) sum += part.sums[at];
      return sum;
    };
    const int64_t* m = w_.mask_strides;
    std::fill_n(grad_weight, int64_t{w_.out} * w_.in * w_.height * w_.width, E{});
    for (size_t t = 0; t < taps_.size(); t++)
      for (int i = 0; i < w_.in; i++)
        for (int o = 0; o < w_.out; o++) {
          const Tap& tap = taps_[t];
          const T mask =
              convert<T>(static_cast<const E*>(w_.mask)[o * m[0] + i * m[1] + tap.ky * m[2] + tap.kx * m[3]]);
          if (mask != 0)
            grad_weight[((int64_t{o} * w_.in + i) * w_.height + tap.ky) * w_.width + tap.kx] =
                convert<E>(mask * total((int64_t(t) * w_.in + i) * padded_ + o));
        }
    for (int o = 0; grad_bias && o < w_.out; o++)
      static_cast<E*>(grad_bias)[o] = convert<E>(total(int64_t{rows()} * padded_ + o));
  }

  const Kernels<T>& kernels_;
  const FeatureMap &grad_, &x_;
  const MaskedWeight& w_;
  const std::vector<Tap> taps_;
  const Reach reach_;
  const int blocks_, padded_, pitch_, rows_;
  const int64_t plane_;
};

template <class F>
void in_computed_type(Element element, F f) {
  if (element == Element::float64)
    f(double());
  else
    f(float());
}

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

void masked_conv2d_weight_gradient(const FeatureMap& grad, const FeatureMap& x, const MaskedWeight& weight,
                                   const Geometry& geometry, void* grad_weight, void* grad_bias, int threads) {
  in_computed_type(x.element, [&](auto t) {
    WeightGradient<decltype(t)>(grad, x, weight, geometry).run(grad_weight, grad_bias, threads);
  });
}

}  // namespace pcf::cpu

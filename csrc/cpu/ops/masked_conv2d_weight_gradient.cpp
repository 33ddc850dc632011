#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "cpu/ops/masked_conv2d.h"
#include "cpu/ops/memory_pool.h"
#include "cpu/ops/neighbours.h"
#include "cpu/ops/taps.h"
#include "cpu/simd/cpu_features.h"
#include "cpu/simd/kernels.h"
#include "cpu/threads/parallel.h"

namespace pcf::cpu {
namespace {

constexpr int kStripPixels = 288;  // that are summed over at once

// What goes with the gradient in a sum over a strip's pixels: x at an offset, or a product of neighbours
// (neighbours.h), whose gradient is shared by the taps that it was made of.
struct Term {
  int dy, dx;  // of the first tap of its run
  bool in_pairs;
  Product product;
  struct Share {
    Tap tap;
    double share;
  };
  std::vector<Share> taps;
};

std::vector<Term> terms_of(const MaskedWeight& w, const std::vector<Tap>& taps) {
  std::vector<Term> terms;
  for (const Run& run : runs_of(taps)) {
    if (!in_pairs(w, run)) {
      for (const Tap& tap : run.taps) terms.push_back({tap.dy, tap.dx, false, {}, {{tap, 1}}});
      continue;
    }
    const int n = static_cast<int>(run.taps.size());
    for (const auto& [product, first] : products_of(n)) {
      terms.push_back({run.dy, run.dx, true, product, {}});
      for (int j = 0; j < 3 && first + j < n; j++)
        if (product.share[j] != 0) terms.back().taps.push_back({run.taps[first + j], product.share[j]});
    }
  }
  return terms;
}

// Sums grad_weight over strips of rows: a matrix product whose depth is the strip's pixels, or its pairs of pixels.
// Each member sums its own part of the strips, and the parts are added in order.
template <class T>
class WeightGradient {
 public:
  WeightGradient(const FeatureMap& grad, const FeatureMap& x, const MaskedWeight& w, const std::vector<Tap>& taps)
      : isa_(chosen_isa()), kernels_(kernels<T>(isa_)), adds_(layer_kernels<T>(isa_)), grad_(grad), x_(x), w_(w),
        terms_(terms_of(w, taps)), reach_(taps), blocks_((w.out + kernels_.block - 1) / kernels_.block),
        padded_(blocks_ * kernels_.block),
        pitch_((reach_.left + std::max(x.width, grad.width + reach_.right) + 1) / 2 * 2),  // pairs end with a row
        rows_(std::clamp(kStripPixels / std::max(pitch_, 1), 1, std::max(grad.height, 1))),
        in_place_(grad.stride_c == 1 && grad.channels == padded_ && grad.element == element_of<T>),
        plane_((int64_t{rows_ + reach_.up + reach_.down} * pitch_ + reach_.left + reach_.right + 3) / 2 * 2) {}

  void run(void* grad_weight, void* grad_bias, int threads) const {
    const int strips = (grad_.height + rows_ - 1) / rows_, total = strips * grad_.images;
    if (int64_t{grad_.images} * grad_.height * grad_.width * sum_rows() * w_.out < 1 << 20) threads = 1;
    threads = std::clamp(threads, 1, std::max(total, 1));
    std::vector<Part> parts;
    for (int t = 0; t < threads; t++) parts.emplace_back(*this);
    parallel(threads, threads, [&](int, int i) {
      for (int s = total * i / threads; s < total * (i + 1) / threads; s++)
        add_strip(parts[i], s / strips, s % strips * rows_);
    });
    with_element(w_.element, [&](auto element) {
      using E = decltype(element);
      parallel(threads, blocks_,
               [&](int, int b) { write(parts, b, static_cast<E*>(grad_weight), static_cast<E*>(grad_bias)); });
    });
  }

 private:
  int sum_rows() const { return static_cast<int>(terms_.size()) * w_.in; }
  int depth() const { return rows_ * pitch_; }
  bool has_pairs() const {
    return std::any_of(terms_.begin(), terms_.end(), [](const Term& t) { return t.in_pairs; });
  }

  struct Part {
    explicit Part(const WeightGradient& g) {
      int64_t size = 0;
      const auto take = [&](int64_t n) { return std::exchange(size, size + n); };
      const int64_t at_sums = take(int64_t{g.sum_rows()} * g.padded_), at_bias = take(g.padded_);
      const int64_t at_copy = take(g.in_place_ ? g.padded_ : int64_t{g.depth()} * g.padded_);
      const int64_t at_packed = take(int64_t{g.depth()} * g.padded_);
      const int64_t at_planes = take(g.w_.in * g.plane_);
      const int64_t at_halves = take(g.has_pairs() ? g.w_.in * g.plane_ : 0);
      const int64_t at_pairs = take(g.has_pairs() ? int64_t{g.w_.in} * g.depth() / 2 : 0);
      memory.emplace(size * sizeof(T));
      T* begin = reinterpret_cast<T*>(memory->get());
      sums = begin + at_sums, bias = begin + at_bias, copy = begin + at_copy, packed = begin + at_packed;
      planes = begin + at_planes, halves = begin + at_halves, pairs = begin + at_pairs;
      for (int r = 0; r < g.sum_rows(); r++) sum_rows.push_back(sums + int64_t{r} * g.padded_);
      for (int p = 0; p < g.depth(); p++) strip.push_back(copy + (g.in_place_ ? 0 : int64_t{p} * g.padded_));
    }
    std::optional<ZeroedBlock> memory;
    T *sums, *bias;  // [terms * I][padded O], [padded O]
    T* copy;         // the strip of grad, [depth][padded O], zero right of the map; one row of zeros if read in place
    T* packed;       // the strip, or a sum of its pairs, in blocks: [blocks][depth][block]
    T* planes;       // the strip of x and the rows around it, channel by channel; zero around the map
    T* halves;       // the same: the pixels at even places, then those at odd ones
    T* pairs;        // a product's sums of neighbours, channel by channel: [I][depth / 2]
    std::vector<T*> sum_rows, x_rows;
    std::vector<const T*> strip;  // its rows
  };

  void add_strip(Part& part, int image, int y) const {
    const int rows = std::min(rows_, grad_.height - y), pixels = rows * pitch_;
    load(part, image, y, rows);
    for (int p = 0; p < pixels; p++) adds_.add(part.bias, part.strip[p], T(1), part.bias, padded_);
    if (std::any_of(terms_.begin(), terms_.end(), [](const Term& t) { return !t.in_pairs; })) {
      pack(part, pixels, [&](int p) { return part.strip[p]; });
      for (size_t t = 0; t < terms_.size(); t++)
        if (!terms_[t].in_pairs)
          multiply(part, t, pixels, [&](int i) { return part.planes + i * plane_ + place(terms_[t]); });
    }
    if (has_pairs()) add_pairs(part, pixels / 2);
  }

  // Where the first tap of a term's run reads for the strip's first pixel, in a plane.
  int64_t place(const Term& t) const { return int64_t{reach_.up + t.dy} * pitch_ + reach_.left + t.dx; }

  void add_pairs(Part& part, int pairs) const {
    for (int i = 0; i < w_.in; i++) {
      const T* plane = part.planes + i * plane_;
      T *evens = part.halves + i * plane_, *odds = evens + plane_ / 2;
      for (int64_t k = 0; k < plane_ / 2; k++) evens[k] = plane[2 * k], odds[k] = plane[2 * k + 1];
    }
    for (const Sum sum : {even, odd, both, opposite}) {
      const auto is_of_sum = [=](const Term& t) { return t.in_pairs && t.product.sum == sum; };
      if (std::none_of(terms_.begin(), terms_.end(), is_of_sum)) continue;
      std::vector<T> added(padded_);
      pack(part, pairs, [&](int t) {
        const T *first = part.strip[2 * t], *second = part.strip[2 * t + 1];
        if (sum == even || sum == odd) return sum == even ? first : second;
        adds_.add(first, second, sum == both ? T(1) : T(-1), added.data(), padded_);
        return static_cast<const T*>(added.data());
      });
      for (size_t t = 0; t < terms_.size(); t++) {
        if (!is_of_sum(terms_[t])) continue;
        const Product& product = terms_[t].product;
        const auto half = [&](int i, int neighbour) {
          const int64_t at = place(terms_[t]) + neighbour;
          return part.halves + i * plane_ + at % 2 * (plane_ / 2) + at / 2;
        };
        multiply(part, t, pairs, [&](int i) {
          const T* plus = half(i, product.plus);
          if (!product.sign) return plus;
          T* to = part.pairs + int64_t{i} * pairs;
          adds_.add(plus, half(i, product.minus), static_cast<T>(product.sign), to, pairs);
          return static_cast<const T*>(to);
        });
      }
    }
  }

  void load(Part& part, int image, int y, int rows) const {
    const auto plane_row = [&](int row) { return part.planes + (reach_.up + row - y) * pitch_; };
    const int first = y - reach_.up, last = y + rows_ + reach_.down;
    for (int row = first; row < last; row++)
      if (row < 0 || row >= x_.height)
        for (int i = 0; i < w_.in; i++) std::fill_n(plane_row(row) + i * plane_, pitch_, T(0));
    load_rows<T>(
        x_, image, std::max(first, 0), std::min(last, x_.height), [&](int row) { return plane_row(row) + reach_.left; },
        plane_, 1);
    if (!in_place_) {
      load_rows<T>(
          grad_, image, y, y + rows, [&](int row) { return part.copy + int64_t{row - y} * pitch_ * padded_; }, 1,
          padded_);
      return;
    }
    const T* begin = static_cast<const T*>(grad_.data) + image * grad_.stride_n + y * grad_.stride_y;
    for (int p = 0; p < rows * pitch_; p++)
      if (p % pitch_ < grad_.width) part.strip[p] = begin + p / pitch_ * grad_.stride_y + p % pitch_ * grad_.stride_x;
  }

  // row(p): [padded O]
  template <class Row>
  void pack(Part& part, int depth, const Row& row) const {
    for (int p = 0; p < depth; p++) {
      const T* from = row(p);
      for (int b = 0; b < blocks_; b++)
        std::copy_n(from + b * kernels_.block, kernels_.block, part.packed + (int64_t{b} * depth + p) * kernels_.block);
    }
  }

  // Adds the products of what is packed and x_row(i), [depth], for each channel i, to a term's sums.
  template <class Row>
  void multiply(Part& part, size_t term, int depth, const Row& x_row) const {
    part.x_rows.clear();
    for (int i = 0; i < w_.in; i++) part.x_rows.push_back(const_cast<T*>(x_row(i)));
    const int64_t bytes = kernels_.block_bytes(depth, Weights::same);
    T* const* to = part.sum_rows.data() + term * w_.in;
    kernels_.matmul(part.x_rows.data(), w_.in, {part.packed, depth, bytes, Weights::same}, 0, blocks_, to, to);
  }

  // For a block of output channels: what the parts sum up to, shared out to the taps.
  template <class E>
  void write(const std::vector<Part>& parts, int block, E* grad_weight, E* grad_bias) const {
    const int first = block * kernels_.block, lanes = std::min(kernels_.block, w_.out - first);
    const int taps = w_.height * w_.width, size = w_.in * taps;
    std::vector<T> total(lanes), found(int64_t{lanes} * size);  // [lanes][in][taps]
    const auto add_up = [&](int64_t row) {
      std::fill(total.begin(), total.end(), T(0));
      for (const Part& part : parts)
        adds_.add(total.data(), part.sums + row * padded_ + first, T(1), total.data(), lanes);
    };
    for (size_t t = 0; t < terms_.size(); t++)
      for (int i = 0; i < w_.in; i++) {
        add_up(int64_t(t) * w_.in + i);
        for (const auto& [tap, share] : terms_[t].taps) {
          T* to = found.data() + i * taps + tap.ky * w_.width + tap.kx;
          for (int k = 0; k < lanes; k++) to[int64_t{k} * size] += static_cast<T>(share) * total[k];
        }
      }
    const int64_t* m = w_.mask_strides;
    const T* from = found.data();
    E* to = grad_weight + int64_t{first} * size;
    for (int o = first; o < first + lanes; o++)
      for (int i = 0; i < w_.in; i++)
        for (int y = 0; y < w_.height; y++)
          for (int x = 0; x < w_.width; x++, from++) {
            const T mask = convert<T>(static_cast<const E*>(w_.mask)[o * m[0] + i * m[1] + y * m[2] + x * m[3]]);
            *to++ = mask != 0 ? convert<E>(mask * *from) : E{};
          }
    if (!grad_bias) return;
    add_up(sum_rows());  // the bias's sums follow
    for (int k = 0; k < lanes; k++) grad_bias[first + k] = convert<E>(total[k]);
  }

  const char* isa_;
  const Kernels<T>& kernels_;
  const LayerKernels<T>& adds_;
  const FeatureMap &grad_, &x_;
  const MaskedWeight& w_;
  const std::vector<Term> terms_;
  const Reach reach_;
  const int blocks_, padded_, pitch_, rows_;
  const bool in_place_;
  const int64_t plane_;
};

}  // namespace

void masked_conv2d_weight_gradient(const FeatureMap& grad, const FeatureMap& x, const MaskedWeight& weight,
                                   const Geometry& geometry, void* grad_weight, void* grad_bias, int threads) {
  in_computed_type(x.element, [&](auto t) {
    WeightGradient<decltype(t)>(grad, x, weight, live_taps(weight, geometry)).run(grad_weight, grad_bias, threads);
  });
}

}  // namespace pcf::cpu

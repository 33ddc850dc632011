#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "cpu/memory/pool.h"
#include "cpu/ops/masked_conv2d.h"
#include "cpu/ops/neighbours.h"
#include "cpu/ops/taps.h"
#include "cpu/simd/cpu_features.h"
#include "cpu/simd/kernels.h"
#include "cpu/threads/parallel.h"

namespace pcf::cpu {
namespace {

constexpr int kStripPixels = 512;  // that are summed over at once

// What goes with the gradient in a sum over a strip: x at a tap's offset, or, for taps that are neighbours, a product
// of theirs (neighbours.h), whose gradient is shared by them.
struct Term {
  int dy, dx;  // of the first tap of its run
  bool of_product;
  Product product;
  struct Share {
    KernelTap tap;
    double share;
  };
  std::vector<Share> taps;
};

// Sums grad_weight over strips of rows: a matrix product whose depth is the strip's pixels, or groups of pixels. Each
// member sums its own part of the strips, and the parts are added in order.
template <class T>
class WeightGradient {
 public:
  WeightGradient(const FeatureMap& grad, const FeatureMap& x, const MaskedWeight& w, const std::vector<KernelTap>& taps)
      : isa_(chosen_isa()), kernels_(kernels<T>(isa_)), packed_as_(packed_as(w, kernels_)),
        layer_kernels_(layer_kernels<T>(isa_)), grad_(grad), x_(x), w_(w), reach_(taps),
        blocks_((w.out() + kernels_.block - 1) / kernels_.block), padded_(blocks_ * kernels_.block),
        scheme_(Scheme::of_line(kMostTaps, grad.width)), groups_((grad.width + scheme_.outputs - 1) / scheme_.outputs),
        terms_(terms_of(taps)), pitch_(reach_.left + std::max(x.width, grad.width + reach_.right) +
                                       (has_terms(true) ? scheme_.outputs - 1 : 0)),
        rows_(rows_of_a_strip(grad)),
        in_place_(grad.stride_c == 1 && grad.channels == padded_ && grad.element == element_of<T>),
        plane_(int64_t{rows_ + reach_.up + reach_.down} * pitch_ + reach_.left + reach_.right) {}

  void run(void* grad_weight, void* grad_bias, int threads) const {
    const int strips = (grad_.height + rows_ - 1) / rows_, total = strips * grad_.images;
    if (int64_t{grad_.images} * grad_.height * grad_.width * sum_rows() * w_.out() < 1 << 20) threads = 1;
    threads = std::clamp(threads, 1, std::max(total, 1));
    std::vector<Part> parts(threads);
    parallel(threads, threads, [&](int, int i) {
      parts[i].allocate(*this);
      for (int s = total * i / threads; s < total * (i + 1) / threads; s++)
        add_strip(parts[i], s / strips, s % strips * rows_);
    });
    with_element(w_.element(), [&](auto element) {
      using E = decltype(element);
      parallel(threads, blocks_,
               [&](int, int b) { write(parts, b, static_cast<E*>(grad_weight), static_cast<E*>(grad_bias)); });
    });
  }

 private:
  // As even as can be.
  static int rows_of_a_strip(const FeatureMap& grad) {
    const int height = std::max(grad.height, 1), most = std::clamp(kStripPixels / std::max(grad.width, 1), 1, height);
    const int strips = (height + most - 1) / most;
    return (height + strips - 1) / strips;
  }

  std::vector<Term> terms_of(const std::vector<KernelTap>& taps) const {
    std::vector<Term> terms;
    for (const TapRun& run : runs_of(taps)) {
      const int n = static_cast<int>(run.taps.size());
      if (packed_as_ == WeightFormat::bf16 || n < 2 || w_.in() < kFewestChannels || w_.out() < kFewestChannels) {
        for (const KernelTap& tap : run.taps) terms.push_back({tap.dy, tap.dx, false, {}, {{tap, 1}}});
        continue;
      }
      for (const Product& product : Scheme(scheme_.outputs, n).products) {
        terms.push_back({run.dy, run.dx, true, product, {}});
        for (int j = 0; j < kMostTaps && product.first + j < n; j++)
          if (product.share[j] != 0) terms.back().taps.push_back({run.taps[product.first + j], product.share[j]});
      }
    }
    return terms;
  }
  bool has_terms(bool of_products) const {
    return std::any_of(terms_.begin(), terms_.end(), [=](const Term& t) { return t.of_product == of_products; });
  }
  int sum_rows() const { return static_cast<int>(terms_.size()) * w_.in(); }
  int depth() const { return rows_ * std::max(pitch_, groups_); }

  struct Part {
    void allocate(const WeightGradient& g) {
      const int64_t in = g.w_.in(), depth = g.depth();
      memory.emplace(arrays<T, ZeroedBlock>(
          {{&sums, g.sum_rows() * int64_t{g.padded_}},
           {&bias, g.padded_},
           {&zeros, g.padded_},
           {&copy, g.in_place_ ? 0 : int64_t{g.rows_} * g.grad_.width * g.padded_},
           {&packed, g.blocks_ * g.kernels_.block_bytes(g.depth(), g.packed_as_) / static_cast<int64_t>(sizeof(T))},
           {&wide, g.packed_as_ == WeightFormat::bf16 ? depth * g.padded_ : 0},
           {&planes, g.has_terms(false) ? in * g.plane_ : 0},
           {&pixels, g.has_terms(true) ? in * g.plane_ : 0},
           {&product, 2 * in * g.rows_ * g.groups_}}));
      sum_rows = rows_from(sums, g.sum_rows(), g.padded_);
      for (int p = 0; p < g.rows_ * g.grad_.width; p++) strip.push_back(copy + int64_t{p} * g.padded_);
      product_rows = rows_from(product, g.rows_ * g.groups_, in);
      for (int k = 0; k < g.rows_ * g.groups_; k++) {
        groups.push_back(pixels + (k / g.groups_ * g.pitch_ + k % g.groups_ * g.scheme_.outputs) * int64_t{g.w_.in()});
      }
    }
    std::optional<ZeroedBlock> memory;
    T *sums, *bias;   // [terms * I][padded O], [padded O]
    T *copy, *zeros;  // the strip of grad, [rows][width][padded O], unless it is read in place; [padded O]
    T* packed;   // the strip, or sums of its groups, in blocks: [blocks][depth][block], in bf16 words if it is that
    T* wide;     // what is packed in bf16: [depth][padded O]
    T* planes;   // the strip of x and the rows around it, channel by channel, [I][rows][pitch]; zero around the map
    T* pixels;   // the same, pixel by pixel: [rows][pitch][I]
    T* product;  // a product's x: [rows * groups][I], then [I][rows * groups]
    std::vector<T*> sum_rows, x_rows, product_rows;
    std::vector<const T*> strip, groups;           // its pixels; where groups of x begin
    std::vector<const T*> of_group[kMostOutputs];  // the first, second, ... pixel of each group of the strip
  };

  void add_strip(Part& part, int image, int y) const {
    const int rows = std::min(rows_, grad_.height - y), width = grad_.width;
    load_gradient(part, image, y, rows);
    layer_kernels_.add_up(part.strip.data(), rows * width, part.bias, padded_);
    if (has_terms(false)) {
      load(part.planes, 1, plane_, image, y);
      pack(part, rows * pitch_,
           [&](int p) { return p % pitch_ < width ? part.strip[p / pitch_ * width + p % pitch_] : part.zeros; });
      for (size_t t = 0; t < terms_.size(); t++)
        if (!terms_[t].of_product)
          multiply(part, t, rows * pitch_, [&](int i) { return part.planes + i * plane_ + place(terms_[t]); });
    }
    if (has_terms(true)) {
      load(part.pixels, w_.in(), 1, image, y);
      for (int i = 0; i < scheme_.outputs; i++) {
        part.of_group[i].clear();
        for (int k = 0; k < rows * groups_; k++) {
          const int x = k % groups_ * scheme_.outputs + i;
          part.of_group[i].push_back(x < width ? part.strip[k / groups_ * width + x] : part.zeros);
        }
      }
      for (int sum = 0; sum < scheme_.sums(); sum++) add_products(part, sum, rows);
    }
  }

  // Where the first tap of a term's run reads for the strip's first pixel.
  int64_t place(const Term& t) const { return int64_t{reach_.up + t.dy} * pitch_ + reach_.left + t.dx; }

  // The terms whose products are added to a sum.
  void add_products(Part& part, int sum, int rows) const {
    const int depth = rows * groups_;
    bool packed = false;
    for (size_t t = 0; t < terms_.size(); t++) {
      const Term& term = terms_[t];
      if (!term.of_product || term.product.sum != sum) continue;
      if (!std::exchange(packed, true)) pack_sum(part, sum, depth);
      T* const by_channel = part.product + int64_t{w_.in()} * depth;
      of_neighbours(term.product, part.groups.data(), place(term) * w_.in(), w_.in())
          .write(layer_kernels_, part.product_rows.data(), depth, w_.in());
      copy_row(part.product, 1, w_.in(), by_channel, depth, 1, w_.in(), depth);
      multiply(part, t, depth, [&](int i) { return by_channel + int64_t{i} * depth; });
    }
  }

  void pack_sum(Part& part, int sum, int depth) const {
    std::vector<T*> to(depth);
    for (int b = 0; b < blocks_; b++) {
      Combination<T> parts;
      for (int i = 0; i < scheme_.outputs; i++)
        parts.add(part.of_group[i].data(), b * kernels_.block, scheme_.part(i, sum));
      for (int k = 0; k < depth; k++) to[k] = part.packed + (int64_t{b} * depth + k) * kernels_.block;
      parts.write(layer_kernels_, to.data(), depth, kernels_.block);
    }
  }

  // The strip of x and the rows around it, with pixels `to_x` and channels `to_c` apart.
  void load(T* to, int64_t to_x, int64_t to_c, int image, int y) const {
    const auto row_at = [&](int row) { return to + (reach_.up + row - y) * pitch_ * to_x; };
    const int first = y - reach_.up, last = y + rows_ + reach_.down;
    for (int row = first; row < last; row++) {
      if (row >= 0 && row < x_.height) continue;
      if (to_c == 1)
        std::fill_n(row_at(row), pitch_ * to_x, T(0));
      else
        for (int i = 0; i < w_.in(); i++) std::fill_n(row_at(row) + i * to_c, pitch_, T(0));
    }
    load_rows<T>(
        x_, image, std::max(first, 0), std::min(last, x_.height),
        [&](int row) { return row_at(row) + reach_.left * to_x; }, to_c, to_x);
  }

  void load_gradient(Part& part, int image, int y, int rows) const {
    if (!in_place_) {
      load_rows<T>(
          grad_, image, y, y + rows, [&](int row) { return part.copy + int64_t{row - y} * grad_.width * padded_; }, 1,
          padded_);
      return;
    }
    const T* begin = static_cast<const T*>(grad_.data) + image * grad_.stride_n + y * grad_.stride_y;
    for (int p = 0; p < rows * grad_.width; p++)
      part.strip[p] = begin + p / grad_.width * grad_.stride_y + p % grad_.width * grad_.stride_x;
  }

  // row(k): [padded O]
  template <class Row>
  void pack(Part& part, int depth, const Row& row) const {
    for (int k = 0; k < depth; k++) {
      const T* from = row(k);
      if (packed_as_ == WeightFormat::bf16) {
        std::copy_n(from, padded_, part.wide + int64_t{k} * padded_);
        continue;
      }
      for (int b = 0; b < blocks_; b++)
        std::copy_n(from + b * kernels_.block, kernels_.block, part.packed + (int64_t{b} * depth + k) * kernels_.block);
    }
    if (packed_as_ == WeightFormat::bf16) kernels_.pack(part.wide, depth, padded_, packed_as_, part.packed);
  }

  // Adds the products of what is packed and x_row(i), [depth], for each channel i, to a term's sums.
  template <class Row>
  void multiply(Part& part, size_t term, int depth, const Row& x_row) const {
    part.x_rows.clear();
    for (int i = 0; i < w_.in(); i++) part.x_rows.push_back(x_row(i));
    const int64_t bytes = kernels_.block_bytes(depth, packed_as_);
    T* const* to = part.sum_rows.data() + term * w_.in();
    kernels_.matmul(part.x_rows.data(), w_.in(), {part.packed, depth, bytes, packed_as_}, 0, blocks_, {to, to});
  }

  // For a block of output channels: what the parts sum up to, shared out to the taps.
  template <class E>
  void write(const std::vector<Part>& parts, int block, E* grad_weight, E* grad_bias) const {
    const int first = block * kernels_.block, lanes = std::min(kernels_.block, w_.out() - first);
    const int taps = w_.mask.height * w_.mask.width, size = w_.in() * taps;
    std::vector<T> total(lanes), found(int64_t{size} * lanes), by_channel(found.size());  // found: [in][taps][lanes]
    const auto add_up = [&](int64_t row) {
      std::fill(total.begin(), total.end(), T(0));
      for (const Part& part : parts) {
        const T* sums = part.sums + row * padded_ + first;
        for (int k = 0; k < lanes; k++) total[k] += sums[k];
      }
    };
    for (size_t t = 0; t < terms_.size(); t++)
      for (int i = 0; i < w_.in(); i++) {
        add_up(int64_t(t) * w_.in() + i);
        for (const auto& [tap, share] : terms_[t].taps) {
          T* to = found.data() + (int64_t{i} * taps + tap.ky * w_.mask.width + tap.kx) * lanes;
          for (int k = 0; k < lanes; k++) to[k] += static_cast<T>(share) * total[k];
        }
      }
    copy_row(found.data(), 1, lanes, by_channel.data(), size, 1, lanes, size);
    const T* from = by_channel.data();
    E* to = grad_weight + int64_t{first} * size;
    for (int o = first; o < first + lanes; o++)
      for (int i = 0; i < w_.in(); i++)
        for (int y = 0; y < w_.mask.height; y++)
          for (int x = 0; x < w_.mask.width; x++, from++) {
            const T mask = convert<T>(*w_.mask.at<E>(o, i, y, x));
            *to++ = mask != 0 ? convert<E>(mask * *from) : E{};
          }
    if (!grad_bias) return;
    add_up(sum_rows());  // the bias's sums follow
    for (int k = 0; k < lanes; k++) grad_bias[first + k] = convert<E>(total[k]);
  }

  const char* isa_;
  const Kernels<T>& kernels_;
  const WeightFormat packed_as_;
  const LayerKernels<T>& layer_kernels_;
  const FeatureMap &grad_, &x_;
  const MaskedWeight& w_;
  const Reach reach_;
  const int blocks_, padded_;
  const Scheme scheme_;  // of the terms that are products
  const int groups_;     // in a row
  const std::vector<Term> terms_;
  const int pitch_, rows_;
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

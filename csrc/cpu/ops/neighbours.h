// Sums over neighbouring positions of a line: y(p) = sum over j < taps of x(p + j) . W_j. Two or four positions in a
// row share products, as many as values of a polynomial that they determine (Toom-Cook; Winograd 1980, "Arithmetic
// Complexity of Computations"): taps + 1 of them for two positions instead of 2 taps, taps + 3 for four instead of
// 4 taps. More than three taps are split into threes and twos.
//
// In twos, each y reads its own neighbours and nothing else. In fours, what lies beyond them, up to three positions
// away, cancels out but for rounding.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "cpu/memory/pool.h"
#include "cpu/ops/layer_kernels.h"
#include "cpu/simd/kernels.h"
#include "cpu/threads/parallel.h"

namespace pcf::cpu {

constexpr int kMostTaps = 3, kMostOutputs = 4, kMostInputs = kMostOutputs + kMostTaps - 1;

// (sum over i of of_x[i] * x(p + first + i)) . (sum over j of share[j] * W_(first + j)) is added to a sum.
struct Product {
  int sum, first;
  std::array<double, kMostInputs> of_x{};
  std::array<double, kMostTaps> share{};
};

// How `outputs` positions in a row, 2 or 4, are summed at once: which products are added to which sums, and the outputs
// as sums of those sums.
class Scheme {
 public:
  Scheme(int outputs, int taps) : outputs(outputs) {
    parts_[outputs - 1][sums() - 1] = 1;
    for (size_t s = 0; s < points().size(); s++) {
      double power = 1;
      for (int i = 0; i < outputs; i++, power *= points()[s]) parts_[i][s] = power;
    }
    int first = 0;
    for (; taps - first >= 5 || taps - first == 3; first += 3) add(first, 3);
    for (; taps - first >= 2; first += 2) add(first, 2);
    if (first < taps) add(first, 1);
  }
  // The one that takes fewer products for a line of positions.
  static Scheme of_line(int taps, int positions) {
    const Scheme twos(2, taps), fours(4, taps);
    const auto products = [&](const Scheme& s) {
      return (positions + s.outputs - 1) / s.outputs * int64_t(s.products.size());
    };
    return products(fours) < products(twos) ? fours : twos;
  }

  int sums() const { return static_cast<int>(points().size()) + 1; }
  // What output y(p + i) has of a sum.
  double part(int i, int sum) const { return parts_[i][sum]; }
  // The only output that has a part of a sum, or -1.
  int only_output(int sum) const {
    if (sum == sums() - 1) return outputs - 1;
    return points()[sum] == 0 ? 0 : -1;
  }

  const int outputs;
  std::vector<Product> products;

 private:
  // Those of four keep rounding errors small: hardly more than a plain sum's.
  const std::vector<double>& points() const {
    static const std::vector<double> of_two{0, 1, -1}, of_four{0.625, -0.625, 1.5, -1.5, 0};
    return outputs == 2 ? of_two : of_four;
  }

  // The polynomials sum W_j t^j, by their values at as many points as there are products but one, and at infinity.
  void add(int first, int taps) {
    const int finite = outputs + taps - 2;
    for (int s = 0; s <= finite; s++) {
      Product product{s < finite ? s : sums() - 1, first};
      std::vector<double> basis{1};  // the polynomial that is 1 at point s and 0 at the others; coefficients
      double scale = 1, power = 1;
      for (int k = 0; k < finite; k++) {
        if (k == s) continue;
        basis.push_back(0);
        for (size_t i = basis.size() - 1; i > 0; i--) basis[i] = basis[i - 1] - points()[k] * basis[i];
        basis[0] *= -points()[k];
        if (s < finite) scale *= points()[s] - points()[k];
      }
      for (size_t i = 0; i < basis.size(); i++) product.of_x[i] = basis[i] / scale;
      for (int j = 0; j < taps; j++) {
        product.share[j] = s < finite ? power : j == taps - 1;
        if (s < finite) power *= points()[s];
      }
      products.push_back(product);
    }
  }

  std::array<std::array<double, kMostInputs>, kMostOutputs>
      parts_{};  // points to the powers 0, 1, ...; the last is infinite
};

// A weighted sum of rows, or many of them with the same factors.
template <class T>
class Combination {
 public:
  // rows[r] + offset is what sum r has of it; all rows must live until write() returns.
  void add(const T* const* rows, int64_t offset, double factor) {
    if (factor != 0) terms_[n_++] = {rows, offset, static_cast<T>(factor)};
  }
  bool empty() const { return n_ == 0; }
  void write(const LayerKernels<T>& k, T* const* to, int rows, int width) const {
    if (!empty()) return k.combine(terms_.data(), n_, to, rows, width);
    for (int r = 0; r < rows; r++) std::fill_n(to[r], width, T(0));
  }

 private:
  std::array<RowTerm<T>, kMostInputs> terms_;
  int n_ = 0;
};

// The x of a product, for the outputs at each x[t] + offset; neighbours are `pitch` apart.
template <class T>
Combination<T> of_neighbours(const Product& product, const T* const* x, int64_t offset, int64_t pitch) {
  Combination<T> all;
  for (int i = 0; i < kMostInputs; i++) all.add(x, offset + (product.first + i) * pitch, product.of_x[i]);
  return all;
}

// The weights of such sums, from `depth` to `channels` (a multiple of the kernels' block).
template <class T>
class NeighbourWeights {
 public:
  // fill(j, first, to): writes W_j for a block of channels from `first` on, [depth][block], over zeros.
  template <class Fill>
  NeighbourWeights(const char* isa, const Scheme& scheme, int taps, int depth, int channels, const Fill& fill,
                   int threads)
      : scheme(scheme), depth(depth), channels(channels), kernels_(kernels<T>(isa)),
        layer_kernels_(layer_kernels<T>(isa)), block_bytes_(kernels_.block_bytes(depth, WeightFormat::same)),
        bytes_(channels / kernels_.block * block_bytes_), packed_(bytes_ * scheme.products.size()) {
    const int block = kernels_.block, size = depth * block;
    parallel(bytes_ < 1 << 14 ? 1 : threads, channels / block, [&](int, int b) {
      std::vector<T> of_block(int64_t{taps} * size);  // [taps][depth][block]
      for (int j = 0; j < taps; j++) fill(j, b * block, of_block.data() + int64_t{j} * size);
      for (size_t i = 0; i < scheme.products.size(); i++) {
        const Product& product = scheme.products[i];
        const T* const begin = of_block.data();
        T* const to = reinterpret_cast<T*>(static_cast<char*>(packed_.data()) + i * bytes_ + b * block_bytes_);
        Combination<T> shares;
        for (int j = 0; j < kMostTaps && product.first + j < taps; j++)
          shares.add(&begin, int64_t{product.first + j} * size, product.share[j]);
        shares.write(layer_kernels_, &to, 1, size);
      }
    });
  }

  // Writes the rows, [depth] each, that product i multiplies. x[t]: where the first neighbour of group t lies;
  // neighbours are `pitch` apart.
  void prepare(size_t i, Rows<const T> x, int64_t pitch, int groups, Rows<T> rows) const {
    of_neighbours(scheme.products[i], x, 0, pitch).write(layer_kernels_, rows, groups, depth);
  }

  // from[t] + rows[t] . weights of product i -> to[t], for the channels first...first+n-1, multiples of the block.
  void multiply(size_t i, Rows<const T> rows, int groups, int first, int n, Rows<const T> from, Rows<T> to) const {
    const char* data = static_cast<const char*>(packed_.data()) + i * bytes_ + first / kernels_.block * block_bytes_;
    kernels_.matmul(rows, groups, {data, depth, block_bytes_, WeightFormat::same}, 0, n / kernels_.block, {from, to});
  }

  const Scheme scheme;
  const int depth, channels;

 private:
  const Kernels<T>& kernels_;
  const LayerKernels<T>& layer_kernels_;
  const int64_t block_bytes_, bytes_;
  Block packed_;
};

}  // namespace pcf::cpu

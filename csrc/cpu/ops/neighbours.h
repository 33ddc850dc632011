// Sums over neighbouring positions of a line, for two positions at once: y(p) = sum over j < k of x(p + j) . W_j. Two
// neighbours take 3 products instead of 4, and three take 4 instead of 6 (Winograd 1980, "Arithmetic Complexity of
// Computations", F(2, 2) and F(2, 3)). More are split into twos and threes.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "cpu/ops/layer_kernels.h"
#include "cpu/ops/memory_pool.h"
#include "cpu/simd/kernels.h"
#include "cpu/threads/parallel.h"

namespace pcf::cpu {

// What a product is added to: y(p) = even + both + opposite and y(p + 1) = odd + both - opposite.
enum Sum { even, odd, both, opposite };
constexpr int kSums = 4;

// (x(p + plus) + sign * x(p + minus)) . (sum over j of share[j] * W_j) is added to a sum.
struct Product {
  Sum sum;
  int plus, minus, sign;  // sign 0: x(p + plus) alone
  std::array<double, 3> share;
};

constexpr std::array<Product, 3> kProductsOfTwo{{
    {even, 0, 1, -1, {1, 0, 0}},
    {odd, 2, 1, -1, {0, 1, 0}},
    {both, 1, 1, 0, {1, 1, 0}},
}};
constexpr std::array<Product, 4> kProductsOfThree{{
    {even, 0, 2, -1, {1, 0, 0}},
    {odd, 3, 1, -1, {0, 0, 1}},
    {both, 1, 2, 1, {0.5, 0.5, 0.5}},
    {opposite, 2, 1, -1, {0.5, -0.5, 0.5}},
}};

// The products for `neighbours` of them; positions count from the first neighbour, shares[j] belong to W_j.
struct ProductOf {
  Product product;
  int first;  // the neighbour of share[0]
};
inline std::vector<ProductOf> products_of(int neighbours) {
  std::vector<ProductOf> all;
  const auto add = [&](const auto& products, int first) {
    for (Product p : products) {
      p.plus += first, p.minus += first;
      all.push_back({p, first});
    }
  };
  int first = 0;
  for (; neighbours - first >= 5 || neighbours - first == 3; first += 3) add(kProductsOfThree, first);
  for (; first < neighbours; first += 2) add(kProductsOfTwo, first);
  return all;
}

// The weights of such sums, from `depth` to `channels` (a multiple of the kernels' block).
template <class T>
class NeighbourWeights {
 public:
  // weight(j, d, c): of W_j, for c < channels.
  template <class Weight>
  NeighbourWeights(const char* isa, int neighbours, int depth, int channels, const Weight& weight, int threads)
      : products(products_of(neighbours)), depth(depth), channels(channels), kernels_(kernels<T>(isa)),
        adds_(layer_kernels<T>(isa)), block_bytes_(kernels_.block_bytes(depth, Weights::same)),
        bytes_(channels / kernels_.block * block_bytes_), packed_(bytes_ * products.size()) {
    const int block = kernels_.block, size = depth * block;
    parallel(bytes_ < 1 << 14 ? 1 : threads, channels / block, [&](int, int b) {
      std::vector<T> of_block(int64_t{neighbours} * size);  // [neighbours][depth][block]
      for (int j = 0; j < neighbours; j++)
        for (int d = 0; d < depth; d++)
          for (int k = 0; k < block; k++) of_block[(int64_t{j} * depth + d) * block + k] = weight(j, d, b * block + k);
      for (size_t i = 0; i < products.size(); i++) {
        const auto& [product, first] = products[i];
        T* to = reinterpret_cast<T*>(packed_.get() + i * bytes_ + b * block_bytes_);
        for (int j = 0; j < 3 && first + j < neighbours; j++)
          if (const T share = static_cast<T>(product.share[j]); share != 0)
            adds_.add(to, of_block.data() + int64_t{first + j} * size, share, to, size);
      }
    });
  }

  bool has(Sum sum) const {
    return std::any_of(products.begin(), products.end(), [=](const ProductOf& p) { return p.product.sum == sum; });
  }

  // Writes the rows [pairs][depth] that product i multiplies, those of pairs first...last-1. x[t]: where the first
  // neighbour of pair t lies; neighbours are `pitch` apart.
  void prepare(size_t i, Rows<const T> x, int64_t pitch, int first, int last, T* rows) const {
    const Product& p = products[i].product;
    for (int t = first; t < last; t++) {
      const T* plus = x[t] + p.plus * pitch;
      T* row = rows + int64_t{t} * depth;
      if (p.sign)
        adds_.add(plus, x[t] + p.minus * pitch, static_cast<T>(p.sign), row, depth);
      else
        std::copy_n(plus, depth, row);
    }
  }

  // from[t] + rows[t] . weights of product i -> to[t], for the channels first...first+n-1, multiples of the block.
  void multiply(size_t i, Rows<const T> rows, int pairs, int first, int n, Rows<const T> from, Rows<T> to) const {
    const char* data = packed_.get() + i * bytes_ + first / kernels_.block * block_bytes_;
    kernels_.matmul(rows, pairs, {data, depth, block_bytes_, Weights::same}, 0, n / kernels_.block, from, to);
  }

  const std::vector<ProductOf> products;
  const int depth, channels;

 private:
  const Kernels<T>& kernels_;
  const LayerKernels<T>& adds_;
  const int64_t block_bytes_, bytes_;
  ZeroedBlock packed_;
};

}  // namespace pcf::cpu

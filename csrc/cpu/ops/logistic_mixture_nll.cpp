#include "cpu/ops/logistic_mixture_nll.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <vector>

#include "cpu/ops/layer_kernels.h"
#include "cpu/simd/cpu_features.h"
#include "cpu/threads/parallel.h"

namespace pcf::cpu {
namespace {

constexpr int kPixels = kMixturePixels;

struct Place {
  int image, row, column, pixels;

  // Where it begins in a dense tensor [N, planes, H, W] beside the map.
  int64_t in_dense(const FeatureMap& map, int planes, int plane) const {
    return ((int64_t{image} * planes + plane) * map.height + row) * map.width + column;
  }
};

// The pixels of a map, a few at a time that follow each other in a line of memory: in the whole image if its rows
// follow each other, else in a row.
class Blocks {
 public:
  Blocks(const FeatureMap& map, const FeatureMap& other) {
    const bool whole = is_line(map) && is_line(other);
    lines_ = whole ? 1 : map.height;
    width_ = whole ? map.height * map.width : map.width;
    of_line_ = (width_ + kPixels - 1) / kPixels;
    total = map.images * lines_ * of_line_;
  }

  Place operator[](int i) const {
    const int column = i % of_line_ * kPixels, line = i / of_line_;
    return {line / lines_, line % lines_, column, std::min(kPixels, width_ - column)};
  }

  int total;

 private:
  static bool is_line(const FeatureMap& map) { return map.height == 1 || map.stride_y == map.width * map.stride_x; }

  int lines_, width_, of_line_;
};

// The map at a place, pixel by pixel, if the kernels can work on it there; else null.
template <class T, class E>
T* in_place(const FeatureMap& map, const Place& at) {
  if constexpr (std::is_same_v<T, E>)
    if (map.stride_x == 1 && at.pixels == kPixels) return map.at<T>(at.image, 0, at.row, at.column);
  return nullptr;
}

// The parameters and values of a few pixels, brought together where they do not lie so.
template <class T>
class Gathered {
 public:
  Gathered(const FeatureMap& map, int components, int levels)
      : map_(map), levels_(levels), parameters_(int64_t{map.channels} * kPixels) {
    const double half_width = 1. / (levels - 1), log_width = -std::log(2 * half_width);
    block_ = {.components = components,
              .channels = map.channels,
              .half_width = static_cast<T>(half_width),
              .log_width = static_cast<T>(log_width)};
  }

  // E: of the map. Nothing if a value is out of range.
  template <class E>
  const MixtureBlock<T>* gather(const Place& at, const int64_t* values) {
    block_.x = x_, block_.edge = edge_;
    block_.parameters = in_place<T, E>(map_, at), block_.plane = map_.stride_c;
    if (!block_.parameters) {
      block_.parameters = parameters_.data(), block_.plane = kPixels;
      copy_row(map_.at<const E>(at.image, 0, at.row, at.column), map_.stride_c, map_.stride_x, parameters_.data(),
               kPixels, 1, map_.channels, at.pixels);
    }
    for (int c = 0; c < block_.colours(); c++) {
      const int64_t* const value = values + at.in_dense(map_, block_.colours(), c);
      for (int j = 0; j < at.pixels; j++) {
        if (value[j] < 0 || value[j] >= levels_) return nullptr;
        x_[c * kPixels + j] = 2 * static_cast<T>(value[j]) / static_cast<T>(levels_ - 1) - 1;
        edge_[c * kPixels + j] = static_cast<T>((value[j] == levels_ - 1) - (value[j] == 0));
      }
    }
    return &block_;
  }

 private:
  const FeatureMap& map_;
  const int levels_;
  MixtureBlock<T> block_;
  std::vector<T> parameters_;
  T x_[kMostColours * kPixels] = {}, edge_[kMostColours * kPixels] = {};
};

}  // namespace

bool logistic_mixture_nll(const FeatureMap& parameters, const int64_t* values, int components, int levels, void* nll,
                          double* log_sum_exp, int threads) {
  std::atomic<bool> in_range{true};
  const Blocks blocks(parameters, parameters);
  std::vector<double> sums(blocks.total);
  with_element(parameters.element, [&](auto e) {
    using E = decltype(e);
    using T = Computed<E>;
    const auto& k = layer_kernels<T>(chosen_isa());
    std::vector<Gathered<T>> gathered(threads, {parameters, components, levels});
    parallel(threads, blocks.total, [&](int member, int i) {
      const Place at = blocks[i];
      const MixtureBlock<T>* const block = gathered[member].template gather<E>(at, values);
      if (!block) return in_range.store(false, std::memory_order_relaxed);
      double* const of_logits = log_sum_exp + at.in_dense(parameters, 2, 0);
      double of_mixture[kPixels];
      k.log_sum_exp({block->parameters, 1, block->plane, components}, at.pixels, of_logits);
      k.mixture_log_sum_exp(*block, of_mixture);
      std::copy_n(of_mixture, at.pixels, log_sum_exp + at.in_dense(parameters, 2, 1));
      for (int j = 0; j < at.pixels; j++) sums[i] += of_logits[j] - of_mixture[j];
    });
    const int of_image = blocks.total / std::max(1, parameters.images);
    for (int image = 0; image < parameters.images; image++) {
      const double* const first = sums.data() + int64_t{image} * of_image;
      static_cast<T*>(nll)[image] = static_cast<T>(std::accumulate(first, first + of_image, 0.));
    }
  });
  return in_range;
}

void logistic_mixture_nll_gradient(const FeatureMap& parameters, const int64_t* values, int components, int levels,
                                   const double* log_sum_exp, const void* grad_nll, const FeatureMap& grad_parameters,
                                   int threads) {
  const Blocks blocks(parameters, grad_parameters);
  with_element(parameters.element, [&](auto e) {
    using E = decltype(e);
    using T = Computed<E>;
    const auto& k = layer_kernels<T>(chosen_isa());
    std::vector<Gathered<T>> gathered(threads, {parameters, components, levels});
    std::vector<std::vector<T>> grads(threads, std::vector<T>(int64_t{parameters.channels} * kPixels));
    parallel(threads, blocks.total, [&](int member, int i) {
      const Place at = blocks[i];
      double of_logits[kPixels] = {}, of_mixture[kPixels] = {};
      std::copy_n(log_sum_exp + at.in_dense(parameters, 2, 0), at.pixels, of_logits);
      std::copy_n(log_sum_exp + at.in_dense(parameters, 2, 1), at.pixels, of_mixture);
      const MixtureBlock<T>& block = *gathered[member].template gather<E>(at, values);
      const T scale = static_cast<const T*>(grad_nll)[at.image];
      if (T* const to = in_place<T, E>(grad_parameters, at))
        return k.mixture_gradient(block, of_logits, of_mixture, scale, to, grad_parameters.stride_c);
      T* const grad = grads[member].data();
      k.mixture_gradient(block, of_logits, of_mixture, scale, grad, kPixels);
      copy_row(grad, kPixels, 1, grad_parameters.at<E>(at.image, 0, at.row, at.column), grad_parameters.stride_c,
               grad_parameters.stride_x, parameters.channels, at.pixels);
    });
  });
}

}  // namespace pcf::cpu

// Winograd's minimal filtering: two neighbouring outputs of a convolution along a row need taps + 1 products with
// weights in place of 2 * taps, if columns and weights are first taken to as many points (Lavin and Gray,
// https://arxiv.org/abs/1509.09308).
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

namespace pcf::cpu {

// The matrices of F(2, taps), row by row: outputs = to_outputs ((of_weights weights) * (of_columns columns)), with as
// many columns as points. All but the last point are where polynomials are evaluated, the last is infinity.
template <class T>
class Filter {
 public:
  static constexpr int kColumns = 2;                   // that are computed together
  static constexpr int kLeastTaps = 5, kMostTaps = 7;  // fewer save too little, and more lose digits

  explicit Filter(int taps) : taps(taps), points(taps + kColumns - 1) {
    static constexpr double kAt[kMostTaps] = {0, 1, -1, 2, -0.5, -2, 0.5};  // of little size, for little rounding
    const auto powers = [](std::vector<T>& row, double at, double factor, int n) {
      for (int k = 0; k < n; k++) row.push_back(static_cast<T>(factor * std::pow(at, k)));
    };
    const auto last_only = [](std::vector<T>& row, int n) { row.insert(row.end(), n - 1, T(0)), row.push_back(T(1)); };
    std::vector<double> all{1};  // the coefficients of the product of x - kAt[p] over all p
    for (int p = 0; p < taps; p++) all = times_root(all, kAt[p]);
    for (int p = 0; p < taps; p++) {
      std::vector<double> others{1};
      double apart = 1, largest = 0;
      for (int q = 0; q < taps; q++)
        if (q != p) others = times_root(others, kAt[q]), apart *= kAt[p] - kAt[q];
      for (double c : others) largest = std::max(largest, std::abs(c));
      const double scale = std::exp2(std::round(std::log2(largest)));  // so that both factors are of like size
      for (double c : others) of_columns.push_back(static_cast<T>(c / scale));
      of_columns.push_back(T(0));
      powers(of_weights, kAt[p], scale / apart, taps);
    }
    of_columns.insert(of_columns.end(), all.begin(), all.end());
    last_only(of_weights, taps);
    for (int column = 0; column < kColumns; column++) {
      for (int p = 0; p < taps; p++) to_outputs.push_back(static_cast<T>(std::pow(kAt[p], column)));
      to_outputs.push_back(T(column == kColumns - 1));
    }
  }

  const int taps, points;
  std::vector<T> of_columns, of_weights, to_outputs;

 private:
  static std::vector<double> times_root(const std::vector<double>& polynomial, double root) {
    std::vector<double> product(polynomial.size() + 1);
    for (size_t k = 0; k < polynomial.size(); k++) product[k + 1] += polynomial[k], product[k] -= root * polynomial[k];
    return product;
  }
};

}  // namespace pcf::cpu

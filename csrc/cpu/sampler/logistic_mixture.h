// Draws the colours of a pixel from a mixture of logistics, and scores them: in double, by the formulas of
// pixelcnn_fast/heads/logistic_mixture.py and mixture.py, which explain the fields of Head.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/sampler/distribution.h"

namespace pcf::cpu {

// Draws for one thread.
template <class T>
class LogisticMixture {
  static constexpr int kMostColours = 3;
  static constexpr double kTail = 1e-5, kLeastLogScale = -7, kWidestDrawn = 700;

 public:
  LogisticMixture(const Head& head, const Job& job)
      : head_(head), job_(job), logits_(head.components), sums_(head.components) {}

  // As HeadDrawer::draw.
  bool draw(const Distribution<T>& d) {
    const bool is_finite =
        std::all_of(d.parameters, d.parameters + head_.parameters, [](T x) { return std::isfinite(x); });
    if (!is_finite) {
      for (int c = 0; c < d.count; c++)
        if (!known(d, c)) store(d.values + c * d.stride, -1);
      return false;
    }
    const auto noise = [&](int number) { return job_.noise[d.noise + number * d.stride]; };
    double x[kMostColours];
    std::copy_n(d.parameters, head_.components, logits_.begin());
    int k = -1;  // of all colours, unless each has one
    for (int c = 0; c < d.count; c++) {
      const int64_t at = d.values + c * d.stride;
      if (known(d, c)) {
        x[c] = number(at);
        for (int j = 0; j < head_.components && !head_.per_colour; j++) logits_[j] += score(d, x, c, j);
        continue;
      }
      if (head_.per_colour || k < 0) k = chosen(noise(head_.per_colour ? 2 * c : 0));
      const double v = noise(head_.per_colour ? 2 * c + 1 : 1 + c);
      store(at, quantile(v, mean(d, x, c, k), log_scale(d, c, k)));
      x[c] = number(at);  // as the next colours see it
    }
    if (job_.log_probability) score_drawn(d, x);
    return true;
  }

 private:
  bool known(const Distribution<T>& d, int c) const { return job_.known && job_.known[d.values + c * d.stride]; }

  // -- values in [-1, 1]

  double of_level(double level) const { return level * 2 / (head_.levels - 1) - 1; }
  double number(int64_t at) const {
    const auto value = value_at<double>(head_, job_.values, at);
    return head_.real ? value : of_level(value);
  }
  void store(int64_t at, double x) const {
    if (head_.real)
      static_cast<float*>(job_.values)[at] = static_cast<float>(x);
    else
      static_cast<int32_t*>(job_.values)[at] = std::nearbyint((x + 1) * ((head_.levels - 1) / 2.));
  }

  // -- one component; x: the colours before c, or with it

  double parameter(const Distribution<T>& d, int c, int number, int k) const {
    const int each = (head_.parameters / head_.components - 1) / d.count;
    return d.parameters[head_.components * (1 + each * c + number) + k];
  }
  double mean(const Distribution<T>& d, const double* x, int c, int k) const {
    double mean = parameter(d, c, 0, k);
    for (int before = 0; before < c; before++)
      mean += std::tanh(parameter(d, c * (c - 1) / 2 + before, 2, k)) * x[before];
    return mean;
  }
  double log_scale(const Distribution<T>& d, int c, int k) const {
    return std::max(parameter(d, c, 1, k), kLeastLogScale);
  }

  double quantile(double v, double mean, double log_scale) const {
    const double temperature = job_.options.temperature;
    if (v < head_.uniform && temperature > 0)
      return std::min(of_level(std::floor(v * head_.levels / head_.uniform)), 1.);
    const double inner = std::clamp((v - head_.uniform) / (1 - head_.uniform), kTail, 1 - kTail);
    const double by =
        std::exp(std::min(log_scale, kWidestDrawn)) * (temperature * (std::log(inner) - std::log1p(-inner)));
    return std::clamp(mean + by, -1., 1.);
  }

  static double logistic(double z) { return 1 / (1 + std::exp(-z)); }
  static double log_logistic(double z) { return std::min(z, 0.) - std::log1p(std::exp(-std::abs(z))); }

  // ln of the mass of colour c.
  double score(const Distribution<T>& d, const double* x, int c, int k) const {
    const double s = log_scale(d, c, k), inverse = std::exp(-s), half = inverse / (head_.levels - 1);
    const double mid = (x[c] - mean(d, x, c, k)) * inverse;
    const bool is_lowest = x[c] <= -1, is_highest = x[c] >= 1;
    const double mass = (is_highest ? 1 : logistic(mid + half)) - (is_lowest ? 0 : logistic(mid - half));
    if (head_.uniform > 0) return std::log((1 - head_.uniform) * mass + head_.uniform / head_.levels);
    if (is_lowest) return log_logistic(mid + half);
    if (is_highest) return log_logistic(half - mid);
    return mass > kTail ? std::log(mass) : mid - s + 2 * log_logistic(-mid) - std::log((head_.levels - 1) / 2.);
  }

  // -- the mixture

  // The first k with u < π_0 + ... + π_k, or the last one that is possible; of all equally likely ones, the first.
  int chosen(double u) {
    const double temperature = job_.options.temperature;
    const auto likeliest = std::max_element(logits_.begin(), logits_.end());
    if (temperature == 0) return likeliest - logits_.begin();
    double total = 0, before = 0;
    for (int k = 0; k < head_.components; k++) total += sums_[k] = std::exp((logits_[k] - *likeliest) / temperature);
    int last = 0;
    for (int k = 0; k < head_.components; k++) {
      before += sums_[k];
      if (u * total < before) return k;
      if (sums_[k] > 0) last = k;
    }
    return last;
  }

  static double log_sum(const std::vector<double>& x) {
    const double most = *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (double each : x) sum += std::exp(each - most);
    return most + std::log(sum);
  }

  // ln p of each colour that is drawn, given those before it.
  void score_drawn(const Distribution<T>& d, const double* x) {
    std::copy_n(d.parameters, head_.components, logits_.begin());
    const double total = log_sum(logits_);
    for (double& logit : logits_) logit -= total;
    double before = 0;
    for (int c = 0; c < d.count; c++) {
      for (int k = 0; k < head_.components; k++) sums_[k] = logits_[k] + score(d, x, c, k);
      const double together = log_sum(sums_);
      if (!known(d, c)) job_.log_probability[d.values + c * d.stride] = together - before;
      if (!head_.per_colour) logits_ = sums_, before = together;
    }
  }

  const Head& head_;
  const Job& job_;
  std::vector<double> logits_, sums_;
};

}  // namespace pcf::cpu

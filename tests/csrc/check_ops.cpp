// Runs the convolutions, the recurrences and the mixture's likelihood in C++ on small maps, for the sanitizers, and
// checks that threads, batching and memory layouts do not change what comes out. Exits 1 at the first difference.
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/memory/pool.h"
#include "cpu/ops/logistic_mixture_nll.h"
#include "cpu/ops/masked_conv2d.h"
#include "cpu/ops/neighbours.h"
#include "cpu/ops/recurrence.h"
#include "cpu/simd/cpu_features.h"

namespace {

using namespace pcf::cpu;

constexpr int kImages = 5, kHeight = 6, kWidth = 7, kHidden = 19;

void require(bool ok, const char* what) {
  if (ok) return;
  std::printf("FAILED: %s\n", what);
  std::exit(1);
}

std::vector<float> drawn(int64_t size, double scale) {
  static std::mt19937 random(3);
  std::normal_distribution<double> normal(0, scale);
  std::vector<float> values(size);
  for (float& x : values) x = static_cast<float>(normal(random));
  return values;
}

// Memory of its own for a map, with the channels last or first.
struct Map {
  std::vector<float> memory;
  FeatureMap map;
  Map(int images, int channels, bool channels_last, std::vector<float> values = {})
      : memory(values.empty() ? std::vector<float>(int64_t{images} * channels * kHeight * kWidth) : std::move(values)) {
    const int64_t pixels = kHeight * kWidth;
    map = {memory.data(),
           Element::float32,
           images,
           channels,
           kHeight,
           kWidth,
           channels * pixels,
           channels_last ? 1 : pixels,
           channels_last ? int64_t{kWidth} * channels : kWidth,
           channels_last ? channels : 1};
  }
  float at(int n, int c, int y, int x) const {
    return memory[n * map.stride_n + c * map.stride_c + y * map.stride_y + x * map.stride_x];
  }
};

std::vector<float> as_channels_first(const Map& m, int images) {
  std::vector<float> values;
  for (int n = 0; n < images; n++)
    for (int c = 0; c < m.map.channels; c++)
      for (int y = 0; y < kHeight; y++)
        for (int x = 0; x < kWidth; x++) values.push_back(m.at(n, c, y, x));
  return values;
}

Map in_layout(const std::vector<float>& channels_first, int images, int channels, bool channels_last) {
  Map m(images, channels, channels_last);
  const float* from = channels_first.data();
  for (int n = 0; n < images; n++)
    for (int c = 0; c < channels; c++)
      for (int y = 0; y < kHeight; y++)
        for (int x = 0; x < kWidth; x++)
          m.memory[n * m.map.stride_n + c * m.map.stride_c + y * m.map.stride_y + x * m.map.stride_x] = *from++;
  return m;
}

void check_recurrence(bool diagonal, bool reverse, int taps) {
  const auto weight = drawn(4 * kHidden * kHidden * taps, 0.2), h0 = drawn(kHidden, 1), c0 = drawn(kHidden, 1);
  const auto sums = drawn(int64_t{kImages} * 4 * kHidden * kHeight * kWidth, 1);
  const auto grad = drawn(int64_t{kImages} * kHidden * kHeight * kWidth, 1);
  const StateToState r{diagonal, reverse, taps, weight.data(), h0.data(), c0.data()};
  const auto run = [&](int images, bool channels_last, int threads) {
    const Map from = in_layout(sums, images, 4 * kHidden, channels_last);
    const Map of_h = in_layout(grad, images, kHidden, channels_last);
    const Map h(images, kHidden, channels_last), gates(images, 4 * kHidden, channels_last);
    const Map of_sums(images, 4 * kHidden, channels_last);
    std::vector<float> of_h0(kHidden), of_c0(kHidden);
    recurrence(r, from.map, h.map, gates.map, threads);
    recurrence_gradient(r, of_h.map, gates.map, of_sums.map, of_h0.data(), of_c0.data(), threads);
    auto all = as_channels_first(h, 1);  // of the first image
    for (float x : as_channels_first(of_sums, 1)) all.push_back(x);
    return all;
  };
  const auto expected = run(kImages, false, 1);
  for (int images : {1, 2, kImages})
    for (bool channels_last : {false, true})
      for (int threads : {1, 2, 3})
        require(run(images, channels_last, threads) == expected, "a recurrence does not depend on how it is run");
}

// E: of the weight
template <class E>
void check_convolution(Element element, int in, int out, int height, int width) {
  const auto bias = drawn(out, 1);
  std::vector<E> weight, mask;  // B: nothing after the centre
  for (float w : drawn(int64_t{out} * in * height * width, 0.2)) {
    const int k = weight.size() % (height * width);
    weight.push_back(convert<E>(w)), mask.push_back(convert<E>(k > height * width / 2 ? 0.f : 1.f));
  }
  const auto dense = [&](std::vector<E>& values) {
    const int64_t taps = int64_t{height} * width;
    return FeatureMap{values.data(), element, out, in, height, width, in * taps, taps, width, 1};
  };
  const MaskedWeight w{dense(weight), dense(mask)};
  const Geometry same{{height / 2, width / 2}, {1, 1}};
  const auto x = drawn(int64_t{kImages} * in * kHeight * kWidth, 1);
  const auto grad = drawn(int64_t{kImages} * out * kHeight * kWidth, 1);
  const auto run = [&](int images, bool channels_last, int threads) {
    const Map from = in_layout(x, images, in, channels_last), of_out = in_layout(grad, images, out, channels_last);
    const Map to(images, out, channels_last), of_x(images, in, channels_last);
    ConvEpilogue epilogue;
    epilogue.bias = bias.data();
    masked_conv2d(from.map, w, same, epilogue, to.map, threads);
    masked_conv2d_input_gradient(of_out.map, w, same, of_x.map, threads);
    std::vector<E> of_weight(weight.size()), of_bias(out);
    masked_conv2d_weight_gradient(of_out.map, from.map, w, same, of_weight.data(), of_bias.data(), threads);
    for (size_t i = 0; i < mask.size(); i++)
      require(convert<float>(mask[i]) != 0 || convert<float>(of_weight[i]) == 0, "masked weights get no gradient");
    auto all = as_channels_first(to, 1);
    for (float value : as_channels_first(of_x, 1)) all.push_back(value);
    return all;
  };
  const auto expected = run(kImages, false, 1);
  for (int images : {1, kImages})
    for (bool channels_last : {false, true})
      for (int threads : {1, 3})
        require(run(images, channels_last, threads) == expected, "a convolution does not depend on how it is run");
}

void check_mixture(int colours, int channels, int components) {
  constexpr int kLevels = 256;
  const auto parameters = drawn(int64_t{kImages} * channels * kHeight * kWidth, 1);
  std::vector<int64_t> values(int64_t{kImages} * colours * kHeight * kWidth);
  for (size_t i = 0; i < values.size(); i++) values[i] = i * 51 % kLevels;  // at both edges, too
  const std::vector<float> grad(kImages, 2);
  const auto run = [&](int images, bool channels_last, int threads) {
    const Map from = in_layout(parameters, images, channels, channels_last), of_from(images, channels, channels_last);
    std::vector<float> nll(images);
    std::vector<double> sums(int64_t{images} * 2 * kHeight * kWidth);
    require(logistic_mixture_nll(from.map, values.data(), components, kLevels, nll.data(), sums.data(), threads),
            "values are in range");
    logistic_mixture_nll_gradient(from.map, values.data(), components, kLevels, sums.data(), grad.data(), of_from.map,
                                  threads);
    auto all = as_channels_first(of_from, 1);
    all.push_back(nll[0]);
    return all;
  };
  const auto expected = run(kImages, false, 1);
  for (int images : {1, kImages})
    for (bool channels_last : {false, true})
      for (int threads : {1, 3})
        require(run(images, channels_last, threads) == expected, "a likelihood does not depend on how it is run");
}

// The products of a scheme add up to each output's sum over its own taps.
void check_scheme(int outputs, int taps) {
  const Scheme scheme(outputs, taps);
  for (int i = 0; i < outputs; i++)
    for (int j = 0; j < taps; j++)
      for (int x = 0; x < outputs + taps - 1; x++) {
        double factor = 0;  // of x(p + x) . W_j in y(p + i)
        for (const Product& p : scheme.products)
          if (j >= p.first && j < p.first + kMostTaps && x >= p.first && x < p.first + kMostInputs)
            factor += scheme.part(i, p.sum) * p.share[j - p.first] * p.of_x[x - p.first];
        require(std::abs(factor - (x == i + j)) < 1e-12, "a scheme sums over the taps");
      }
}

}  // namespace

int main() {
  for (int outputs : {2, 4})
    for (int taps = 1; taps <= 7; taps++) check_scheme(outputs, taps);
  for (const auto& isa : available_isas()) {
    force_isa(isa);
    for (int taps : {1, 3, 5}) check_recurrence(false, false, taps);
    for (bool reverse : {false, true}) check_recurrence(true, reverse, 2);
    for (const auto& [in, out, height, width] :
         std::vector<std::array<int, 4>>{{3, 40, 5, 5}, {40, 33, 3, 3}, {64, 32, 1, 5}, {32, 64, 1, 1}}) {
      check_convolution<float>(Element::float32, in, out, height, width);
      check_convolution<Bfloat16>(Element::bfloat16, in, out, height, width);
    }
    check_mixture(3, 20, 2), check_mixture(1, 9, 3), check_mixture(1, 12, 3);
    std::printf("%s: ok\n", isa.c_str());
  }
  require(Block::kept() > 0, "memory is kept");
}

// What is made of a product's sums.
#pragma once

#include "cuda/kernels/any_steps.h"

namespace pcf::cuda {

template <Math kMath, int kTiles, int kBlocks>
class Results : public AnySteps<kMath, kTiles, kBlocks> {
  using Base = AnySteps<kMath, kTiles, kBlocks>;

 public:
  using Base::Base;

 protected:
  using Base::apply, Base::clear_sums, Base::group, Base::in_grid, Base::kMost, Base::lane_, Base::layout_, Base::load,
      Base::next, Base::own, Base::ring_of, Base::send_unit, Base::site, Base::site_of, Base::store, Base::store_logits,
      Base::store_near, Base::store_one, Base::sums_, Base::warp_;

  // Makes results of the sums.
  __device__ __forceinline__ void finish(const Record::Product& product, uint32_t now) {
    Result r = in_shared<const Result>(product.results);
#pragma unroll 1
    for (int n = 1;; n++) {
      const int tile = product.first_tile + warp_, channel = r.first_channel + tile * r.tile_channels + group() * 2;
      const Bias bias(r, r.bias + tile * r.bias_tile + group() * 8);
      char* const ring = kBlocks > 1 ? nullptr : ring_of(now, r.to);  // or it is sent, and written back
      if (r.ending == Ending::sum)
        add_and_store(r, ring, channel, bias);
      else if (r.ending == Ending::gate)
        gate_and_store(r, ring, channel, bias, now);
      else if (kMost >= 4 && r.ending == Ending::lstm)
        cell_and_store(r, ring, channel, bias, now);
      else
        switch (r.ending) {
          case Ending::sum:
          case Ending::gate:
          case Ending::lstm: break;
          case Ending::logits: store_logits(r, channel, bias); break;
          case Ending::activated: activate_and_store(r, ring, channel, bias); break;
          case Ending::steps: step_and_store(r, ring, channel, bias, now); break;
          case Ending::sums:
            if constexpr (kTiles <= kMostRowTiles) store_sums(r, ring_of(now, r.to), channel, bias, now);
            break;
        }
      if (n == product.n_results) break;
      if (r.takes_sums) next_sums();
      r = in_shared<const Result>(product.results + n * sizeof(Result));
    }
  }

  // Moves those of the next member to the front.
  __device__ __forceinline__ void next_sums() {
#pragma unroll
    for (int s = kTiles * 8; s < kMost * kTiles * 8; s++)
      sums_[s / 8 - kTiles][s / 4 % 2][s % 4] = sums_[s / 8][s / 4 % 2][s % 4];
    clear_sums(Constant<kMost - 1>(), Constant<kMost>());
  }

  // What is added to a lane's sums: a bias, or sums that a product goes on with, which each site has of its own.
  struct Bias {
    uint32_t at, site_bytes;
    float2 of_all;

    __device__ __forceinline__ Bias(const Result& r, uint32_t at)
        : at(at), site_bytes(r.bias_site), of_all(in_shared<const float2>(at)) {}
    __device__ __forceinline__ Bias of_member(const Result& r, int member) const {
      return Bias(r, at + member * r.bias_member);
    }
    __device__ __forceinline__ float2 of(int site) const {
      const bool is_own = kTiles <= 2 || (kTiles <= kMostRowTiles && site_bytes);
      return is_own ? in_shared<const float2>(at + site * site_bytes) : of_all;
    }
  };

  // The sums of a tile of sites. number: which of the warp's.
  __device__ __forceinline__ void sums_of(float (&x)[4], int number, int tile, const Bias& bias) {
    Fragment<kMath>::finish(x, sums_[number], lane_);
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const float2 added = bias.of(site_of(tile, n));
      x[n] += added.x, x[n + 2] += added.y;
    }
  }

  __device__ __forceinline__ void add_and_store(const Result& r, char* ring, int channel, const Bias& first) {
    for_members(r, first, [&](int m, const Bias& bias) {
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++) {
        float x[4], added[4];
        sums_of(x, m * kTiles + tile, tile, bias);
        own(added, r.sum.added, channel + m * kTileChannels, tile, -0.f);
#pragma unroll
        for (int c = 0; c < 4; c++) x[c] += added[c], x[c] = x[c] < r.sum.least ? r.sum.least : x[c];  // keeps NaN
        store(x, r.to, ring, tile, channel + m * kTileChannels);
      }
    });
  }

  // Calls one(member, its bias) for all members that are tiles of one wide layer, and clears their sums.
  template <class One>
  __device__ __forceinline__ void for_members(const Result& r, const Bias& first, const One& one) {
#pragma unroll
    for (int m = 0; m < kMost; m++) {
      if (m > 0 && m * kTileChannels >= r.tile_channels) return;
      one(m, first.of_member(r, m));
#pragma unroll
      for (int s = 0; s < kTiles * 8 && m > 0; s++) sums_[m * kTiles + s / 8][s / 4 % 2][s % 4] = 0;
    }
  }

  __device__ __forceinline__ void store_logits(const Result& r, int channel, const Bias& first) {
    for_members(r, first, [&](int m, const Bias& bias) {
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++) {
        float x[4];
        sums_of(x, m * kTiles + tile, tile, bias);
        store_logits(x, r, tile, channel + m * kTileChannels);
      }
    });
  }

  __device__ __forceinline__ void store_sums(const Result& r, char* ring, int channel, const Bias& bias,
                                             uint32_t view) {
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) {
      float x[4];
      sums_of(x, tile, tile, bias);
#pragma unroll
      for (int n = 0; n < 2; n++) {
        const Site s = site(view, site_of(tile, n));
        const int of_column = site_of(tile, n) - s.ahead * layout_.images;
        const uint32_t at = offset_of<Math::fp32>(channel, kTiles) + of_column * kSiteBytes;
        if (in_grid(s.row, s.column))
          *reinterpret_cast<float2*>(ring + at + s.ahead * r.sums.column_bytes) = float2{x[n], x[n + 2]};
      }
    }
  }

  __device__ __forceinline__ void activate_and_store(const Result& r, char* ring, int channel, const Bias& bias) {
    const bool has_sums = r.activated.from == kNowhere;
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) {
      float x[4], sums[4], factor[4], term[4];
      sums_of(sums, tile, tile, bias);
      own(x, r.activated.from, channel, tile, 0);
#pragma unroll
      for (int c = 0; c < 4; c++) x[c] = has_sums ? sums[c] : x[c];
      if (r.activation == Activation::sigmoid)
        activate(StepKind::sigmoid, x);
      else if (r.activation == Activation::tanh)
        activate(StepKind::tanh, x);
      else if (r.activation == Activation::relu)
        activate(StepKind::relu, x);
      own(factor, r.activated.factor, channel, tile, 1);
      own(term, r.activated.term, channel, tile, -0.f);
#pragma unroll
      for (int c = 0; c < 4; c++) x[c] = x[c] * factor[c] + term[c];
      store(x, r.to, ring, tile, channel);
    }
  }

  // A member's sums of a tile.
  template <int kMember>
  __device__ __forceinline__ void sums_of_member(float (&x)[4], int tile, const Result& r, const Bias& first) {
    sums_of(x, kMember * kTiles + tile, tile, first.of_member(r, kMember));
  }
  static __device__ __forceinline__ void activate(StepKind kind, float (&x)[4]) {
    const float none[4] = {};
    apply_formula(kind, 0, x, none, none, kMath);
  }
  // As it is read once it has been stored.
  static __device__ __forceinline__ void round_as_stored(float (&x)[4]) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const float2 pair = Pair<kMath>(x[n], x[n + 2]).values();
      x[n] = pair.x, x[n + 2] = pair.y;
    }
  }

  // A lane has a channel of both factors, each at two sites.
  __device__ __forceinline__ void gate_and_store(const Result& r, char* ring, int channel, const Bias& first,
                                                 uint32_t view) {
    for_members(r, first, [&](int m, const Bias& bias) {
      const int unit = (channel + m * kTileChannels) / 2;
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++) {
        float x[4], rounded[4];
        sums_of(x, m * kTiles + tile, tile, bias);
        const auto store_unit = [&](const Target& to, char* ring, float a, float b) {
#pragma unroll
          for (int n = 0; n < 2; n++)
            if (kBlocks > 1)
              store_near(to, n ? b : a, unit, site_of(tile, n));
            else
              store_one(to, ring, n ? b : a, unit, site_of(tile, n));
          if (kBlocks > 1 && to.shared != kNowhere) send_unit(to.shared, a, b, unit, tile);
        };
        if (r.gate.keeps_sums) {
          const auto ring_for = [&](const Target& to) { return kBlocks > 1 ? nullptr : ring_of(view, to); };
          store_unit(r.gate.sums[0], ring_for(r.gate.sums[0]), x[0], x[1]);
          store_unit(r.gate.sums[1], ring_for(r.gate.sums[1]), x[2], x[3]);
          round_as_stored(x);
        }
#pragma unroll
        for (int n = 0; n < 2; n++) x[n] = hyperbolic_tangent(x[n], kMath), x[n + 2] = logistic(x[n + 2], kMath);
#pragma unroll
        for (int c = 0; c < 4; c++) rounded[c] = x[c];
        round_as_stored(rounded);
#pragma unroll
        for (int n = 0; n < 2; n++) x[n] = r.gate.rounds_tanh ? rounded[n] * x[n + 2] : x[n] * rounded[n + 2];
        store_unit(r.to, ring, x[0], x[1]);
      }
    });
  }

  __device__ __forceinline__ void cell_and_store(const Result& r, char* ring, int channel, const Bias& bias,
                                                 uint32_t view) {
    char* const cells = kBlocks > 1 ? nullptr : ring_of(view, r.lstm.cell);
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) {
      float cell[4], input[4], forget[4], output[4], factor[4];
      sums_of_member<0>(cell, tile, r, bias);
      sums_of_member<1>(input, tile, r, bias);
      sums_of_member<2>(forget, tile, r, bias);
      sums_of_member<3>(output, tile, r, bias);
      own(factor, r.lstm.factor, channel, tile, 0);
      activate(StepKind::tanh, cell), activate(StepKind::sigmoid, input);
      activate(StepKind::sigmoid, forget), activate(StepKind::sigmoid, output);
      round_as_stored(cell), round_as_stored(output);
#pragma unroll
      for (int c = 0; c < 4; c++) cell[c] *= input[c];
      round_as_stored(cell);
#pragma unroll
      for (int c = 0; c < 4; c++) cell[c] = forget[c] * factor[c] + cell[c];
      store(cell, r.lstm.cell, cells, tile, channel);
      round_as_stored(cell);
      activate(StepKind::tanh, cell);
#pragma unroll
      for (int c = 0; c < 4; c++) cell[c] *= output[c];
      store(cell, r.to, ring, tile, channel);
    }
    clear_sums(Constant<1>(), Constant<kMost>());
  }

  // Any steps. The sums of a tile at a time come to the front, so that the code of all kinds of steps is there once.
  __device__ __forceinline__ void step_and_store(const Result& r, char* ring, int channel, const Bias& bias,
                                                 uint32_t view) {
#pragma unroll 1
    for (int tile = 0; tile < kTiles; tile++) {
      float x[4];
      sums_of(x, 0, tile, bias);
      if (r.steps.starts != kNowhere) load(x, in_shared<const Place>(r.steps.starts), channel, tile, view);
#pragma unroll 1
      for (int s = 0; s < r.steps.count; s++)
        apply(x, in_shared<const StepPlan>(r.steps.first + s * sizeof(StepPlan)), r.lead, channel, tile, view);
      // Channels that fill up a fragment must be zero: a step may have made them infinite, and 0 times infinity is NaN.
#pragma unroll
      for (int c = 0; c < 4; c++) x[c] = channel + c / 2 < r.steps.channels ? x[c] : 0.f;
      r.logits == kNowhere ? store(x, r.to, ring, tile, channel) : store_logits(x, r, tile, channel);
#pragma unroll
      for (int s = 8; s < kTiles * 8; s++) sums_[s / 8 - 1][s / 4 % 2][s % 4] = sums_[s / 8][s / 4 % 2][s % 4];
    }
  }
};

}  // namespace pcf::cuda

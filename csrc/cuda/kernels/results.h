// What is made of a product's sums.
#pragma once

#include "cuda/kernels/any_steps.h"
#include "cuda/kernels/products.h"

namespace pcf::cuda {

// What is added to a lane's sums: a bias, or sums that a product goes on with, which each site has of its own.
struct Bias {
  uint32_t at, site_bytes;
  float2 of_all;

  PCF_DEVICE Bias(const Result& r, uint32_t at)
      : at(at), site_bytes(r.bias_site), of_all(in_shared<const float2>(at)) {}
  PCF_DEVICE Bias of_member(const Result& r, int member) const { return Bias(r, at + member * r.bias_member); }
  PCF_DEVICE float2 of(int site) const {
    const bool is_own = kTiles <= 2 || (kTiles <= kMostRowTiles && site_bytes);
    return is_own ? in_shared<const float2>(at + site * site_bytes) : of_all;
  }
};

// What a warp makes its results of: its first channel, where it is in its ring, if nothing is sent, and the view.
struct Making {
  const Result& r;
  const int channel;
  char* const ring;
  const Bias bias;
  const uint32_t view;
};

// The sums of a tile of sites. number: which of the warp's.
PCF_DEVICE void load_sums(const Block& b, float (&x)[4], int number, int tile, const Bias& bias) {
  Fragment::finish(x, b.sums[number], b.lane);
#pragma unroll
  for (int n = 0; n < 2; n++) {
    const float2 added = bias.of(b.site_of(tile, n));
    x[n] += added.x, x[n + 2] += added.y;
  }
}

// Calls one(sums, channel, tile) for all tiles of all members that are tiles of one wide layer, and clears their sums.
template <class One>
PCF_DEVICE void for_members(Block& b, const Making& m, const One& one) {
#pragma unroll
  for (int member = 0; member < kMost; member++) {
    if (member > 0 && member * kTileChannels >= m.r.tile_channels) return;
    const Bias bias = m.bias.of_member(m.r, member);
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) {
      float x[4];
      load_sums(b, x, member * kTiles + tile, tile, bias);
      one(x, m.channel + member * kTileChannels, tile);
    }
#pragma unroll
    for (int s = 0; s < kTiles * 8 && member > 0; s++) b.sums[member * kTiles + s / 8][s / 4 % 2][s % 4] = 0;
  }
}

PCF_DEVICE void activate(StepKind kind, float (&x)[4]) {
  const float none[4] = {};
  apply_formula(kind, 0, x, none, none, kMath);
}

// As it is read once it has been stored.
PCF_DEVICE void round_as_stored(float (&x)[4]) {
#pragma unroll
  for (int n = 0; n < 2; n++) {
    const float2 pair = Pair(x[n], x[n + 2]).values();
    x[n] = pair.x, x[n + 2] = pair.y;
  }
}

PCF_DEVICE void make_logits(Block& b, const Making& m) {
  for_members(b, m, [&](float (&x)[4], int channel, int tile) { store_logits(b, x, m.r, tile, channel); });
}
PCF_DEVICE void make_sum(Block& b, const Making& m) {
  for_members(b, m, [&](float (&x)[4], int channel, int tile) {
    float added[4];
    load_own(b, added, m.r.sum.added, channel, tile, -0.f);
#pragma unroll
    for (int c = 0; c < 4; c++) x[c] += added[c], x[c] = x[c] < m.r.sum.least ? m.r.sum.least : x[c];  // keeps NaN
    store(b, x, m.r.to, m.ring, tile, channel);
  });
}

// A lane has a channel of both factors, each at two sites.
PCF_DEVICE void make_gate(Block& b, const Making& m) {
  const auto ring_for = [&](const Target& to) { return kBlocks > 1 ? nullptr : b.ring_of(m.view, to); };
  for_members(b, m, [&](float (&x)[4], int channel, int tile) {
    float rounded[4];
    if (m.r.gate.keeps_sums) {
      const Target &first = m.r.gate.sums[0], &second = m.r.gate.sums[1];
      store_unit(b, x[0], x[1], first, ring_for(first), tile, channel / 2);
      store_unit(b, x[2], x[3], second, ring_for(second), tile, channel / 2);
      round_as_stored(x);
    }
#pragma unroll
    for (int n = 0; n < 2; n++) x[n] = hyperbolic_tangent(x[n], kMath), x[n + 2] = logistic(x[n + 2], kMath);
#pragma unroll
    for (int c = 0; c < 4; c++) rounded[c] = x[c];
    round_as_stored(rounded);
#pragma unroll
    for (int n = 0; n < 2; n++) x[n] = m.r.gate.rounds_tanh ? rounded[n] * x[n + 2] : x[n] * rounded[n + 2];
    store_unit(b, x[0], x[1], m.r.to, m.ring, tile, channel / 2);
  });
}

PCF_DEVICE void make_activated(Block& b, const Making& m) {
  const auto& plan = m.r.activated;
#pragma unroll
  for (int tile = 0; tile < kTiles; tile++) {
    float x[4], sums[4], factor[4], term[4];
    load_sums(b, sums, tile, tile, m.bias);
    load_own(b, x, plan.from, m.channel, tile, 0);
#pragma unroll
    for (int c = 0; c < 4; c++) x[c] = plan.from == kNowhere ? sums[c] : x[c];
    if (m.r.activation == StepKind::relu) activate(StepKind::relu, x);
    if (m.r.activation == StepKind::sigmoid) activate(StepKind::sigmoid, x);
    if (m.r.activation == StepKind::tanh) activate(StepKind::tanh, x);
    load_own(b, factor, plan.factor, m.channel, tile, 1);
    load_own(b, term, plan.term, m.channel, tile, -0.f);
#pragma unroll
    for (int c = 0; c < 4; c++) x[c] = x[c] * factor[c] + term[c];
    store(b, x, m.r.to, m.ring, tile, m.channel);
  }
}

PCF_DEVICE void make_cell(Block& b, const Making& m) {
  char* const cells = kBlocks > 1 ? nullptr : b.ring_of(m.view, m.r.lstm.cell);
#pragma unroll
  for (int tile = 0; tile < kTiles; tile++) {
    float gates[4][4], factor[4];
#pragma unroll
    for (int member = 0; member < 4; member++) {
      load_sums(b, gates[member], min(member, kMost - 1) * kTiles + tile, tile, m.bias.of_member(m.r, member));
      activate(member == 0 ? StepKind::tanh : StepKind::sigmoid, gates[member]);
    }
    auto& [cell, input, forget, output] = gates;
    load_own(b, factor, m.r.lstm.factor, m.channel, tile, 0);
    round_as_stored(cell), round_as_stored(output);
#pragma unroll
    for (int c = 0; c < 4; c++) cell[c] *= input[c];
    round_as_stored(cell);
#pragma unroll
    for (int c = 0; c < 4; c++) cell[c] = forget[c] * factor[c] + cell[c];
    store(b, cell, m.r.lstm.cell, cells, tile, m.channel);
    round_as_stored(cell);
    activate(StepKind::tanh, cell);
#pragma unroll
    for (int c = 0; c < 4; c++) cell[c] *= output[c];
    store(b, cell, m.r.to, m.ring, tile, m.channel);
  }
  clear_sums<1, kMost>(b);
}

PCF_DEVICE void make_sums(Block& b, const Making& m) {
  char* const ring = b.ring_of(m.view, m.r.to);
#pragma unroll
  for (int tile = 0; tile < kTiles; tile++) {
    float x[4];
    load_sums(b, x, tile, tile, m.bias);
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const Site s = b.site(m.view, b.site_of(tile, n));
      const int of_column = b.site_of(tile, n) - s.ahead * b.layout.images;
      const uint32_t at = offset_at(m.channel, of_column, depth_of(Math::fp32)) + s.ahead * m.r.sums.column_bytes;
      if (b.in_grid(s.row, s.column)) *reinterpret_cast<float2*>(ring + at) = float2{x[n], x[n + 2]};
    }
  }
}

// Any steps. The sums of a tile at a time come to the front, so that the code of all kinds of steps is there once.
PCF_DEVICE void make_steps(Block& b, const Making& m) {
  const auto& plan = m.r.steps;
#pragma unroll 1
  for (int tile = 0; tile < kTiles; tile++) {
    float x[4];
    load_sums(b, x, 0, tile, m.bias);
    if (plan.starts != kNowhere) load(b, x, in_shared<const Location>(plan.starts), m.channel, tile, m.view);
#pragma unroll 1
    for (int s = 0; s < plan.count; s++)
      apply(b, x, in_shared<const StepPlan>(plan.first + s * sizeof(StepPlan)), m.r.lead, m.channel, tile, m.view);
    // Channels that fill up a fragment must be zero: a step may have made them infinite, and 0 times infinity is NaN.
#pragma unroll
    for (int c = 0; c < 4; c++) x[c] = m.channel + c / 2 < plan.channels ? x[c] : 0.f;
    m.r.logits == kNowhere ? store(b, x, m.r.to, m.ring, tile, m.channel) : store_logits(b, x, m.r, tile, m.channel);
#pragma unroll
    for (int s = 8; s < kTiles * 8; s++) b.sums[s / 8 - 1][s / 4 % 2][s % 4] = b.sums[s / 8][s / 4 % 2][s % 4];
  }
}

// Moves the sums of the next member to the front.
PCF_DEVICE void next_sums(Block& b) {
#pragma unroll
  for (int s = kTiles * 8; s < kMost * kTiles * 8; s++)
    b.sums[s / 8 - kTiles][s / 4 % 2][s % 4] = b.sums[s / 8][s / 4 % 2][s % 4];
  clear_sums<kMost - 1, kMost>(b);
}

// Makes a product's results of its sums.
PCF_DEVICE void make_results(Block& b, const Record::Product& product, uint32_t view) {
  Result r = in_shared<const Result>(product.results);
#pragma unroll 1
  for (int n = 1;; n++) {
    const int tile = product.first_tile + b.warp;
    const Making m{r, r.first_channel + tile * r.tile_channels + b.group() * 2,
                   kBlocks > 1 ? nullptr : b.ring_of(view, r.to),  // or it is sent, and written back
                   Bias(r, r.bias + tile * r.bias_tile + b.group() * 8), view};
    if (r.ending == Ending::sum && r.logits != kNowhere)
      make_logits(b, m);
    else if (r.ending == Ending::sum)
      make_sum(b, m);
    else if (r.ending == Ending::gate)
      make_gate(b, m);
    else if (kMost >= 4 && r.ending == Ending::lstm)
      make_cell(b, m);
    else if (r.ending == Ending::activated)
      make_activated(b, m);
    else if (r.ending == Ending::steps)
      make_steps(b, m);
    else if (kTiles <= kMostRowTiles)
      make_sums(b, m);
    if (n == product.n_results) break;
    if (r.takes_sums) next_sums(b);
    r = in_shared<const Result>(product.results + n * sizeof(Result));
  }
}

}  // namespace pcf::cuda

// A record's product.
#pragma once

#include "cuda/kernels/fragments.h"

namespace pcf::cuda {

// Those of members kFirst ... kEnd - 1.
template <int kFirst, int kEnd>
PCF_DEVICE void clear_sums(Block& b) {
#pragma unroll
  for (int s = kFirst * kTiles * 8; s < kEnd * kTiles * 8; s++) b.sums[s / 8][s / 4 % 2][s % 4] = 0;
}

// The next batch of weights: for each of its fragments of values those of all members. at(f, tile): where a lane's site
// of the f-th lies.
template <int kMembers, int kTurn, class At>
PCF_DEVICE void multiply(Block& b, Constant<kMembers>, Constant<kTurn>, const At& at) {
  auto& weights = b.weights.ahead[kTurn];
#pragma unroll
  for (int f = 0; f < kBatch / kMembers; f++)
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) {
      const auto values = Fragment::values(at(f, tile), b.lane);
#pragma unroll
      for (int m = 0; m < kMembers; m++)
        Fragment::multiply(b.sums[m * kTiles + tile], weights[f * kMembers + m], values);
    }
  b.weights.fetch(weights);
}

// The next batch, of fragments that follow each other.
template <int kMembers, int kTurn>
PCF_DEVICE void multiply_row(Block& b, Constant<kMembers> members, Constant<kTurn> turn, uint32_t& at) {
  multiply(b, members, turn, [&](int f, int tile) { return at + f * kColumnBytes + tile * kFragmentBytes; });
  at += kBatch / kMembers * kColumnBytes;
}

// Where a lane's site of each fragment of a late batch lies, if a block has one tile of them.
struct LateAddresses {
  uint32_t at[kBatch];

  PCF_DEVICE LateAddresses(const Block& b, uint32_t list) {
    if (kTiles > 1) return;
    const uint4 found = in_shared<const uint4>(list + b.group() * sizeof(uint4));
    at[0] = found.x, at[1] = found.y, at[2] = found.z, at[3] = found.w;
  }
};

// The next batch, of fragments that lie anywhere.
template <int kMembers, int kTurn>
PCF_DEVICE void multiply_places(Block& b, Constant<kMembers> members, Constant<kTurn> turn, uint32_t& next,
                                uint32_t view) {
  multiply(b, members, turn, [&](int f, int tile) {
    const Location p = in_shared<const Location>(next + f * sizeof(Location));
    const int site = tile * kTileSites + b.group();
    return b.is_at(view, p.edge, site) ? p.at + b.shifted(site, p.shift) * kSiteBytes : b.layout.zeros;
  });
  next += kBatch / kMembers * sizeof(Location);
}

// Calls one(turn) for `count` batches, with turns from kFirst on that the code knows.
template <int kFirst, class One>
PCF_DEVICE void in_turn(Constant<kFirst> first, int count, const One& one) {
  for (; count > 0; count -= 2) {
    one(first);
    if (count == 1) return;
    one(Constant<1 - kFirst>());
  }
}

// Calls part(members, turn): how many there are, and the turn of the stream that comes next; for so many batches.
template <class Part>
PCF_DEVICE void with_constants(Block& b, int members, int batches, const Part& part) {
  const auto with_turn = [&](auto members) {
    b.weight_turn == 0 ? part(members, Constant<0>()) : part(members, Constant<1>());
  };
  if (kMost == 1 || members == 1)
    with_turn(Constant<1>());
  else if (kMost == 2 || members == 2)
    with_turn(Constant<kMost == 1 ? 1 : 2>());
  else
    with_turn(Constant<kMost>());
  b.weight_turn ^= batches % 2;
}

// Before the barrier.
PCF_DEVICE void multiply_early(Block& b, const Record::Product& p) {
  with_constants(b, p.members, p.early_batches, [&](auto members, auto first) {
    uint32_t at = p.staged + b.lane_offset();
    in_turn(first, p.early_batches, [&](auto turn) { multiply_row(b, members, turn, at); });
  });
}

// Behind it.
PCF_DEVICE void multiply_late(Block& b, const Record::Product& p, const LateAddresses& late, uint32_t view) {
  with_constants(b, p.members, p.late_batches, [&](auto members, auto first) {
    if (kTiles == 1) {
      uint32_t list = view + p.late;
      const auto multiply_next = [&](auto turn, const LateAddresses& late) {
        multiply(b, members, turn, [&](int f, int) { return late.at[f]; });
      };
      if (p.late_batches == 0) return;
      multiply_next(first, late);
      in_turn(Constant<1 - first>(), p.late_batches - 1,
              [&](auto turn) { multiply_next(turn, LateAddresses(b, list += kLateBytes)); });
      return;
    }
    uint32_t at = p.staged + p.early_batches * (kBatch / members * kColumnBytes) + b.lane_offset();
    uint32_t next = p.late;
    int staged = p.late_staged;
    in_turn(first, p.late_batches, [&](auto turn) {
      if (staged == 0 && !p.at_places) at = p.late + b.lane_offset();
      if (staged-- > 0 || !p.at_places)
        multiply_row(b, members, turn, at);
      else
        multiply_places(b, members, turn, next, view);
    });
  });
}

}  // namespace pcf::cuda

// A record's product.
#pragma once

#include "cuda/kernels/copies.h"
#include "cuda/kernels/weight_stream.h"

namespace pcf::cuda {

template <Math kMath, int kTiles, int kBlocks>
class Products : public Copies<kMath, kTiles, kBlocks> {
  using Base = Copies<kMath, kTiles, kBlocks>;

 public:
  using Base::Base;

 protected:
  using Base::group, Base::is_at, Base::kColumnBytes, Base::kMost, Base::lane_, Base::lane_offset, Base::layout_,
      Base::shifted;

  // Sums of a warp's tiles of sites, for one member after the other. The order in which a sum is made up must not
  // depend on the number of tiles or members: images would depend on the batch.
  using Sums = float[kMost * kTiles][2][4];

  // Those of members kFirst ... kEnd - 1.
  template <int kFirst, int kEnd>
  __device__ __forceinline__ void clear_sums(Constant<kFirst>, Constant<kEnd>) {
#pragma unroll
    for (int s = kFirst * kTiles * 8; s < kEnd * kTiles * 8; s++) sums_[s / 8][s / 4 % 2][s % 4] = 0;
  }

  // A batch of weights: for each of its fragments of values those of all members. at(f, tile): where a lane's site of
  // the f-th lies.
  template <int kMembers, class At>
  __device__ __forceinline__ void multiply(Constant<kMembers>, const uint4 (&weights)[kBatch][2], const At& at) {
#pragma unroll
    for (int f = 0; f < kBatch / kMembers; f++)
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++) {
        const auto values = Fragment<kMath>::values(at(f, tile), lane_);
#pragma unroll
        for (int m = 0; m < kMembers; m++)
          Fragment<kMath>::multiply(sums_[m * kTiles + tile], weights[f * kMembers + m], values);
      }
  }

  // The next batch, of fragments that follow each other.
  template <int kMembers, int kTurn>
  __device__ __forceinline__ void multiply_row(Constant<kMembers> members, Constant<kTurn> turn, uint32_t& at) {
    weights_.next(turn, [&](const auto& weights) {
      multiply(members, weights, [&](int f, int tile) { return at + f * kColumnBytes + tile * kFragmentBytes; });
    });
    at += kBatch / kMembers * kColumnBytes;
  }

  // Where a lane's site of each fragment of a late batch lies, if a block has one tile of them.
  struct LateAddresses {
    uint32_t at[kBatch];

    __device__ __forceinline__ LateAddresses(const Products& walk, uint32_t list) {
      if constexpr (kTiles > 1) return;
      const uint4 found = in_shared<const uint4>(list + walk.group() * sizeof(uint4));
      at[0] = found.x, at[1] = found.y, at[2] = found.z, at[3] = found.w;
    }
  };

  // The next batch, of fragments that lie anywhere.
  template <int kMembers, int kTurn>
  __device__ __forceinline__ void multiply_places(Constant<kMembers> members, Constant<kTurn> turn, uint32_t& next,
                                                  uint32_t view) {
    weights_.next(turn, [&](const auto& weights) {
      multiply(members, weights, [&](int f, int tile) {
        const Place p = in_shared<const Place>(next + f * sizeof(Place));
        const int site = tile * kTileSites + group();
        return is_at(view, p.edge, site) ? p.at + shifted(site, p.shift) * kSiteBytes : layout_.zeros;
      });
    });
    next += kBatch / kMembers * sizeof(Place);
  }

  // Calls one(turn) for `count` batches, with turns from kFirst on that the code knows.
  template <int kFirst, class One>
  __device__ __forceinline__ void in_turn(Constant<kFirst> first, int count, const One& one) {
    for (; count > 0; count -= 2) {
      one(first);
      if (count == 1) return;
      one(Constant<1 - kFirst>());
    }
  }

  // Before the barrier.
  __device__ __forceinline__ void multiply_early(const Record::Product& p) {
    with_constants(p.members, [&](auto members, auto turn) { multiply_early(members, turn, p); });
    weight_turn_ ^= p.early_batches % 2;
  }
  template <int kMembers, int kTurn>
  __device__ __forceinline__ void multiply_early(Constant<kMembers> members, Constant<kTurn> first,
                                                 const Record::Product& p) {
    uint32_t at = p.staged + lane_offset();
    in_turn(first, p.early_batches, [&](auto turn) { multiply_row(members, turn, at); });
  }

  // Behind it.
  __device__ __forceinline__ void multiply_late(const Record::Product& p, const LateAddresses& late, uint32_t view) {
    with_constants(p.members, [&](auto members, auto turn) { multiply_late(members, turn, p, late, view); });
    weight_turn_ ^= p.late_batches % 2;
  }
  template <int kMembers, int kTurn>
  __device__ __forceinline__ void multiply_late(Constant<kMembers> members, Constant<kTurn> first,
                                                const Record::Product& p, const LateAddresses& late, uint32_t view) {
    if constexpr (kTiles == 1) {
      uint32_t list = view + p.late;
      const auto multiply_next = [&](auto turn, const LateAddresses& late) {
        weights_.next(turn,
                      [&](const auto& weights) { multiply(members, weights, [&](int f, int) { return late.at[f]; }); });
      };
      if (p.late_batches == 0) return;
      multiply_next(first, late);
      in_turn(Constant<1 - kTurn>(), p.late_batches - 1,
              [&](auto turn) { multiply_next(turn, LateAddresses(*this, list += kLateBytes)); });
    } else {
      uint32_t at = p.staged + p.early_batches * (kBatch / kMembers * kColumnBytes) + lane_offset();
      uint32_t next = p.late;
      int staged = p.late_staged;
      in_turn(first, p.late_batches, [&](auto turn) {
        if (staged == 0 && !p.at_places) at = p.late + lane_offset();
        if (staged-- > 0 || !p.at_places)
          multiply_row(members, turn, at);
        else
          multiply_places(members, turn, next, view);
      });
    }
  }

  // Calls part(members, turn): how many there are, and the turn of the stream that comes next.
  template <class Part>
  __device__ __forceinline__ void with_constants(int members, const Part& part) {
    const auto with_turn = [&](auto members) {
      weight_turn_ == 0 ? part(members, Constant<0>()) : part(members, Constant<1>());
    };
    if (kMost == 1 || members == 1)
      with_turn(Constant<1>());
    else if (kMost == 2 || members == 2)
      with_turn(Constant<kMost == 1 ? 1 : 2>());
    else
      with_turn(Constant<kMost>());
  }

  WeightStream weights_;
  int weight_turn_ = 0;
  Sums sums_ = {};  // zero between records, unless a sum goes on
};

}  // namespace pcf::cuda

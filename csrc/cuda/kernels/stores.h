// Results, and other values of a lane's channels and sites: stored, sent, loaded.
#pragma once

#include "cuda/kernels/products.h"

namespace pcf::cuda {

template <Math kMath, int kTiles, int kBlocks>
class Stores : public Products<kMath, kTiles, kBlocks> {
  using Base = Products<kMath, kTiles, kBlocks>;

 public:
  using Base::Base;

 protected:
  using Base::group, Base::is_at, Base::offset_at, Base::send_to_all, Base::shifted, Base::site_of, Base::slot_of;

  __device__ __forceinline__ void store(const float (&x)[4], const Target& to, char* ring, int tile, int channel) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const Pair<kMath> pair(x[n], x[n + 2]);
      const uint32_t offset = offset_at(channel, site_of(tile, n));
      if (to.shared != kNowhere) in_shared<Pair<kMath>>(to.shared + offset) = pair;
      if (kBlocks > 1 && to.shared != kNowhere) send_to_all(to.shared + offset, pair);
      if (kBlocks == 1 && to.ring != kNowhere) *reinterpret_cast<Pair<kMath>*>(ring + offset) = pair;
    }
  }

  __device__ __forceinline__ void store_logits(const float (&x)[4], const Result& r, int tile, int channel) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const uint32_t at = r.logits + (site_of(tile, n) * r.logits_stride + channel) * 4;
      in_shared<float2>(at) = float2{x[n], x[n + 2]};
      if (kBlocks > 1) send_to_all(at, float2{x[n], x[n + 2]});
    }
  }

  __device__ void store_one(const Target& to, char* ring, float x, int channel, int site) {
    using Stored = decltype(stored<kMath>(x));
    store_near(to, x, channel, site);
    if (to.ring != kNowhere) *reinterpret_cast<Stored*>(ring + offset_at(channel, site)) = stored<kMath>(x);
  }
  __device__ void store_near(const Target& to, float x, int channel, int site) {
    using Stored = decltype(stored<kMath>(x));
    if (to.shared != kNowhere) in_shared<Stored>(to.shared + offset_at(channel, site)) = stored<kMath>(x);
  }

  // Two lanes have neighbouring units, each at two sites; one sends both at the first site, the other at the second.
  __device__ __forceinline__ void send_unit(uint32_t shared, float a, float b, int unit, int tile) {
    const bool is_second = group() % 2;
    const float mine = is_second ? b : a, other = shuffle_xor(is_second ? a : b, 4);
    const Pair<kMath> pair(is_second ? other : mine, is_second ? mine : other);
    send_to_all(shared + offset_at(unit - is_second, site_of(tile, is_second)), pair);
  }

  // A value in shared memory; `otherwise` if it is nowhere. Without a branch, which would take longer.
  __device__ __forceinline__ void own(float (&x)[4], uint32_t at, int channel, int tile, float otherwise) const {
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const uint32_t from = at == kNowhere ? kUnused : at + offset_at(channel, site_of(tile, n));
      const float2 pair = in_shared<const Pair<kMath>>(from).values();
      x[n] = at == kNowhere ? otherwise : pair.x, x[n + 2] = at == kNowhere ? otherwise : pair.y;
    }
  }

  __device__ float2 pair_at(const Place& p, int channel, int site, uint32_t view) const {
    if (!is_at(view, p.edge, site)) return {0, 0};
    const uint32_t at = p.at + offset_at(channel, shifted(site, p.shift));
    if (p.slot == kInShared) return in_shared<const Pair<kMath>>(at).values();
    const float2 pair = reinterpret_cast<const Pair<kMath>*>(slot_of(view, p.slot) + at)->values();
    return {arrived(pair.x), arrived(pair.y)};
  }

  __device__ __forceinline__ void load(float (&x)[4], const Place& p, int channel, int tile, uint32_t view) const {
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const float2 pair = pair_at(p, channel, site_of(tile, n), view);
      x[n] = pair.x, x[n + 2] = pair.y;
    }
  }
};

}  // namespace pcf::cuda

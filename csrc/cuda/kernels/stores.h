// Results, and other values of a lane's channels and sites: stored, sent, loaded.
#pragma once

#include "cuda/kernels/barriers.h"
#include "cuda/kernels/fragments.h"

namespace pcf::cuda {

// Two neighbouring channels of a value at a site. In a cluster it is sent, and written back to the rings.
PCF_DEVICE void store_pair(const Block& b, const Pair& pair, const Target& to, char* ring, int channel, int site) {
  const uint32_t offset = offset_at(channel, site);
  if (to.shared != kNowhere) in_shared<Pair>(to.shared + offset) = pair;
  if (kBlocks > 1 && to.shared != kNowhere) send_to_all(b, to.shared + offset, pair);
  if (kBlocks == 1 && to.ring != kNowhere) *reinterpret_cast<Pair*>(ring + offset) = pair;
}

PCF_DEVICE void store(const Block& b, const float (&x)[4], const Target& to, char* ring, int tile, int channel) {
#pragma unroll
  for (int n = 0; n < 2; n++) store_pair(b, {x[n], x[n + 2]}, to, ring, channel, b.site_of(tile, n));
}

__device__ inline void store_one(const Target& to, char* ring, float x, int channel, int site) {
  const uint32_t offset = offset_at(channel, site);
  if (to.shared != kNowhere) in_shared<Stored>(to.shared + offset) = stored(x);
  if (to.ring != kNowhere) *reinterpret_cast<Stored*>(ring + offset) = stored(x);
}

// A unit at two sites, of which the lane's neighbour has the next one: one stores both at the first site, the other at
// the second.
PCF_DEVICE void store_unit(const Block& b, float first, float second, const Target& to, char* ring, int tile,
                           int unit) {
  if (kTiles == 8) {  // whose registers are all taken
    store_one(to, ring, first, unit, b.site_of(tile, 0)), store_one(to, ring, second, unit, b.site_of(tile, 1));
    return;
  }
  const bool is_second = b.group() % 2;
  const float mine = is_second ? second : first;
  const float other = __shfl_xor_sync(kAllLanes, is_second ? first : second, 4);
  const Pair pair(is_second ? other : mine, is_second ? mine : other);
  store_pair(b, pair, to, ring, unit - is_second, b.site_of(tile, is_second));
}

PCF_DEVICE void store_logits(const Block& b, const float (&x)[4], const Result& r, int tile, int channel) {
#pragma unroll
  for (int n = 0; n < 2; n++) {
    const uint32_t at = r.logits + (b.site_of(tile, n) * r.logits_stride + channel) * 4;
    in_shared<float2>(at) = float2{x[n], x[n + 2]};
    if (kBlocks > 1) send_to_all(b, at, float2{x[n], x[n + 2]});
  }
}

// A value in shared memory; `otherwise` if it is nowhere. Without a branch, which would take longer.
PCF_DEVICE void load_own(const Block& b, float (&x)[4], uint32_t at, int channel, int tile, float otherwise) {
#pragma unroll
  for (int n = 0; n < 2; n++) {
    const uint32_t from = at == kNowhere ? kUnused : at + offset_at(channel, b.site_of(tile, n));
    const float2 pair = in_shared<const Pair>(from).values();
    x[n] = at == kNowhere ? otherwise : pair.x, x[n + 2] = at == kNowhere ? otherwise : pair.y;
  }
}

__device__ inline float2 pair_at(const Block& b, const Location& p, int channel, int site, uint32_t view) {
  if (!b.is_at(view, p.edge, site)) return {0, 0};
  const uint32_t at = p.at + offset_at(channel, b.shifted(site, p.shift));
  if (p.slot == kInShared) return in_shared<const Pair>(at).values();
  const float2 pair = reinterpret_cast<const Pair*>(b.slot_of(view, p.slot) + at)->values();
  return {arrived(pair.x), arrived(pair.y)};
}

PCF_DEVICE void load(const Block& b, float (&x)[4], const Location& p, int channel, int tile, uint32_t view) {
#pragma unroll
  for (int n = 0; n < 2; n++) {
    const float2 pair = pair_at(b, p, channel, b.site_of(tile, n), view);
    x[n] = pair.x, x[n + 2] = pair.y;
  }
}

}  // namespace pcf::cuda

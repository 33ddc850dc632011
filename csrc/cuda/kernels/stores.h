// Results, and other values of a lane's channels and sites: stored, sent, loaded.
#pragma once

#include "cuda/kernels/barriers.h"
#include "cuda/kernels/fragments.h"

namespace pcf::cuda {

PCF_DEVICE void store(const Block& b, const float (&x)[4], const Target& to, char* ring, int tile, int channel) {
#pragma unroll
  for (int n = 0; n < 2; n++) {
    const Pair pair(x[n], x[n + 2]);
    const uint32_t offset = offset_at(channel, b.site_of(tile, n));
    if (to.shared != kNowhere) in_shared<Pair>(to.shared + offset) = pair;
    if (kBlocks > 1 && to.shared != kNowhere) send_to_all(b, to.shared + offset, pair);
    if (kBlocks == 1 && to.ring != kNowhere) *reinterpret_cast<Pair*>(ring + offset) = pair;
  }
}

PCF_DEVICE void store_logits(const Block& b, const float (&x)[4], const Result& r, int tile, int channel) {
#pragma unroll
  for (int n = 0; n < 2; n++) {
    const uint32_t at = r.logits + (b.site_of(tile, n) * r.logits_stride + channel) * 4;
    in_shared<float2>(at) = float2{x[n], x[n + 2]};
    if (kBlocks > 1) send_to_all(b, at, float2{x[n], x[n + 2]});
  }
}

__device__ inline void store_near(const Target& to, float x, int channel, int site) {
  if (to.shared != kNowhere) in_shared<Stored>(to.shared + offset_at(channel, site)) = stored(x);
}
__device__ inline void store_one(const Target& to, char* ring, float x, int channel, int site) {
  store_near(to, x, channel, site);
  if (to.ring != kNowhere) *reinterpret_cast<Stored*>(ring + offset_at(channel, site)) = stored(x);
}

// A gate's unit at two sites. In a cluster, two lanes have neighbouring units; one sends both at the first site, the
// other at the second.
PCF_DEVICE void store_unit(const Block& b, const Target& to, char* ring, const float (&x)[2], int unit, int tile) {
#pragma unroll
  for (int n = 0; n < 2; n++)
    kBlocks > 1 ? store_near(to, x[n], unit, b.site_of(tile, n)) : store_one(to, ring, x[n], unit, b.site_of(tile, n));
  if (kBlocks == 1 || to.shared == kNowhere) return;
  const bool is_second = b.group() % 2;
  const float mine = is_second ? x[1] : x[0];
  const float other = __shfl_xor_sync(kAllLanes, is_second ? x[0] : x[1], 4);
  const Pair pair(is_second ? other : mine, is_second ? mine : other);
  send_to_all(b, to.shared + offset_at(unit - is_second, b.site_of(tile, is_second)), pair);
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

__device__ inline float2 pair_at(const Block& b, const Place& p, int channel, int site, uint32_t view) {
  if (!b.is_at(view, p.edge, site)) return {0, 0};
  const uint32_t at = p.at + offset_at(channel, b.shifted(site, p.shift));
  if (p.slot == kInShared) return in_shared<const Pair>(at).values();
  const float2 pair = reinterpret_cast<const Pair*>(b.slot_of(view, p.slot) + at)->values();
  return {arrived(pair.x), arrived(pair.y)};
}

PCF_DEVICE void load(const Block& b, float (&x)[4], const Place& p, int channel, int tile, uint32_t view) {
#pragma unroll
  for (int n = 0; n < 2; n++) {
    const float2 pair = pair_at(b, p, channel, b.site_of(tile, n), view);
    x[n] = pair.x, x[n + 2] = pair.y;
  }
}

}  // namespace pcf::cuda

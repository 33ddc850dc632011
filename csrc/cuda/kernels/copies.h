// What is copied ahead into shared memory, and from there to the rings.
#pragma once

#include "cuda/kernels/block.h"

namespace pcf::cuda {

// Where a lane copies from.
struct Source {
  const char* from;
  uint32_t first, all;  // bytes: of the lane's site in the first tile, cyclically, and of all sites
  uint32_t there[(kTiles + 3) / 4];

  PCF_DEVICE const char* at(int tile) const {
    const uint32_t offset = first + tile * kFragmentBytes;  // before the first site, it is very large
    return from + min(offset, offset + all);
  }
  PCF_DEVICE bool is_there(int tile) const { return there[tile / 4] >> tile % 4 * kTileSites & 1; }
};

PCF_DEVICE Source source_of(const Block& b, const Location& p, uint32_t view) {
  Source s;
  s.from = b.slot_of(view, p.slot) + p.at, s.all = b.layout.sites * kSiteBytes;
  s.first = kTiles == 1 ? b.copies_at + b.copies_shift * p.shift : (b.group() - p.shift) * kSiteBytes;
#pragma unroll
  for (int n = 0; n < (kTiles + 3) / 4; n++) s.there[n] = in_shared<const uint32_t>(view + p.edge + n * 4) >> b.group();
  return s;
}

// Of the chunk that a lane copies of a fragment, or of the last one.
PCF_DEVICE Location place_of(const Block& b, const Record::Copies& copies, int fragment) {
  fragment = max(min(fragment, copies.count - 1), 0);
  Location p = in_shared<const Location>(copies.places + (copies.chunked ? fragment * kChunks + b.member() : fragment) *
                                                             sizeof(Location));
  if (!copies.chunked) p.at += b.member() * kChunkBytes;
  return p;
}

// Whether a warp is one of those that copy.
PCF_DEVICE bool is_copier(const Block& b, const Record::Copies& copies) {
  return static_cast<unsigned>(b.warp - copies.first_warp) < static_cast<unsigned>(copies.warps);
}

// Copies what a record knows of earlier column steps, and its biases, so many fragments at once by one warp after the
// other. Where the next ones come from is read while these are copied.
PCF_DEVICE void copy_ahead(const Block& b, const Record::Copies& copies, uint32_t view) {
  constexpr int kAtOnce = kReadsEarly ? 2 : 1;
  const int first = b.warp - copies.first_warp, warps = copies.warps, count = copies.count;
  if (!is_copier(b, copies)) return;
  const uint32_t staged = copies.staged;
  Location now[kAtOnce];
#pragma unroll
  for (int n = 0; n < kAtOnce; n++) now[n] = place_of(b, copies, first + n * warps);
  for (int f = first; f < count; f += kAtOnce * warps) {
    Source sources[kAtOnce];
#pragma unroll
    for (int n = 0; n < kAtOnce; n++) sources[n] = source_of(b, now[n], view);
#pragma unroll
    for (int n = 0; n < kAtOnce; n++) now[n] = place_of(b, copies, f + (n + kAtOnce) * warps);
#pragma unroll
    for (int n = 0; n < kAtOnce; n++)
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++)
        copy_async(shared_memory() + staged + (f + n * warps) * kColumnBytes + b.lane * 16 + tile * kFragmentBytes,
                   sources[n].at(tile), sources[n].is_there(tile), n == 0 || f + n * warps < count);
  }
  for (int at = (first * 32 + b.lane) * 16; at < copies.bias_bytes; at += warps * 32 * 16)
    copy_async(shared_memory() + copies.bias + at, b.constants(copies.floats) + at / 4, true, true);
}

// Writes to the rings what has come for them.
PCF_DEVICE void write_back(const Block& b, const Record& r, uint32_t view) {
  if (!is_copier(b, r.copies)) return;
#pragma unroll 2
  for (int f = b.warp - r.copies.first_warp; f < r.exchange.count; f += r.copies.warps) {
    const Location p = in_shared<const Location>(r.exchange.places + f * sizeof(Location));
    char* const to = b.slot_of(view, p.slot) + p.shift;
    reinterpret_cast<uint4*>(to)[b.lane] = in_shared<const uint4>(p.at + b.lane * 16);
  }
}

}  // namespace pcf::cuda

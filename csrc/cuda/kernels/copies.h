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

PCF_DEVICE Source source_of(const Block& b, const Place& p, uint32_t view) {
  Source s;
  s.from = b.slot_of(view, p.slot) + p.at, s.all = b.layout.sites * kSiteBytes;
  s.first = kTiles == 1 ? b.copies_at + b.copies_shift * p.shift : (b.group() - p.shift) * kSiteBytes;
#pragma unroll
  for (int n = 0; n < (kTiles + 3) / 4; n++) s.there[n] = in_shared<const uint32_t>(view + p.edge + n * 4) >> b.group();
  return s;
}

// Copies what a record knows of earlier column steps, and its biases, so many fragments at once by one warp after the
// other. With registers to spare, where a warp's first ones come from is read before other work, which hides the time
// it takes. Where the next come from is read while these are copied.
struct Copying {
  static constexpr int kAtOnce = kReadsEarly ? 2 : 1;

  const Record::Copies& copies;
  const int first;
  Place places[kAtOnce];

  __device__ Copying(const Block& b, const Record::Copies& copies) : copies(copies), first(b.warp - copies.first_warp) {
#pragma unroll
    for (int n = 0; n < kAtOnce && kReadsEarly; n++) places[n] = place(b, first + n * copies.warps, copies.count);
  }

  __device__ bool is_mine() const { return static_cast<unsigned>(first) < static_cast<unsigned>(copies.warps); }

  PCF_DEVICE void start(const Block& b, uint32_t view) const {
    if (!is_mine()) return;
    const int count = copies.count, warps = copies.warps;
    const uint32_t staged = copies.staged;
    Place now[kAtOnce];
#pragma unroll
    for (int n = 0; n < kAtOnce; n++) now[n] = kReadsEarly ? places[n] : place(b, first + n * warps, count);
    for (int f = first; f < count; f += kAtOnce * warps) {
      Source sources[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; n++) sources[n] = source_of(b, now[n], view);
#pragma unroll
      for (int n = 0; n < kAtOnce; n++) now[n] = place(b, f + (n + kAtOnce) * warps, count);
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

  // Of the chunk that a lane copies; of the last fragment, if there are not so many.
  PCF_DEVICE Place place(const Block& b, int fragment, int count) const {
    fragment = max(min(fragment, count - 1), 0);
    const int index = copies.chunked ? fragment * kChunks + b.member() : fragment;
    Place p = in_shared<const Place>(copies.places + index * sizeof(Place));
    if (!copies.chunked) p.at += b.member() * kChunkBytes;
    return p;
  }
};

// Writes to the rings what has come for them: two fragments at a time. Where the first two lie is found out before
// the barrier.
struct WritingBack {
  struct Fragment {
    uint32_t from;
    char* to;
  };
  const Record& record;
  const int left;  // fragments from this warp's first on
  const Fragment first[2];

  PCF_DEVICE WritingBack(const Block& b, const Record& r, uint32_t view)
      : record(r), left(r.exchange.count - (b.warp - r.copies.first_warp)),
        first{fragment(b, 0, view), fragment(b, 1, view)} {}

  PCF_DEVICE void finish(const Block& b, uint32_t view) const {
    const int warps = record.copies.warps;
    if (left > 0) write(b, first[0], first[1], warps < left);
    for (int n = 2; n * warps < left; n += 2)
      write(b, fragment(b, n, view), fragment(b, n + 1, view), (n + 1) * warps < left);
  }

  // The n-th of this warp.
  PCF_DEVICE Fragment fragment(const Block& b, int n, uint32_t view) const {
    const int f = b.warp - record.copies.first_warp + n * record.copies.warps;
    const uint32_t place = record.exchange.places + max(min(f, record.exchange.count - 1), 0) * sizeof(Place);
    const Place p = in_shared<const Place>(place);
    return {p.at, b.slot_of(view, p.slot) + p.shift};
  }

  static PCF_DEVICE void write(const Block& b, const Fragment& one, const Fragment& other, bool both) {
    const uint32_t lane = b.lane * 16;
    const uint4 x = in_shared<const uint4>(one.from + lane), y = in_shared<const uint4>(other.from + lane);
    *reinterpret_cast<uint4*>(one.to + lane) = x;
    if (both) *reinterpret_cast<uint4*>(other.to + lane) = y;
  }
};

// The view of the column step for which a record copies.
__device__ inline uint32_t view_of_copies(const Block& b, const Record& r, uint32_t now) {
  return r.copies.next_step ? b.next(now) : now;
}

}  // namespace pcf::cuda

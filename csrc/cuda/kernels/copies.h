// What is copied ahead into shared memory, and from there to the rings.
#pragma once

#include "cuda/kernels/barriers.h"

namespace pcf::cuda {

template <Math kMath, int kTiles, int kBlocks>
class Copies : public Barriers<kMath, kTiles, kBlocks> {
  using Base = Barriers<kMath, kTiles, kBlocks>;

 public:
  using Base::Base;

 protected:
  using Base::kColumnBytes, Base::kReadsEarly, Base::next;

  // Copies what a record knows of earlier column steps, and its biases, a fragment by one warp after the other. With
  // registers to spare, where a warp's first two come from is read before other work, which hides the time it takes.
  class Copying {
   public:
    __device__ Copying(const Copies& walk, const Record::Copies& copies)
        : copies_(copies), first_(walk.warp_ - copies.first_warp) {
      const int last = copies_.count - 1;
#pragma unroll
      for (int n = 0; n < kEarly; n++) places_[n] = place(walk, max(min(first_ + n * copies.warps, last), 0));
    }

    __device__ bool is_mine() const { return static_cast<unsigned>(first_) < static_cast<unsigned>(copies_.warps); }

    __device__ __forceinline__ void start(const Copies& walk, uint32_t view) const {
      std::conditional_t<kEarly != 0, const Record::Copies, const Record::Copies&> copies = copies_;
      const auto copy = [&](const Source& from, int fragment, bool wanted) {
        const uint32_t to = copies.staged + fragment * kColumnBytes + walk.lane_ * 16;
#pragma unroll
        for (int tile = 0; tile < kTiles; tile++)
          copy_async(shared_memory() + to + tile * kFragmentBytes, from.at(tile), from.is_there(tile), wanted);
      };
      if (!is_mine()) return;
      if constexpr (kEarly > 0) {  // two at a time, while it reads where the next two come from
        Place now[2] = {places_[0], places_[1]};
        for (int f = first_; f < copies.count; f += 2 * copies.warps) {
          const Source first(walk, now[0], view), second(walk, now[1], view);
          for (int n = 0; n < 2; n++) now[n] = place(walk, min(f + (n + 2) * copies.warps, copies.count - 1));
          copy(first, f, true), copy(second, f + copies.warps, f + copies.warps < copies.count);
        }
      } else {
        const int count = copies.count, warps = copies.warps;
        Place next = place(walk, max(min(first_, count - 1), 0));
        for (int f = first_; f < count; f += warps) {
          const Source from(walk, next, view);
          next = place(walk, min(f + warps, count - 1));
          copy(from, f, true);
        }
      }
      for (int at = (first_ * 32 + walk.lane_) * 16; at < copies.bias_bytes; at += copies.warps * 32 * 16)
        copy_async(shared_memory() + copies.bias + at, walk.constants(copies.floats) + at / 4, true, true);
    }

   private:
    static constexpr int kEarly = kReadsEarly && kSparesRegisters ? 2 : 0;

    // Of the chunk that a lane copies.
    __device__ __forceinline__ Place place(const Copies& walk, int fragment) const {
      const int index = copies_.chunked ? fragment * kChunks + walk.member() : fragment;
      Place p = in_shared<const Place>(copies_.places + index * sizeof(Place));
      if (!copies_.chunked) p.at += walk.member() * kChunkBytes;
      return p;
    }

    // Where a lane copies from.
    struct Source {
      const char* from;
      uint32_t first, all;  // bytes: of the lane's site in the first tile, cyclically, and of all sites
      uint32_t there[(kTiles + 3) / 4];

      __device__ __forceinline__ Source(const Copies& walk, const Place& p, uint32_t view)
          : from(walk.slot_of(view, p.slot) + p.at), all(walk.layout_.sites * kSiteBytes) {
        first = kTiles == 1 ? walk.copies_at_ + walk.copies_shift_ * p.shift : (walk.group() - p.shift) * kSiteBytes;
#pragma unroll
        for (int n = 0; n < (kTiles + 3) / 4; n++)
          there[n] = in_shared<const uint32_t>(view + p.edge + n * 4) >> walk.group();
      }
      __device__ __forceinline__ const char* at(int tile) const {
        const uint32_t offset = first + tile * kFragmentBytes;  // before the first site, it is very large
        return from + min(offset, offset + all);
      }
      __device__ __forceinline__ bool is_there(int tile) const { return there[tile / 4] >> tile % 4 * kTileSites & 1; }
    };

    const Record::Copies& copies_;
    const int first_;
    Place places_[2];
  };

  // Writes to the rings what has come for them: two fragments at a time. Where the first two lie is found out before
  // all threads meet.
  class WritingBack {
   public:
    __device__ __forceinline__ WritingBack(const Copies& walk, const Record& r, uint32_t view)
        : record_(r), first_{Fragment(walk, r, 0, view), Fragment(walk, r, 1, view)} {}

    __device__ __forceinline__ void finish(const Copies& walk, uint32_t view) const {
      const int left = record_.exchange.count - (walk.warp_ - record_.copies.first_warp), warps = record_.copies.warps;
      if (left > 0) write(walk, first_[0], first_[1], warps < left);
      for (int n = 2; n * warps < left; n += 2)
        write(walk, Fragment(walk, record_, n, view), Fragment(walk, record_, n + 1, view), (n + 1) * warps < left);
    }

   private:
    struct Fragment {
      uint32_t from;
      char* to;

      __device__ __forceinline__ Fragment(const Copies& walk, const Record& r, int n, uint32_t view) {
        const int f = walk.warp_ - r.copies.first_warp + n * r.copies.warps;
        const uint32_t place = r.exchange.places + max(min(f, r.exchange.count - 1), 0) * sizeof(Place);
        const Place p = in_shared<const Place>(place);
        from = p.at, to = walk.slot_of(view, p.slot) + p.shift;
      }
    };

    static __device__ __forceinline__ void write(const Copies& walk, const Fragment& a, const Fragment& b, bool both) {
      const uint32_t lane = walk.lane_ * 16;
      const uint4 x = in_shared<const uint4>(a.from + lane), y = in_shared<const uint4>(b.from + lane);
      *reinterpret_cast<uint4*>(a.to + lane) = x;
      if (both) *reinterpret_cast<uint4*>(b.to + lane) = y;
    }

    const Record& record_;
    const Fragment first_[2];
  };

  // The view of the column step for which a record copies.
  __device__ uint32_t of_copies(const Record& r, uint32_t now) const { return r.copies.next_step ? next(now) : now; }
};

}  // namespace pcf::cuda

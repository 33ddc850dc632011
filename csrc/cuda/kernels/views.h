// Views: what a column step finds out about the next one (layout.h).
#pragma once

#include "cuda/kernels/thread.h"

namespace pcf::cuda {

template <Math kMath, int kTiles, int kBlocks>
class Views : public Thread<kMath, kTiles, kBlocks> {
  using Base = Thread<kMath, kTiles, kBlocks>;

 public:
  using Base::Base;

 protected:
  using Base::by_rows, Base::group, Base::kSites, Base::lane_, Base::layout_, Base::params_, Base::rank_, Base::thread,
      Base::warp_;

  // The view of the next column step.
  __device__ uint32_t next(uint32_t view) const { return layout_.both_views - view; }
  __device__ Site& site(uint32_t view, int index) const { return in_shared<Site>(view + index * sizeof(Site)); }

  static constexpr int kNoRow = -(1 << 20);

  // Where the sites are in a sweep's first column step.
  __device__ void place_sites(uint32_t view, const SweepPlan& sweep, int first_row) {
    const bool one_column = kTiles > 1 || sweep.at_once == 1;
    if (kTiles == 1) {
      const int ahead = one_column ? 0 : group() / layout_.images;
      copies_at_ = (group() - ahead * layout_.images) * kSiteBytes, copies_shift_ = one_column ? -kSiteBytes : ahead;
    }
    if (thread() >= kSites) return;
    const int part = thread() / layout_.images, row = one_column ? part : 0, ahead = one_column ? 0 : part;
    const int behind = sweep.first_step - layout_.lag * row;
    const int turns = behind >= 0 ? behind / layout_.period : -((-behind + layout_.period - 1) / layout_.period);
    const int batch = static_cast<int>(block_index()) / kBlocks;
    const int image = batch * layout_.images + thread() % layout_.images;
    const bool used = thread() < layout_.sites * sweep.at_once && image < params_.images;
    site(view, thread()) = Site{image, used ? first_row + row + layout_.rows * turns : kNoRow,
                                behind - layout_.period * turns + ahead, ahead};
  }

  // And where the ring of this thread's slot stands.
  __device__ void place_in_rings(const SweepPlan& sweep, int row) {
    if (thread() >= sweep.slots) return;
    Slot& slot = in_shared<Slot>(sweep.slot_table + thread() * sizeof(Slot));
    slot.stands = by_rows() ? (row + slot.dy + slot.length) % slot.length : 0;
  }

  // So many columns to the right, which may be in a later row.
  __device__ Site advanced(Site s, int columns) const {
    s.column += columns;
    while (s.column >= layout_.period) s.column -= layout_.period, s.row += layout_.rows;
    return s;
  }
  __device__ bool in_grid(int row, int column) const {
    return row >= 0 && row < layout_.height && column >= 0 && column < layout_.width;
  }

  // Makes the view of the column step that comes `steps` steps after that of `now`.
  __device__ void prepare_next_step(const SweepPlan& sweep, uint32_t now, uint32_t then, int steps) {
    const int columns = steps * sweep.columns;
    if (steps > 0 && thread() < kSites) site(then, thread()) = advanced(site(now, thread()), columns);
    if (thread() < sweep.slots) {
      Slot& slot = in_shared<Slot>(sweep.slot_table + thread() * sizeof(Slot));
      int index;
      if (by_rows()) {
        index = slot.stands * layout_.width + site(now, 0).column + columns + slot.dx;
      } else {
        const int stands = slot.stands + steps == slot.length ? 0 : slot.stands + steps;
        index = stands - slot.age;
        if (index < 0) index += slot.length;
        slot.stands = stands;
      }
      const unsigned block = kBlocks > 1 && slot.common ? first_block() : block_index();
      const int64_t at = block * layout_.workspace_bytes + slot.ring + index * slot.bytes;
      in_shared<uint64_t>(then + layout_.view_of_slots + thread() * 8) =
          reinterpret_cast<uint64_t>(params_.workspace + at);
    }
    // A warp looks after as many edges at once as it has lanes for, and first the last one, since the first has slots.
    constexpr int kEdges = kSites < 32 && 32 % kSites == 0 ? 32 / kSites : 1;
    const int height = layout_.height, width = layout_.width, period = layout_.period, rows = layout_.rows;
    const int edges = sweep.edges;
    const uint32_t table = sweep.edge_table;
#pragma unroll 1
    for (int begin = (kWarps - 1 - warp_) * kEdges; begin < edges; begin += kWarps * kEdges) {
      const int e = begin + lane_ / kSites % kEdges;
      const Edge edge = in_shared<const Edge>(table + min(e, edges - 1) * sizeof(Edge));
#pragma unroll
      for (int first = 0; first < kSites; first += 32) {
        const int index = kEdges > 1 ? lane_ % kSites : min(first + lane_, kSites - 1);
        const Site s = site(now, index);
        int row = s.row, column = s.column + edge.lead + columns;
        if (column >= period) column -= period, row += rows;
        while (column >= period) column -= period, row += rows;
        const auto in_grid = [&](int row, int column) {
          return static_cast<unsigned>(row) < static_cast<unsigned>(height) &&
                 static_cast<unsigned>(column) < static_cast<unsigned>(width);
        };
        const bool inside = in_grid(row, column) && in_grid(row + edge.dy, column + edge.dx);
        const uint32_t sites =
            ballot(inside || (e == int{kEverySite} && !by_rows())) >> (kEdges > 1 ? lane_ / kSites * kSites : 0);
        const bool is_first = kEdges > 1 ? index == 0 : lane_ == 0;
        if (is_first && e < edges) in_shared<uint32_t>(then + layout_.view_of_edges + e * 8 + first / 8) = sites;
      }
    }
  }

  // And where the values of late batches lie in it, by site, once the edges are there.
  __device__ void list_late(const SweepPlan& sweep, uint32_t then) {
    if constexpr (kTiles > 1) return;
    constexpr int kAtOnce = 4;
    const int site = lane_ / kBatch, last = sweep.late_batches - 1;
#pragma unroll 1
    for (int first = warp_; first <= last; first += kAtOnce * kWarps) {
      uint32_t words[kAtOnce];
      bool there[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; n++) {
        const int k = first + n * kWarps <= last ? first + n * kWarps : first;  // that one again
        words[n] = in_shared<const uint32_t>(sweep.late_table + (k * kBatch + lane_ % kBatch) * 4);
      }
#pragma unroll
      for (int n = 0; n < kAtOnce; n++)
        there[n] = is_at(then, (words[n] & LateBatch::kEdge) >> LateBatch::kEdgeBits, site);
#pragma unroll
      for (int n = 0; n < kAtOnce; n++) {
        const int k = first + n * kWarps <= last ? first + n * kWarps : first;
        const uint32_t at = (words[n] & LateBatch::kAt) + shifted(site, words[n] & LateBatch::kShift) * kSiteBytes;
        const uint32_t to = then + layout_.view_of_late + k * kLateBytes + lane_ * 4;
        in_shared<uint32_t>(to) = there[n] ? at : layout_.zeros;
      }
    }
  }

  // edge, slot: where a view has them.
  __device__ bool is_at(uint32_t view, uint32_t edge, int site) const {
    return in_shared<const uint32_t>(view + edge + site / 32 * 4) >> site % 32 & 1;
  }
  __device__ char* slot_of(uint32_t view, uint32_t slot) const {
    return in_global_memory(in_shared<const uint64_t>(view + slot));
  }
  // If there is one.
  __device__ char* ring_of(uint32_t view, const Target& to) const { return slot_of(view, to.slot) + to.ring; }
  __device__ int shifted(int site, int shift) const {
    site -= shift;
    return site < 0 ? site + layout_.sites : site;
  }

  __device__ unsigned first_block() const { return block_index() - rank_; }  // of the cluster

  int copies_at_, copies_shift_;  // where a lane's site lies in what it copies, and what a place's shift does to it
};

}  // namespace pcf::cuda

// Views: what a column step finds out about the next one (layout.h).
#pragma once

#include "cuda/kernels/block.h"

namespace pcf::cuda {

constexpr int kNoRow = -(1 << 20);

// Where the sites are in a sweep's first column step.
__device__ inline void place_sites(Block& b, uint32_t view, const SweepPlan& sweep, int first_row) {
  const Layout& l = b.layout;
  const bool one_column = kTiles > 1 || sweep.at_once == 1;
  if (kTiles == 1) {
    const int ahead = one_column ? 0 : b.group() / l.images;
    b.copies_at = (b.group() - ahead * l.images) * kSiteBytes, b.copies_shift = one_column ? -kSiteBytes : ahead;
  }
  if (b.thread() >= kSites) return;
  const int part = b.thread() / l.images, row = one_column ? part : 0, ahead = one_column ? 0 : part;
  const int behind = sweep.first_step - l.lag * row;
  const int turns = behind >= 0 ? behind / l.period : -((-behind + l.period - 1) / l.period);
  const int image = static_cast<int>(blockIdx.x) / kBlocks * l.images + b.thread() % l.images;
  const bool used = b.thread() < l.sites * sweep.at_once && image < b.params.images;
  b.site(view, b.thread()) = {image, used ? first_row + row + l.rows * turns : kNoRow,
                              behind - l.period * turns + ahead, ahead};
}

// And where the ring of this thread's slot stands.
__device__ inline void place_in_rings(const Block& b, const SweepPlan& sweep, int row) {
  if (b.thread() >= sweep.slots) return;
  Ring& slot = in_shared<Ring>(sweep.slot_table + b.thread() * sizeof(Ring));
  slot.stands = b.by_rows() ? (row + slot.dy + slot.length) % slot.length : 0;
}

// So many columns to the right, which may be in a later row.
__device__ inline Site advanced(const Layout& l, Site s, int columns) {
  s.column += columns;
  while (s.column >= l.period) s.column -= l.period, s.row += l.rows;
  return s;
}

// Makes the view of the column step that comes `steps` steps after that of `now`.
__device__ inline void prepare_next_step(Block& b, const SweepPlan& sweep, uint32_t now, uint32_t then, int steps) {
  const Layout& l = b.layout;
  const int columns = steps * sweep.columns;
  if (steps > 0 && b.thread() < kSites) b.site(then, b.thread()) = advanced(l, b.site(now, b.thread()), columns);
  if (b.thread() < sweep.slots) {
    Ring& slot = in_shared<Ring>(sweep.slot_table + b.thread() * sizeof(Ring));
    int index;
    if (b.by_rows()) {
      index = slot.stands * l.width + b.site(now, 0).column + columns + slot.dx;
    } else {
      const int stands = slot.stands + steps == slot.length ? 0 : slot.stands + steps;
      index = stands - slot.age;
      if (index < 0) index += slot.length;
      slot.stands = stands;
    }
    const unsigned block = kBlocks > 1 && slot.common ? b.first_block() : blockIdx.x;
    const int64_t at = block * l.workspace_bytes + slot.ring + index * slot.bytes;
    in_shared<uint64_t>(then + l.view_of_slots + b.thread() * 8) = reinterpret_cast<uint64_t>(b.params.workspace + at);
  }
  // A warp looks after as many edges at once as it has lanes for, and first the last one, since the first has slots.
  constexpr int kEdges = kSites < 32 && 32 % kSites == 0 ? 32 / kSites : 1;
  const int edges = sweep.edges, period = l.period, rows = l.rows;
#pragma unroll 1
  for (int begin = (kWarps - 1 - b.warp) * kEdges; begin < edges; begin += kWarps * kEdges) {
    const int e = begin + b.lane / kSites % kEdges;
    const Edge edge = in_shared<const Edge>(sweep.edge_table + min(e, edges - 1) * sizeof(Edge));
#pragma unroll
    for (int first = 0; first < kSites; first += 32) {
      const int index = kEdges > 1 ? b.lane % kSites : min(first + b.lane, kSites - 1);
      const Site s = b.site(now, index);
      int row = s.row, column = s.column + edge.lead + columns;
      if (column >= period) column -= period, row += rows;
      while (column >= period) column -= period, row += rows;
      const bool inside = b.in_grid(row, column) && b.in_grid(row + edge.dy, column + edge.dx);
      const bool is_there = inside || (e == int{kEverySite} && !b.by_rows());
      const uint32_t sites = __ballot_sync(kAllLanes, is_there) >> (kEdges > 1 ? b.lane / kSites * kSites : 0);
      const bool is_first = kEdges > 1 ? index == 0 : b.lane == 0;
      if (is_first && e < edges) in_shared<uint32_t>(then + l.view_of_edges + e * 8 + first / 8) = sites;
    }
  }
}

// And where the values of late batches lie in it, by site, once the edges are there.
__device__ inline void list_late(const Block& b, const SweepPlan& sweep, uint32_t then) {
  if (kTiles > 1) return;
  const int site = b.lane / kBatch;
  for (int k = b.warp; k < sweep.late_batches; k += kWarps) {
    const uint32_t word = in_shared<const uint32_t>(sweep.late_table + (k * kBatch + b.lane % kBatch) * 4);
    const bool is_there = b.is_at(then, (word & LateBatch::kEdge) >> LateBatch::kEdgeBits, site);
    const uint32_t at = (word & LateBatch::kAt) + b.shifted(site, word & LateBatch::kShift) * kSiteBytes;
    in_shared<uint32_t>(then + b.layout.view_of_late + k * kLateBytes + b.lane * 4) = is_there ? at : b.layout.zeros;
  }
}

}  // namespace pcf::cuda

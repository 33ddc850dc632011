// A block's walk over its images (layout.h).
#pragma once

#include "cuda/kernels/copies.h"
#include "cuda/kernels/results.h"
#include "cuda/kernels/site_draws.h"

namespace pcf::cuda {

constexpr bool kCopiesEarly = copies_before_barrier(kTiles);
using Product = std::conditional_t<kReadsEarly, const Record::Product, const Record::Product&>;

PCF_DEVICE AfterRecord run_record(Block& b, const Record& r, uint32_t view) {
  Product product = r.product;
  const bool has_tile = product.warps >> b.warp & 1;
  // In a cluster, a warp with a tile leaves copying to others, if there are any.
  const bool copies = kBlocks == 1 || !has_tile || product.barriers & kAllCopy;
  const auto wait_and_copy = [&] {
    const auto copy = [&] {
      if (copies) copy_ahead(b, r.copies, r.copies.next_step ? b.next(view) : view);
    };
    if (!(product.barriers & kBefore)) return;
    if (kCopiesEarly) copy();
    wait_at_barrier(b);
    if (!kCopiesEarly) copy();
  };
  if (has_tile) {
    multiply_early(b, product);
    const LateAddresses late(b, view + product.late);
    wait_and_copy();
    multiply_late(b, product, late, view);
    if (product.n_results) make_results(b, product, view);
  } else {
    wait_and_copy();
    if (product.draws) draw_sites(b, r.draw, view);
    clear_sums<0, kMost>(b);  // so that they take no registers meanwhile
  }
  if (kBlocks > 1 && copies) write_back(b, r, view);
  if (product.barriers & kAfter) arrive_at_barrier(b, kBlocks > 1 ? r.exchange.bytes : 0);
  if (has_tile && product.n_results) clear_sums<0, 1>(b);  // for the next product
  return product.after;
}

// view: one whose sites nobody reads, and then again. Of the sweep before, a warp may still read the rest of it.
PCF_DEVICE void run_sweep(Block& b, const SweepPlan& sweep, int row, uint32_t& view) {
  place_sites(b, view, sweep, row);
  sync_all();
  place_in_rings(b, sweep, row);
  prepare_next_step(b, sweep, view, view, 0);
  __syncthreads();
  list_late(b, sweep, view);
  const uint32_t list = b.warp * sweep.list_bytes;
  for (const uint32_t at : sweep.first_copies)
    if (at != kNowhere) copy_ahead(b, in_shared<const Record>(at + list).copies, view);
  const auto weights = [&]() -> const Weights& {
    return in_shared<const Weights>(sweep.weights + b.warp * sizeof(Weights));
  };
  b.weights.begin(b.params.constants + weights().at, b.lane);
  b.weight_turn = 0;
  wait_copies();
  __syncthreads();
  uint32_t at = sweep.records + list;
  for (int steps = sweep.steps; steps > 0;) {
    AfterRecord after;
    do {
      after = run_record(b, in_shared<const Record>(at), view);
      at += sizeof(Record);
    } while (after == AfterRecord::next);
    if (after == AfterRecord::prepare_next_step) {
      prepare_next_step(b, sweep, view, b.next(view), 1);
    } else if (after == AfterRecord::list_late) {
      list_late(b, sweep, b.next(view));
    } else {
      b.weights.next -= weights().bytes;
      view = b.next(view), at = sweep.records + list, steps--;
    }
  }
}

PCF_DEVICE void walk(const KernelParams& params) {
  Block b(params);
  const Layout& l = b.layout;
  const char* const tables = params.constants + b.rank * l.table_bytes;
  for (uint32_t at = b.thread() * 16; at < l.table_bytes; at += kThreads * 16)
    in_shared<uint4>(l.tables + at) = *reinterpret_cast<const uint4*>(tables + at);
  if (b.thread() == 0)
    for (int k = 0; k < 2; k++) init_barrier(kBarriers + k * 8, kWarps * kBlocks);
  if (b.thread() < kSiteBytes / 16) in_shared<uint4>(l.zeros + b.thread() * 16) = uint4{0, 0, 0, 0};
  sync_all();
  arrive_at_barrier(b, 0);
  uint32_t view = l.first_view;
  const int n = l.n_sweeps;
  for (int done = l.first_row * n; done < l.end_row * n; done++) run_sweep(b, l.sweeps[done % n], done / n, view);
  if (kBlocks > 1) sync_cluster();  // others may still arrive here
}

}  // namespace pcf::cuda

// A block's walk over its images (layout.h).
#pragma once

#include "cuda/kernels/site_draws.h"

namespace pcf::cuda {

template <Math kMath, int kTiles, int kBlocks>
class Walk : public SiteDraws<kMath, kTiles, kBlocks> {
  using Base = SiteDraws<kMath, kTiles, kBlocks>;

 public:
  using Base::Base;

  __device__ __forceinline__ void run() {
    const char* const tables = params_.constants + rank_ * layout_.table_bytes;
    for (uint32_t at = thread() * 16; at < layout_.table_bytes; at += kThreads * 16)
      in_shared<uint4>(layout_.tables + at) = *reinterpret_cast<const uint4*>(tables + at);
    if (thread() == 0)
      for (int k = 0; k < 2; k++) init_barrier(kBarriers + k * 8, kWarps * kBlocks);
    if (thread() < kSiteBytes / 16) in_shared<uint4>(layout_.zeros + thread() * 16) = uint4{0, 0, 0, 0};
    sync_all();
    arrive_with(0);
    uint32_t view = layout_.first_view;
    const int n = layout_.n_sweeps;
    for (int done = layout_.first_row * n; done < layout_.end_row * n; done++)
      run_sweep(layout_.sweeps[done % n], done / n, view);
    if (kBlocks > 1) sync_cluster();  // others may still arrive here
  }

 private:
  using Base::arrive_with, Base::clear_sums, Base::draw_sites, Base::finish, Base::kReadsEarly, Base::kMost,
      Base::lane_, Base::layout_, Base::list_late, Base::meet, Base::multiply_early, Base::multiply_late, Base::prepare_next_step,
      Base::next, Base::of_copies, Base::params_, Base::place_in_rings, Base::place_sites, Base::rank_, Base::sync_all,
      Base::thread, Base::warp_, Base::weight_turn_, Base::weights_;
  using typename Base::Copying;
  using typename Base::LateAddresses;
  using typename Base::Pixel;
  using typename Base::WritingBack;

  static constexpr bool kCopiesEarly = copies_before_barrier(kTiles);
  template <class T>
  using Held = std::conditional_t<kReadsEarly, const T, const T&>;

  // view: one whose sites nobody reads, and then again. Of the sweep before, a warp may still read the rest of it.
  __device__ __forceinline__ void run_sweep(const SweepPlan& sweep, int row, uint32_t& view) {
    place_sites(view, sweep, row);
    sync_all();
    place_in_rings(sweep, row);
    prepare_next_step(sweep, view, view, 0);
    sync_block();
    list_late(sweep, view);
    const uint32_t list = warp_ * sweep.list_bytes;
    for (const uint32_t at : sweep.first_copies)
      if (at != kNowhere) Copying(*this, in_shared<const Record>(at + list).copies).start(*this, view);
    const auto weights = [&]() -> const Weights& {
      return in_shared<const Weights>(sweep.weights + warp_ * sizeof(Weights));
    };
    weights_.begin(params_.constants + weights().at, lane_);
    weight_turn_ = 0;
    wait_copies();
    sync_block();
    uint32_t at = sweep.records + list;
    for (int steps = sweep.steps; steps > 0;) {
      AfterRecord after;
      do {
        after = run_record(in_shared<const Record>(at), view);
        at += sizeof(Record);
      } while (after == AfterRecord::next);
      if (after == AfterRecord::prepare_next_step) {
        prepare_next_step(sweep, view, next(view), 1);
      } else if (after == AfterRecord::list_late) {
        list_late(sweep, next(view));
      } else {
        weights_.begin_again(weights().bytes);
        view = next(view), at = sweep.records + list, steps--;
      }
    }
  }

  __device__ __forceinline__ AfterRecord run_record(const Record& r, uint32_t now) {
    Held<Record::Product> product = r.product;
    const int bytes = kBlocks > 1 ? r.exchange.bytes : 0;
    if (product.warps >> warp_ & 1) {
      if constexpr (kBlocks > 1) {  // warps with a tile leave copying to others, if there are any
        const bool copies = product.barriers & kAllCopy;
        compute(
            product,
            [&] {
              if (copies) Copying(*this, r.copies).start(*this, of_copies(r, now));
            },
            now);
        if (copies) WritingBack(*this, r, now).finish(*this, now);
      } else {
        const Copying copying(*this, r.copies);
        compute(product, [&] { copying.start(*this, of_copies(r, now)); }, now);
      }
      if (product.barriers & kAfter) arrive_with(bytes);
      if (product.n_results) clear_sums(Constant<0>(), Constant<1>());  // for the next product
    } else {
      const Copying copying(*this, r.copies);
      const auto copy_and_meet = [&] {
        if (product.barriers & kBefore) {
          if (kCopiesEarly) copying.start(*this, of_copies(r, now));
          meet();
          if (!kCopiesEarly) copying.start(*this, of_copies(r, now));
        }
      };
      const auto meet_and_draw = [&] {
        const auto first = [&] { return Pixel(*this, r.draw, warp_, now); };
        if constexpr (kReadsEarly && kSparesRegisters) {
          if (product.draws) {
            const Pixel early = first();
            copy_and_meet();
            draw_sites(r.draw, early, now);
          } else {
            copy_and_meet();
          }
        } else {
          copy_and_meet();
          if (product.draws) draw_sites(r.draw, first(), now);
        }
        clear_sums(Constant<0>(), Constant<kMost>());  // so that they take no registers meanwhile
      };
      if constexpr (kBlocks > 1 && kSparesRegisters) {
        const WritingBack early(*this, r, now);
        meet_and_draw();
        if (copying.is_mine()) early.finish(*this, now);
      } else {
        meet_and_draw();
        if (kBlocks > 1 && copying.is_mine()) WritingBack(*this, r, now).finish(*this, now);
      }
      if (product.barriers & kAfter) arrive_with(bytes);
    }
    return product.after;
  }

  // copy(): the warp copies what it is to.
  template <class Copy>
  __device__ __forceinline__ void compute(const Record::Product& product, const Copy& copy, uint32_t now) {
    multiply_early(product);
    const LateAddresses late(*this, now + product.late);
    if (product.barriers & kBefore) {
      if (kCopiesEarly) copy();
      meet();
      if (!kCopiesEarly) copy();
    }
    multiply_late(product, late, now);
    if (product.n_results) finish(product, now);
  }
};

}  // namespace pcf::cuda

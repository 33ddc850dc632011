// The barriers between records, at which a warp arrives when it has done its part of one, and for which it waits when
// it has multiplied what it knows of the next.
#pragma once

#include "cuda/kernels/views.h"

namespace pcf::cuda {

template <Math kMath, int kTiles, int kBlocks>
class Barriers : public Views<kMath, kTiles, kBlocks> {
  using Base = Views<kMath, kTiles, kBlocks>;

 public:
  using Base::Base;

 protected:
  using Base::lane_, Base::params_, Base::rank_, Base::thread;

  // Behind it, what was copied for the next record is there, and what all threads have made.
  __device__ __forceinline__ void meet() {
    if (!phase_is_over(barrier(), barriers_ / 2 % 2)) keep_waiting();
    barriers_++;
  }

  // Time in which nobody looked, such as that of a debugger, counts as one unit.
  __device__ void keep_waiting() {
    uint32_t units = 0;
    for (uint32_t last = time_passed(), now; !phase_is_over(barrier(), barriers_ / 2 % 2); last = now) {
      now = time_passed();
      units += now != last;
      if (units > kMostWait) give_up();
    }
  }

  // What others were to make will never be there.
  __device__ void give_up() {
    atomic_min(params_.error, kWaitedInVain);
    wait_copies();
    if (kBlocks > 1) sync_cluster();  // others may still write to this block
    end_thread();
  }

  __device__ void sync_all() { kBlocks > 1 ? sync_cluster() : sync_block(); }

  __device__ uint32_t barrier() const { return kBarriers + barriers_ % 2 * 8; }

  __device__ __forceinline__ void arrive_with(int bytes) {
    wait_copies();
    sync_warp();
    if (kBlocks > 1 && thread() == 0) expect_bytes(barrier(), bytes);
    if (lane_ == 0) arrive_here(barrier());
    if (kBlocks > 1 && lane_ > 0 && lane_ < kBlocks) arrive(barrier(), rank_ ^ lane_);
  }

  template <class T>
  __device__ __forceinline__ void send_to_all(uint32_t at, T value) {
    [[maybe_unused]] constexpr int kAtOnce = kSparesRegisters ? kBlocks : 4;  // addresses that are found at once
#pragma unroll kAtOnce
    for (int other = 1; other < kBlocks; other++) send(rank_ ^ other, at, value, barrier());
  }

  unsigned barriers_ = 0;
};

}  // namespace pcf::cuda

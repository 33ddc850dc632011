// The barriers between records, at which a warp arrives when it has done its part of one, and for which it waits when
// it has multiplied the early operands of the next.
#pragma once

#include "cuda/kernels/block.h"

namespace pcf::cuda {

constexpr uint32_t kMostWait = 4;  // units of time_passed(): some ten seconds, where others take microseconds

PCF_DEVICE uint32_t barrier(const Block& b) { return kBarriers + b.barriers % 2 * 8; }
PCF_DEVICE bool is_over(const Block& b) { return phase_is_over(barrier(b), b.barriers / 2 % 2); }

__device__ inline void sync_all() { kBlocks > 1 ? sync_cluster() : __syncthreads(); }

// What others were to make will never be there.
__device__ inline void give_up(const Block& b) {
  atomicMin(b.params.error, kWaitedInVain);  // before all error_code()s
  wait_copies();
  if (kBlocks > 1) sync_cluster();  // others may still write to this block
  end_thread();
}

// Time in which nobody looked, such as that of a debugger, counts as one unit.
__device__ inline void keep_waiting(const Block& b) {
  uint32_t units = 0;
  for (uint32_t last = time_passed(), now; !is_over(b); last = now) {
    now = time_passed();
    units += now != last;
    if (units > kMostWait) give_up(b);
  }
}

// When it returns, all threads' results are there, and the copies for the next record have arrived.
PCF_DEVICE void wait_at_barrier(Block& b) {
  if (!is_over(b)) keep_waiting(b);
  b.barriers++;
}

PCF_DEVICE void arrive_at_barrier(const Block& b, int bytes) {
  wait_copies();
  __syncwarp();
  if (kBlocks > 1 && b.thread() == 0) expect_bytes(barrier(b), bytes);
  if (b.lane == 0) arrive_here(barrier(b));
  if (kBlocks > 1 && b.lane > 0 && b.lane < kBlocks) arrive(barrier(b), b.rank ^ b.lane);
}

template <class T>
PCF_DEVICE void send_to_all(const Block& b, uint32_t at, T value) {
#pragma unroll
  for (int other = 1; other < kBlocks; other++) send(b.rank ^ other, at, value, barrier(b));
}

}  // namespace pcf::cuda

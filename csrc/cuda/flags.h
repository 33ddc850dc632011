// How blocks of one launch wait for each other: through numbers that only grow, so that they never have to be reset.
#pragma once

#include "cuda/device.h"

namespace pcf::cuda {

// All threads of the block wait until the number has reached `value`.
template <Scope kScope>
__device__ inline void wait_for(const uint32_t* number, uint32_t value) {
  if (thread_index() == 0)
    while (static_cast<int32_t>(observe<kScope>(number) - value) < 0) pause();
  sync_block();
}

// A barrier between blocks: afterwards, all of them see what each wrote before it. all: how many blocks will have
// arrived by then, counting those at earlier barriers.
__device__ inline void sync_blocks(uint32_t* arrived, uint32_t all) {
  sync_block();
  if (thread_index() == 0) arrive(arrived);
  wait_for<Scope::device>(arrived, all);
}

}  // namespace pcf::cuda

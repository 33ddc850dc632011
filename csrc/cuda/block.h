// Variant `block`: one block of threads per tile of images, which streams all weights through shared memory per pixel.
#pragma once

#include "cuda/worker.h"

namespace pcf::cuda {

// A warp's own ring of weight fragments, copied ahead of their use, across instructions and pixels. It reads a stream
// of `length` fragments over and over, from fragment `start` on, `total` in all.
class Ring {
 public:
  __device__ Ring(char* ring, const char* stream, int length, int start, int total, int lane)
      : ring_(ring), stream_(stream), length_(length), lane_(lane), position_(start), left_(total) {
    for (int n = 0; n < kRing - 1; n++) copy_next();
  }

  // The next fragment; the one before may be overwritten from here on.
  __device__ __forceinline__ const char* next() {
    wait_copies<kRing - 2>();
    sync_warp();
    copy_next();
    const char* fragment = ring_ + used_ * kWeightBytes;
    used_ = (used_ + 1) % kRing;
    return fragment;
  }

  // Does nothing, as the stream begins and ends where instructions are left out.
  __device__ void skip(int) {}

 private:
  __device__ __forceinline__ void copy_next() {
    if (left_ > 0) {
      const char* from = stream_ + int64_t{position_} * kWeightBytes + lane_ * 16;
      char* to = ring_ + filled_ * kWeightBytes + lane_ * 16;
      copy_async(to, from);
      copy_async(to + kWeightBytes / 2, from + kWeightBytes / 2);
      position_ = position_ + 1 == length_ ? 0 : position_ + 1;
      left_--;
    }
    filled_ = (filled_ + 1) % kRing;
    commit_copies();  // even if nothing was copied, as waiting counts groups
  }

  char* const ring_;
  const char* const stream_;
  const int length_, lane_;
  int position_, left_, filled_ = 0, used_ = 0;
};

template <Math kMath>
__global__ void __launch_bounds__(kThreads, 1) sample_row_in_blocks(__grid_constant__ const KernelParams params) {
  char* shared = shared_memory();
  Worker<kMath> worker(params, 0, shared);
  worker.take(block_index(), 0);
  const StagePlan& stage = worker.stage();
  const int warp = worker.warp, width = params.layout.width;
  const int length = static_cast<int>((stage.weights[warp + 1] - stage.weights[warp]) / kWeightBytes);
  const int drawn =
      stage.drawn_fragments[warp];  // the first column step runs no drawn instructions, the last one only those
  Ring weights(shared + warp * kRing * kWeightBytes, params.constants + stage.weights[warp], length,
               drawn == length ? 0 : drawn, length * width, worker.lane);
  worker.clear_shared();
  sync_block();
  for (int x = 0; x <= width; x++) {
    worker.run(x, weights);
    sync_block();
  }
}

}  // namespace pcf::cuda

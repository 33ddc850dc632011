// Variant `pipeline`: the blocks of a pipeline are its stages. Each keeps the weights of its few instructions in shared
// memory for the whole launch, and hands each column step's values on to the next. The last one draws; then the first
// one can go on with the tile's next column step. A pipeline works on its tiles in turn, so that with as many tiles as
// stages every block is busy.
//
// kCluster: the pipeline is a cluster, and values and flags go straight into the next block's shared memory; otherwise
// they go through global memory, and the launch must be cooperative. Column steps are numbered through the whole image,
// and a flag holds the number of the next one, so it never has to be reset.
#pragma once

#include "cuda/flags.h"
#include "cuda/worker.h"

namespace pcf::cuda {

// A warp's fragments in the order in which it uses them in a column step. The last ones stay in shared memory; if not
// all fit there, the first ones are read from L2.
class Resident {
 public:
  // Called by all warps, which must then wait for the copies.
  __device__ Resident(const StagePlan& stage, const char* constants, char* shared, int warp, int lane)
      : global_(constants + stage.weights[warp]) {
    for (int w = 0; w <= warp; w++) {
      shared_ = shared;
      const int length = static_cast<int>((stage.weights[w + 1] - stage.weights[w]) / kWeightBytes);
      const int kept = min(length, stage.resident);
      streamed_ = length - kept;
      shared += kept * kWeightBytes;
    }
    const char* from = global_ + int64_t{streamed_} * kWeightBytes;
    for (char* to = shared_ + lane * 16; to < shared; to += 512) copy_async(to, from + (to - shared_));
    commit_copies();
  }
  __device__ void rewind() { next_ = 0; }
  __device__ __forceinline__ const char* next() {
    const int n = next_++;
    return n < streamed_ ? global_ + int64_t{n} * kWeightBytes : shared_ + (n - streamed_) * kWeightBytes;
  }
  __device__ void skip(int fragments) { next_ += fragments; }

 private:
  const char* const global_;
  char* shared_ = nullptr;
  int streamed_ = 0, next_ = 0;
};

struct Flags {
  uint32_t arrived;  // how many column steps have put their values into this stage's slots
  uint32_t taken;    // how many column steps the next stage has finished
  uint32_t drawn;    // how many column steps the last stage has drawn; kept with the first stage
};

template <bool kCluster>
class Pipeline {
 public:
  static constexpr Scope kScope = kCluster ? Scope::cluster : Scope::device;

  __device__ Pipeline(const KernelParams& params, char* shared, const StagePlan* stages, int index, int rank)
      : shared_(shared), memory_(params.pipelines + index * params.layout.pipeline_bytes), stages_(stages),
        rank_(rank) {}

  __device__ Flags* flags(int rank) const {
    return reinterpret_cast<Flags*>(kCluster ? map_to_block(shared_, rank) : memory_ + rank * kFlagBytes);
  }
  // Always in global memory, like the levels.
  __device__ uint32_t* drawn() const { return &reinterpret_cast<Flags*>(memory_)->drawn; }

  // Where stage `rank` receives the values of a column step.
  __device__ char* slot(int rank, uint32_t step) const {
    char* slots =
        kCluster ? map_to_block(shared_, rank) + stages_[rank].shared_slots : memory_ + stages_[rank].global_slots;
    return slots + step % 2 * stages_[rank].received_bytes;
  }

  __device__ void receive(uint32_t step) const {
    wait_for<kScope>(&flags(rank_)->arrived, step + 1);
    if (kCluster) return;
    const char* from = slot(rank_, step);
    char* to = shared_ + stages_[rank_].shared_slots + step % 2 * stages_[rank_].received_bytes;
    for (int at = thread_index() * 16; at < stages_[rank_].received_bytes; at += kThreads * 16)
      *reinterpret_cast<uint4*>(to + at) = *reinterpret_cast<const uint4*>(from + at);
    sync_block();
  }

  // Waits for the block's values, and for the slot, from which the next stage may still be reading values of two column
  // steps ago.
  template <class Worker>
  __device__ void send(const Worker& worker, uint32_t step, int column) const {
    wait_for<kScope>(&flags(rank_)->taken, step - 1);
    char* to = slot(rank_ + 1, step);
    const StagePlan& stage = stages_[rank_];
    for (int s = 0; s < stage.n_sent; s++) {
      const int value = worker.template table<int>(worker.layout.sent)[stage.sent + s];
      const int bytes = worker.value(value).fragments * kInputBytes;
      const char* from = worker.in_shared(worker.value(value), column);
      for (int at = thread_index() * 16; at < bytes; at += kThreads * 16)
        *reinterpret_cast<uint4*>(to + at) = *reinterpret_cast<const uint4*>(from + at);
      to += bytes;
    }
    sync_block();
    if (thread_index() == 0) publish<kScope>(&flags(rank_ + 1)->arrived, step + 1);
  }

 private:
  char* const shared_;
  char* const memory_;
  const StagePlan* const stages_;
  const int rank_;
};

template <Math kMath, bool kCluster>
__global__ void __launch_bounds__(kThreads, 1) sample_row_in_pipelines(__grid_constant__ const KernelParams params) {
  char* shared = shared_memory();
  const Layout& layout = params.layout;
  const int n_stages = layout.stages, rank = block_index() % n_stages, index = block_index() / n_stages;
  Worker<kMath> worker(params, rank, shared);
  const Pipeline<kCluster> pipeline(params, shared, worker.template table<StagePlan>(layout.stage_plans), index, rank);
  const int tiles = (params.tiles - index + params.n_pipelines - 1) / params.n_pipelines;
  uint32_t step = static_cast<uint32_t>(params.y) * (layout.width + 1) * tiles;
  const bool last = rank == n_stages - 1;

  worker.clear_shared();
  sync_block();
  const StagePlan& stage = worker.stage();
  Resident weights(stage, params.constants, shared + stage.shared_weights, worker.warp, worker.lane);
  if (kCluster && worker.thread == 0) pipeline.flags(rank)->arrived = pipeline.flags(rank)->taken = step;
  wait_copies<0>();
  if (kCluster)
    sync_cluster();  // from here on, others may write into this block's memory ...
  else
    sync_warp();  // each lane reads what others of its warp have copied

  for (int x = 0; x <= layout.width; x++)
    for (int t = 0; t < tiles; t++, step++) {
      worker.take(index + t * params.n_pipelines, step % 2);
      weights.rewind();
      worker.sum_early(x, weights);
      if (rank > 0)
        pipeline.receive(step);
      else if (x > 0)  // the tile's previous pixel was drawn `tiles` column steps ago
        wait_for<Scope::device>(pipeline.drawn(), step - tiles + 1);
      worker.run(x, weights);
      if (!last) {
        pipeline.send(worker, step, x);
      } else {
        sync_block();
        if (worker.thread == 0) publish<Scope::device>(pipeline.drawn(), step + 1);
      }
      if (rank > 0 && worker.thread == 0)
        publish<Pipeline<kCluster>::kScope>(&pipeline.flags(rank - 1)->taken, step + 1);
    }
  if (kCluster) sync_cluster();  // ... until here
}

}  // namespace pcf::cuda

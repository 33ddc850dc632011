// Variant `pipeline`: the blocks of a group are stages. Each keeps the weights of its few instructions in shared memory
// for the whole launch, and hands each job's values on to the next; the last draws, and the first goes on with the
// tile's next job. A group works on its tiles in turn, so that with as many tiles as stages every block is busy.
//
// kCluster: the group is a cluster, and values and flags go straight into the next block's shared memory; else they go
// through global memory, and the launch must be cooperative. Jobs are numbered through the whole image; a flag holds
// the number of the next job, so it never has to be reset.
#pragma once

#include "cuda/flags.h"
#include "cuda/worker.h"

namespace pcf::cuda {

// A warp's fragments in the order in which it uses them in a job. The last ones stay in shared memory; those of a layer
// too large for it are read from L2.
class Resident {
 public:
  // Called by all warps; the copies have still to be waited for.
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
  uint32_t arrived;  // of this stage's jobs, those whose values lie in its slots
  uint32_t taken;    // of the next stage's jobs, those it is through with
  uint32_t drawn;    // by the last stage, kept with the first
};

template <bool kCluster>
class Group {
 public:
  static constexpr Scope kScope = kCluster ? Scope::cluster : Scope::device;

  __device__ Group(const Batch& batch, char* shared, const StagePlan* stages, int group, int rank)
      : shared_(shared), memory_(batch.groups + group * batch.layout.group_bytes), stages_(stages), rank_(rank) {}

  __device__ Flags* flags(int rank) const {
    return reinterpret_cast<Flags*>(kCluster ? map_to_block(shared_, rank) : memory_ + rank * kFlagBytes);
  }
  // Always in global memory, as the levels are.
  __device__ uint32_t* drawn() const { return &reinterpret_cast<Flags*>(memory_)->drawn; }

  // Where stage `rank` receives the values of a job.
  __device__ char* slot(int rank, uint32_t job) const {
    char* slots = kCluster ? map_to_block(shared_, rank) + stages_[rank].shared_slots : memory_ + stages_[rank].global_slots;
    return slots + job % 2 * stages_[rank].received_bytes;
  }

  __device__ void receive(uint32_t job) const {
    wait_for<kScope>(&flags(rank_)->arrived, job + 1);
    if (kCluster) return;
    const char* from = slot(rank_, job);
    char* to = shared_ + stages_[rank_].shared_slots + job % 2 * stages_[rank_].received_bytes;
    for (int at = thread_index() * 16; at < stages_[rank_].received_bytes; at += kThreads * 16)
      *reinterpret_cast<uint4*>(to + at) = *reinterpret_cast<const uint4*>(from + at);
    sync_block();
  }

  // Waits for the block's values, and for the slot, which the job before the last may still be read from.
  template <class Worker>
  __device__ void send(const Worker& worker, uint32_t job, int column) const {
    wait_for<kScope>(&flags(rank_)->taken, job - 1);
    char* to = slot(rank_ + 1, job);
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
    if (thread_index() == 0) publish<kScope>(&flags(rank_ + 1)->arrived, job + 1);
  }

 private:
  char* const shared_;
  char* const memory_;
  const StagePlan* const stages_;
  const int rank_;
};

template <Math kMath, bool kCluster>
__global__ void __launch_bounds__(kThreads, 1) sample_row_in_pipelines(__grid_constant__ const Batch batch) {
  char* shared = shared_memory();
  const Layout& layout = batch.layout;
  const int n_stages = layout.stages, rank = block_index() % n_stages, group_index = block_index() / n_stages;
  Worker<kMath> worker(batch, rank, shared);
  const Group<kCluster> group(batch, shared, worker.template table<StagePlan>(layout.stage_plans), group_index, rank);
  const int tiles = (batch.tiles - group_index + batch.n_groups - 1) / batch.n_groups;
  uint32_t job = static_cast<uint32_t>(batch.y) * (layout.width + 1) * tiles;
  const bool last = rank == n_stages - 1;

  worker.clear_shared();
  sync_block();
  const StagePlan& stage = worker.stage();
  Resident weights(stage, batch.constants, shared + stage.shared_weights, worker.warp, worker.lane);
  if (kCluster && worker.thread == 0) group.flags(rank)->arrived = group.flags(rank)->taken = job;
  wait_copies<0>();
  if (kCluster)
    sync_cluster();  // others may write into this block's memory from here on
  else
    sync_warp();  // whose lanes read what the others copied

  for (int x = 0; x <= layout.width; x++)
    for (int t = 0; t < tiles; t++, job++) {
      worker.take(group_index + t * batch.n_groups, job % 2);
      weights.rewind();
      worker.sum_early(x, weights);
      if (rank > 0)
        group.receive(job);
      else if (x > 0)  // the tile's previous pixel was drawn so many jobs ago
        wait_for<Scope::device>(group.drawn(), job - tiles + 1);
      worker.run(x, weights);
      if (!last) {
        group.send(worker, job, x);
      } else {
        sync_block();
        if (worker.thread == 0) publish<Scope::device>(group.drawn(), job + 1);
      }
      if (rank > 0 && worker.thread == 0) publish<Group<kCluster>::kScope>(&group.flags(rank - 1)->taken, job + 1);
    }
  if (kCluster) sync_cluster();  // ... until here
}

}  // namespace pcf::cuda

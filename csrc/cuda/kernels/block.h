// A block of threads, as one of its threads sees it: what it is given, and what it keeps from record to record.
#pragma once

#include "cuda/kernels/weight_stream.h"

namespace pcf::cuda {

// Which of the kernels this is: each is compiled by itself.
constexpr Math kMath = Math::PCF_MATH;
constexpr int kTiles = PCF_TILES;    // of sites
constexpr int kBlocks = PCF_BLOCKS;  // that share their images: 1, or a cluster of 2, 4 or 8
static_assert(kTiles <= most_tiles(kMath));

constexpr int kSites = kTiles * kTileSites, kDepth = depth_of(kMath), kMost = most_members(kMath, kTiles);
constexpr uint32_t kColumnBytes = kTiles * kFragmentBytes;
// Whether there are registers to spare for what is read early, and is read when it is needed otherwise. For Blackwell,
// compilers before 13.2 need some more for the same code.
#if defined __CUDA_ARCH__ && __CUDA_ARCH__ >= 1000 && 100 * __CUDACC_VER_MAJOR__ + __CUDACC_VER_MINOR__ < 1302
constexpr bool kReadsEarly = false;
#else
constexpr bool kReadsEarly = kDepth == 32 && kTiles <= 4;
#endif

// Shared memory by offset, so that the compiler knows which memory it is.
template <class T>
PCF_DEVICE T& in_shared(uint32_t at) {
  return *reinterpret_cast<T*>(shared_memory() + at);
}

struct Block {
  __device__ explicit Block(const KernelParams& params)
      : params(params), layout(params.layout), warp(threadIdx.x / 32), lane(threadIdx.x % 32),
        rank(kBlocks > 1 ? cluster_rank() : 0) {}

  const KernelParams& params;
  const Layout& layout;
  const int warp, lane;
  const unsigned rank;          // in the cluster
  unsigned barriers = 0;        // that it has passed
  int copies_at, copies_shift;  // where a lane's site lies in what it copies, and what a place's shift does to it
  WeightStream weights;
  int weight_turn = 0;
  // Of a warp's tiles of sites, for one member after the other; zero between records, unless a sum goes on. The order
  // in which a sum is made up must not depend on the number of tiles or members: images would depend on the batch.
  float sums[kMost * kTiles][2][4] = {};

  __device__ int thread() const { return warp * 32 + lane; }
  __device__ int group() const { return lane / 4; }
  __device__ int member() const { return lane % 4; }
  // What a lane multiplies lies there, from the beginning of a fragment on.
  __device__ uint32_t lane_offset() const { return group() * kSiteBytes; }
  // Of what is made of a product's tile, a lane has x[0], x[1]: its first channel at sites 2 * member and the next,
  // x[2], x[3]: its second channel there.
  __device__ int site_of(int tile, int n) const { return tile * kTileSites + member() * 2 + n; }

  // Whether rows are sampled one at a time, and several columns summed at once.
  __device__ bool by_rows() const { return kTiles <= kMostRowTiles && layout.by_rows; }
  __device__ unsigned first_block() const { return blockIdx.x - rank; }  // of the cluster
  __device__ const float* constants(int index) const {
    return reinterpret_cast<const float*>(params.constants + layout.floats) + index;
  }
  __device__ float constant(int index) const { return arrived(*constants(index)); }

  // In the next column step's view (step_views.h).
  __device__ uint32_t next(uint32_t view) const { return layout.both_views - view; }
  __device__ Site& site(uint32_t view, int index) const { return in_shared<Site>(view + index * sizeof(Site)); }
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
    return site < 0 ? site + layout.sites : site;
  }
  __device__ bool in_grid(int row, int column) const {
    return static_cast<unsigned>(row) < static_cast<unsigned>(layout.height) &&
           static_cast<unsigned>(column) < static_cast<unsigned>(layout.width);
  }
};

}  // namespace pcf::cuda

// A thread of the kernel: what it is given, and which of a warp's products are its own. Each file from here on adds
// something to it: views.h, barriers.h, copies.h, products.h, stores.h, any_steps.h, results.h, site_draws.h, walk.h.
#pragma once

#include "cuda/kernels/draw.h"
#include "cuda/kernels/fragments.h"

namespace pcf::cuda {

// Grows in the order of drawing.
__device__ inline unsigned long long error_code(int site, int image, int channel) {
  return static_cast<unsigned long long>(site) << 40 | static_cast<unsigned long long>(image) << 16 | channel;
}

// In place of one: a thread has waited in vain. Its channel is none.
constexpr unsigned long long kWaitedInVain = 0xffff;
constexpr uint32_t kMostWait = 4;  // units of time_passed(): some ten seconds, where others take microseconds

// kBlocks: that share their images, 1, 2, 4 or 8.
template <Math kMath, int kTiles, int kBlocks>
class Thread {
 public:
  __device__ explicit Thread(const KernelParams& params)
      : params_(params), layout_(params.layout), warp_(thread_index() / 32), lane_(thread_index() % 32),
        rank_(kBlocks > 1 ? cluster_rank() : 0) {}

 protected:
  static constexpr int kSites = kTiles * kTileSites;
  static constexpr int kMost = most_members(kMath, kTiles);
  // Whether there are registers to spare for what is read early, and is read when it is needed otherwise.
  static constexpr bool kReadsEarly = kDepth<kMath> == 32 && kTiles <= 4;
  // Whether rows are sampled one at a time, and several columns summed at once.
  __device__ bool by_rows() const { return kTiles <= kMostRowTiles && layout_.by_rows; }
  static constexpr uint32_t kColumnBytes = kTiles * kFragmentBytes;

  __device__ const float* constants(int index) const {
    return reinterpret_cast<const float*>(params_.constants + layout_.floats) + index;
  }
  __device__ float constant(int index) const { return arrived(*constants(index)); }
  // What a lane multiplies lies there, from the beginning of a fragment on.
  __device__ uint32_t lane_offset() const { return group() * kSiteBytes; }
  __device__ int thread() const { return warp_ * 32 + lane_; }
  __device__ int group() const { return lane_ / 4; }
  __device__ int member() const { return lane_ % 4; }

  // Of what is made of a product's tile, a lane has x[0], x[1]: its first channel at sites 2 * member and the next,
  // x[2], x[3]: its second channel there.
  __device__ int site_of(int tile, int n) const { return tile * kTileSites + member() * 2 + n; }
  __device__ uint32_t offset_at(int channel, int site) const {
    return offset_of<kMath>(channel, kTiles) + site * kSiteBytes;
  }

  const KernelParams& params_;
  const Layout& layout_;
  const int warp_, lane_;
  const unsigned rank_;  // in the cluster
};

}  // namespace pcf::cuda

// The kernels for one kind of numbers, PCF_MATH; compiled once for each kind.
#include "cuda/kernels/kernels.h"

namespace pcf::cuda {
namespace {

template <int kTiles>
void launch_of(const KernelParams& params, int shared_bytes, Stream stream) {
  if constexpr (kTiles <= most_tiles(Math::PCF_MATH)) {
    if (params.layout.tiles != kTiles) return launch_of<kTiles + 1>(params, shared_bytes, stream);
    const unsigned clusters = (params.images + params.layout.images - 1) / params.layout.images;
    const unsigned cluster = params.layout.cluster;
    const Launch how{clusters * cluster, kThreads, static_cast<size_t>(shared_bytes), cluster};
    if constexpr (kTiles == 1)
      if (cluster > 1) return launch(walk<Math::PCF_MATH, 1, kCluster>, how, stream, params);
    launch(walk<Math::PCF_MATH, kTiles, 1>, how, stream, params);
  }
}

}  // namespace

template <Math kMath>
void launch_walk(const KernelParams& params, int shared_bytes, Stream stream) {
  launch_of<1>(params, shared_bytes, stream);
}

template <Math kMath>
int clusters_at_once(int shared_bytes) {
  return most_clusters(walk<kMath, 1, kCluster>, {kCluster, kThreads, static_cast<size_t>(shared_bytes), kCluster});
}

template int clusters_at_once<Math::PCF_MATH>(int);
template void launch_walk<Math::PCF_MATH>(const KernelParams&, int, Stream);

}  // namespace pcf::cuda

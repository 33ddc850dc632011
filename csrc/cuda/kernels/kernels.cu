// The kernels for one kind of numbers, PCF_MATH; compiled once for each kind.
#include "cuda/kernels/kernels.h"

namespace pcf::cuda {
namespace {

// use(kernel): that of clusters of so many blocks.
template <Math kMath, class Use>
auto with_cluster(int blocks, const Use& use) {
  return blocks == 2 ? use(walk<kMath, 1, 2>) : blocks == 4 ? use(walk<kMath, 1, 4>) : use(walk<kMath, 1, 8>);
}

template <int kTiles>
void launch_of(const KernelParams& params, int shared_bytes, Stream stream) {
  if constexpr (kTiles <= most_tiles(Math::PCF_MATH)) {
    if (params.layout.tiles != kTiles) return launch_of<kTiles + 1>(params, shared_bytes, stream);
    const unsigned clusters = (params.images + params.layout.images - 1) / params.layout.images;
    const unsigned cluster = params.layout.cluster;
    const Launch how{clusters * cluster, kThreads, static_cast<size_t>(shared_bytes), cluster};
    if constexpr (kTiles == 1)
      if (cluster > 1)
        return with_cluster<Math::PCF_MATH>(cluster, [&](auto kernel) { launch(kernel, how, stream, params); });
    launch(walk<Math::PCF_MATH, kTiles, 1>, how, stream, params);
  }
}

}  // namespace

template <Math kMath>
void launch_walk(const KernelParams& params, int shared_bytes, Stream stream) {
  launch_of<1>(params, shared_bytes, stream);
}

template <Math kMath>
int clusters_at_once(unsigned blocks, int shared_bytes) {
  const Launch one{blocks, kThreads, static_cast<size_t>(shared_bytes), blocks};
  return with_cluster<kMath>(blocks, [&](auto kernel) { return most_clusters(kernel, one); });
}

template int clusters_at_once<Math::PCF_MATH>(unsigned, int);
template void launch_walk<Math::PCF_MATH>(const KernelParams&, int, Stream);

}  // namespace pcf::cuda

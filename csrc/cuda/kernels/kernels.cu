// The kernels for one kind of numbers, PCF_MATH, and one number of tiles, PCF_TILES; compiled once for each.
#include "cuda/kernels/kernels.h"

namespace pcf::cuda {
namespace {

static_assert(PCF_TILES <= most_tiles(Math::PCF_MATH));

// use(kernel): that of clusters of so many blocks.
template <Math kMath, class Use>
auto with_cluster(int blocks, const Use& use) {
  return blocks == 2 ? use(walk<kMath, 1, 2>) : blocks == 4 ? use(walk<kMath, 1, 4>) : use(walk<kMath, 1, 8>);
}

}  // namespace

template <Math kMath, int kTiles>
void launch_walk(const KernelParams& params, int shared_bytes, Stream stream) {
  const unsigned clusters = (params.images + params.layout.images - 1) / params.layout.images;
  const unsigned cluster = params.layout.cluster;
  const Launch how{clusters * cluster, kThreads, static_cast<size_t>(shared_bytes), cluster};
  if constexpr (kTiles == 1)
    if (cluster > 1) return with_cluster<kMath>(cluster, [&](auto kernel) { launch(kernel, how, stream, params); });
  launch(walk<kMath, kTiles, 1>, how, stream, params);
}
template void launch_walk<Math::PCF_MATH, PCF_TILES>(const KernelParams&, int, Stream);

#if PCF_TILES == 1
template <Math kMath>
int clusters_at_once(unsigned blocks, int shared_bytes) {
  const Launch one{blocks, kThreads, static_cast<size_t>(shared_bytes), blocks};
  return with_cluster<kMath>(blocks, [&](auto kernel) { return most_clusters(kernel, one); });
}
template int clusters_at_once<Math::PCF_MATH>(unsigned, int);
#endif

}  // namespace pcf::cuda

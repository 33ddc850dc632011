// The kernels for one kind of numbers, PCF_MATH; compiled once for each kind.
#include "cuda/kernels.h"

namespace pcf::cuda {
namespace {

template <int kTiles>
void launch_of(const KernelParams& params, int shared_bytes, Stream stream) {
  if constexpr (kTiles <= most_tiles(Math::PCF_MATH)) {
    if (params.layout.tiles != kTiles)
      return launch_of<more_tiles(Math::PCF_MATH, kTiles)>(params, shared_bytes, stream);
    const unsigned blocks = (params.images + params.layout.images - 1) / params.layout.images;
    launch(walk<Math::PCF_MATH, kTiles>, {blocks, kThreads, static_cast<size_t>(shared_bytes)}, stream, params);
  }
}

}  // namespace

template <Math kMath>
void launch_walk(const KernelParams& params, int shared_bytes, Stream stream) {
  launch_of<1>(params, shared_bytes, stream);
}

template void launch_walk<Math::PCF_MATH>(const KernelParams&, int, Stream);

}  // namespace pcf::cuda

#include "emulation/kernels.h"

namespace emulation {
namespace {

using namespace pcf::cuda;

template <Math kMath, int kTiles = 1>
void launch_tiles(const KernelParams& params, unsigned blocks, int shared_bytes) {
  switch (params.layout.cluster) {
    case 2: return launch_walk<kMath, 1, 2>(params, blocks, shared_bytes);
    case 4: return launch_walk<kMath, 1, 4>(params, blocks, shared_bytes);
    case 8: return launch_walk<kMath, 1, 8>(params, blocks, shared_bytes);
  }
  if constexpr (kTiles < most_tiles(kMath))
    if (params.layout.tiles > kTiles) return launch_tiles<kMath, kTiles + 1>(params, blocks, shared_bytes);
  launch_walk<kMath, kTiles, 1>(params, blocks, shared_bytes);
}

}  // namespace

void launch(const KernelParams& params, Math math, unsigned blocks, int shared_bytes) {
  switch (math) {
    case Math::fp32: return launch_tiles<Math::fp32>(params, blocks, shared_bytes);
    case Math::tf32: return launch_tiles<Math::tf32>(params, blocks, shared_bytes);
    case Math::bf16: return launch_tiles<Math::bf16>(params, blocks, shared_bytes);
    case Math::fp16: return launch_tiles<Math::fp16>(params, blocks, shared_bytes);
  }
}

}  // namespace emulation

// The kernels for one kind of numbers, PCF_MATH, and one number of tiles, PCF_TILES; compiled once for each.
#include "cuda/kernels/walk.h"
#include "emulation/kernels.h"

namespace emulation {

using namespace pcf::cuda;

template <Math kMath, int kTiles, int kBlocks>
void launch_walk(const KernelParams& params, unsigned blocks, int shared_bytes) {
  run({blocks, kThreads, static_cast<size_t>(shared_bytes), kBlocks},
      [&] { Walk<kMath, kTiles, kBlocks>(params).run(); });
}
template void launch_walk<Math::PCF_MATH, PCF_TILES, 1>(const KernelParams&, unsigned, int);
#if PCF_TILES == 1
template void launch_walk<Math::PCF_MATH, 1, 2>(const KernelParams&, unsigned, int);
template void launch_walk<Math::PCF_MATH, 1, 4>(const KernelParams&, unsigned, int);
template void launch_walk<Math::PCF_MATH, 1, 8>(const KernelParams&, unsigned, int);
#endif

}  // namespace emulation

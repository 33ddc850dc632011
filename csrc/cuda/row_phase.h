// The row phase: sums taps that need only rows above, for a whole row of every tile, as matrix products. Within a row,
// instructions run depth by depth: an instruction's depth is one more than that of what it reads in the same row.
#pragma once

#include "cuda/flags.h"
#include "cuda/worker.h"

namespace pcf::cuda {

constexpr int kRowWarps = 4;
template <Math kMath>
constexpr int kRowColumns = row_columns(kMath);

// Not inlined: 16 copies of it would cost the kernel its registers.
template <Math kMath>
__device__ __noinline__ void finish_in_row(const KernelParams& params, int images, float4 sum, int index, int tile,
                                           int column) {
  Worker<kMath> worker(params, 0, nullptr);
  worker.take(images, 0);
  float x[4] = {sum.x, sum.y, sum.z, sum.w};
  worker.finish(x, worker.instruction(index), tile, column);
}

// Runs one instruction in some columns of a tile of images. A warp computes two tiles of channels at a time for all of
// these columns, so that what it reads serves 16 products.
template <Math kMath>
__device__ __forceinline__ void make_in_row(const KernelParams& params, int images, int index, int first) {
  using F = Fragment<kMath>;
  Worker<kMath> worker(params, 0, nullptr);
  worker.take(images, 0);
  const int lane = worker.lane, width = params.layout.width;
  constexpr int kColumns = kRowColumns<kMath>;
  const InstructionPlan& i = worker.instruction(index);
  const TapPlan* taps = worker.template table<TapPlan>(params.layout.taps) + i.row;
  const int64_t tile_bytes = int64_t{i.row_fragments} * kWeightBytes;

  for (int tile = 2 * worker.warp; tile < i.tiles; tile += 2 * kRowWarps) {
    const char* weights = params.constants + i.row_weights + tile * tile_bytes;
    float sum[2][kColumns][4];
#pragma unroll
    for (int c = 0; c < kColumns; c++) {
      worker.begin_with_bias(sum[0][c], i, tile);
      worker.begin_with_bias(sum[1][c], i, min(tile + 1, i.tiles - 1));
    }
    for (int t = 0; t < i.n_row; t++) {
      const TapPlan tap = taps[t];
      const ValuePlan& v = worker.value(tap.value);
      const int column_bytes = v.fragments * kInputBytes;
      const char* input = worker.in_workspace(v, tap.dy, first + tap.dx);
#pragma unroll 1  // unrolled, it spills registers
      for (int f = 0; f < v.fragments; f++, weights += kWeightBytes, input += kInputBytes) {
        const auto w0 = F::weights(weights, lane), w1 = F::weights(weights + tile_bytes, lane);
#pragma unroll
        for (int c = 0; c < kColumns; c++) {
          const int step = min(c, width - 1 - first);  // beyond the grid, the last column is computed again
          const auto in = F::input(input + step * column_bytes, lane);
          F::multiply(sum[0][c], sum[0][c], w0, in);
          F::multiply(sum[1][c], sum[1][c], w1, in);
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kColumns; c++)
#pragma unroll
      for (int n = 0; n < 2; n++) {
        if (first + c >= width || tile + n >= i.tiles) continue;
        float (&x)[4] = sum[n][c];
        if (i.partial >= 0)
          *worker.row_sum(i, tile + n, first + c) = float4{x[0], x[1], x[2], x[3]};
        else
          finish_in_row<kMath>(params, images, float4{x[0], x[1], x[2], x[3]}, index, tile + n, first + c);
      }
  }
}

// Runs one depth: block_index_y() says which of its instructions, block_index() which tile of images and which columns.
template <Math kMath>
__global__ void __launch_bounds__(32 * kRowWarps, kRowBlocks)
    run_row_depth(__grid_constant__ const KernelParams params, RowDepth depth) {
  const int column_parts = params.layout.row_column_parts;
  const int* list = reinterpret_cast<const int*>(params.constants + params.layout.row_lists) + depth.first;
  make_in_row<kMath>(params, block_index() / column_parts, list[block_index_y()],
                     block_index() % column_parts * kRowColumns<kMath>);
}

// Runs all depths; the launch must be cooperative. A team of blocks takes one tile of images at a time, and each block
// takes some columns of it and, at each depth, every workers-th instruction.
template <Math kMath>
__global__ void __launch_bounds__(32 * kRowWarps, kRowBlocks)
    run_row_depths(__grid_constant__ const KernelParams params, int n_depths, RowSplit split) {
  const int column_parts = params.layout.row_column_parts;
  const int first = block_index() % column_parts * kRowColumns<kMath>, team = block_index() / column_parts;
  const RowDepth* depths = reinterpret_cast<const RowDepth*>(params.constants + params.layout.row_depths);
  const int* lists = reinterpret_cast<const int*>(params.constants + params.layout.row_lists);
  const uint32_t blocks = column_parts * split.workers, tiles = (params.tiles - team + split.teams - 1) / split.teams;
  uint32_t arrived = params.y * tiles * (n_depths - 1) * blocks;
  for (int images = team; images < params.tiles; images += split.teams)
    for (int d = 0; d < n_depths; d++) {
      if (d > 0) sync_blocks(params.row_barriers + team * kBarrierWords, arrived += blocks);
      for (int n = block_index_y(); n < depths[d].count; n += split.workers)
        make_in_row<kMath>(params, images, lists[depths[d].first + n], first);
    }
}

}  // namespace pcf::cuda

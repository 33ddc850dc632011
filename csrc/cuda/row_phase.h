// The row phase: taps that need only rows above, for a whole row of every tile, as matrix products. Its instructions
// have levels: one of a level reads what those of the levels before made in the same row of the same tile.
#pragma once

#include "cuda/flags.h"
#include "cuda/worker.h"

namespace pcf::cuda {

constexpr int kRowWarps = 4;
template <Math kMath>
constexpr int kRowColumns = row_columns(kMath);

// Not inlined: 16 copies of it would cost the kernel its registers.
template <Math kMath>
__device__ __noinline__ void finish_in_row(const Batch& batch, int images, float4 sum, int index, int tile, int column) {
  Worker<kMath> worker(batch, 0, nullptr);
  worker.take(images, 0);
  float x[4] = {sum.x, sum.y, sum.z, sum.w};
  worker.finish(x, worker.instruction(index), tile, column);
}

// One instruction in some columns of a tile of images. A warp makes two tiles of channels at a time for all of these
// columns, so that what it reads serves 16 products.
template <Math kMath>
__device__ __forceinline__ void make_in_row(const Batch& batch, int images, int index, int first) {
  using F = Fragment<kMath>;
  Worker<kMath> worker(batch, 0, nullptr);
  worker.take(images, 0);
  const int lane = worker.lane, width = batch.layout.width;
  constexpr int kColumns = kRowColumns<kMath>;
  const InstructionPlan& i = worker.instruction(index);
  const TapPlan* taps = worker.template table<TapPlan>(batch.layout.taps) + i.row;
  const int64_t tile_bytes = int64_t{i.row_fragments} * kWeightBytes;

  for (int tile = 2 * worker.warp; tile < i.tiles; tile += 2 * kRowWarps) {
    const char* weights = batch.constants + i.row_weights + tile * tile_bytes;
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
          const int step = min(c, width - 1 - first);  // beyond the grid the last column is made once more
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
        float(&x)[4] = sum[n][c];
        if (i.partial >= 0)
          *worker.row_sum(i, tile + n, first + c) = float4{x[0], x[1], x[2], x[3]};
        else
          finish_in_row<kMath>(batch, images, float4{x[0], x[1], x[2], x[3]}, index, tile + n, first + c);
      }
  }
}

// One level: block_index_y() is one of its instructions, block_index() a tile of images and some columns of it.
template <Math kMath>
__global__ void __launch_bounds__(32 * kRowWarps, kRowBlocks) run_row_level(__grid_constant__ const Batch batch,
                                                                           RowLevel level) {
  const int column_groups = batch.layout.row_column_groups;
  const int* list = reinterpret_cast<const int*>(batch.constants + batch.layout.row_lists) + level.first;
  make_in_row<kMath>(batch, block_index() / column_groups, list[block_index_y()],
                     block_index() % column_groups * kRowColumns<kMath>);
}

// All levels; the launch must be cooperative. A group of blocks takes a tile of images at a time, each block some
// columns of it and, in each level, every workers-th instruction.
template <Math kMath>
__global__ void __launch_bounds__(32 * kRowWarps, kRowBlocks) run_row_levels(__grid_constant__ const Batch batch,
                                                                            int n_levels, RowSplit split) {
  const int column_groups = batch.layout.row_column_groups;
  const int first = block_index() % column_groups * kRowColumns<kMath>, group = block_index() / column_groups;
  const RowLevel* levels = reinterpret_cast<const RowLevel*>(batch.constants + batch.layout.row_levels);
  const int* lists = reinterpret_cast<const int*>(batch.constants + batch.layout.row_lists);
  const uint32_t blocks = column_groups * split.workers, tiles = (batch.tiles - group + split.groups - 1) / split.groups;
  uint32_t arrived = batch.y * tiles * (n_levels - 1) * blocks;
  for (int images = group; images < batch.tiles; images += split.groups)
    for (int l = 0; l < n_levels; l++) {
      if (l > 0) meet_blocks(batch.row_meetings + group * kMeetingWords, arrived += blocks);
      for (int n = block_index_y(); n < levels[l].count; n += split.workers)
        make_in_row<kMath>(batch, images, lists[levels[l].first + n], first);
    }
}

}  // namespace pcf::cuda

// The row phase: taps that need only rows above, for a whole row of every tile, as matrix products.
#pragma once

#include "cuda/worker.h"

namespace pcf {

constexpr int kRowWarps = 4;
// Columns that a warp makes at once: as many as its registers hold sums of.
template <Math kMath>
constexpr int kRowColumns = kMath == Math::fp32 ? 4 : 8;

// Not inlined: 16 copies of it would cost the kernel its registers.
template <Math kMath>
__device__ __noinline__ void finish_in_row(const Batch& batch, int images, float4 sum, int index, int tile, int column) {
  Worker<kMath> worker(batch, 0, nullptr);
  worker.take(images, 0);
  float x[4] = {sum.x, sum.y, sum.z, sum.w};
  worker.finish(x, worker.instruction(index), tile, column);
}

// Instructions that do not depend on each other: block_index_y() is one in the list that begins at `list`,
// block_index() a tile of images and some columns of it. A warp makes two tiles of channels at a time for all of these
// columns, so that what it reads serves 16 products.
template <Math kMath>
__global__ void __launch_bounds__(32 * kRowWarps, 2) run_row_phase(__grid_constant__ const Batch batch, int list) {
  using F = Fragment<kMath>;
  Worker<kMath> worker(batch, 0, nullptr);
  const int lane = worker.lane, width = batch.layout.width;
  constexpr int kColumns = kRowColumns<kMath>;
  const int column_groups = (width + kColumns - 1) / kColumns;
  const int first = block_index() % column_groups * kColumns, images = block_index() / column_groups;
  worker.take(images, 0);
  const int index = worker.template table<int>(batch.layout.row_lists)[list + block_index_y()];
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

}  // namespace pcf

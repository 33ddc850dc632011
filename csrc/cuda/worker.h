// What a block does with one tile of images in one column step (plan.h), whatever the variant.
#pragma once

#include "cuda/draw.h"
#include "cuda/fragments.h"
#include "cuda/steps.h"

namespace pcf::cuda {

// What kernels take by value: a batch of images on the device. Arrays are dense; sub-pixels are [images, C, H, W].
struct KernelParams {
  Layout layout;
  const char* constants;
  char* workspace;         // [tiles][layout.tile_bytes]
  char* pipelines;         // [n_pipelines][layout.pipeline_bytes]
  uint32_t* row_barriers;  // [RowSplit::teams][kBarrierWords], zero when the image begins
  int images, tiles, n_pipelines, y;
  int32_t* levels;       // known ones in, all out
  const uint8_t* known;  // null: none
  const double* noise;
  const float* conditions;  // one operand after the other
  DrawOptions options;
  float* logits;              // [..., levels]; null: not wanted
  double* log_probability;    // of the levels drawn, at temperature 1; null: not wanted
  unsigned long long* error;  // error_code() of the first sub-pixel with logits that are not finite
};

// Grows in the order of drawing.
__device__ inline unsigned long long error_code(int site, int image, int channel) {
  return static_cast<unsigned long long>(site) << 40 | static_cast<unsigned long long>(image) << 16 | channel;
}

template <Math kMath>
class Worker {
 public:
  const KernelParams& params;
  const Layout& layout;
  const int thread, warp, lane;

  __device__ Worker(const KernelParams& b, int stage, char* shared_memory_or_null)
      : params(b), layout(b.layout), thread(thread_index()), warp(thread / 32), lane(thread % 32),
        stage_(table<StagePlan>(b.layout.stage_plans)[stage]),
        values_(table<ValuePlan>(b.layout.values) + stage_.values), shared_(shared_memory_or_null) {}

  // slot: which of the two slots holds the values received for this column step.
  __device__ void take(int tile, int slot) {
    tile_ = tile, slot_ = slot;
    memory_ = params.workspace + tile * layout.tile_bytes;
  }

  template <class T>
  __device__ const T* table(int64_t offset) const {
    return reinterpret_cast<const T*>(params.constants + offset);
  }
  __device__ const InstructionPlan& instruction(int index) const {
    return table<InstructionPlan>(layout.instructions)[index];
  }
  __device__ const StagePlan& stage() const { return stage_; }
  __device__ const ValuePlan& value(int index) const { return values_[index]; }

  // Columns left of the grid, and channels that fill up a fragment, are never written and must read as zero.
  __device__ void clear_shared() {
    for (int at = thread * 16; at < layout.clear_bytes; at += kThreads * 16)
      *reinterpret_cast<uint4*>(shared_ + layout.clear_from + at) = uint4{0, 0, 0, 0};
  }

  // -- column steps

  // Puts sums that need nothing of this column step into shared memory.
  template <class Weights>
  __device__ void sum_early(int x, Weights& weights) {
    for (int index = 0; index < stage_.count; index++) {
      const InstructionPlan& i = instruction(stage_.first + index);
      const int column = x - i.drawn;
      if (!in_grid(column)) {
        weights.skip(tiles_of_warp(i) * i.early_fragments);
        continue;
      }
      if (i.sums < 0) continue;
      for (int tile = warp; tile < i.tiles; tile += kWarps) {
        float sum[4];
        begin(sum, i, tile, column);
        accumulate(sum, i.early, i.n_early, column, weights);
        *early_sum(i, tile) = float4{sum[0], sum[1], sum[2], sum[3]};
      }
    }
  }

  // Runs the rest of the column step. Whatever goes on with the tile must wait for the block first.
  template <class Weights>
  __device__ void run(int x, Weights& weights) {
    for (int index = 0; index < stage_.count; index++) {
      const InstructionPlan& i = instruction(stage_.first + index);
      const int column = x - i.drawn;
      if (!in_grid(column)) {
        weights.skip(tiles_of_warp(i) * i.late_fragments);
        continue;
      }
      if (i.barrier) sync_block();
      for (int tile = warp; tile < i.tiles; tile += kWarps) {
        float sum[4];
        if (i.sums >= 0) {
          const float4 early = *early_sum(i, tile);
          sum[0] = early.x, sum[1] = early.y, sum[2] = early.z, sum[3] = early.w;
        } else {
          begin(sum, i, tile, column);
        }
        accumulate(sum, i.late, i.n_late, column, weights);
        finish(sum, i, tile, column);
      }
      if (i.tiles == 0) encode(i, column);
      if (i.is_output) {
        sync_block();
        draw_levels(i, column);
      }
    }
  }

  // -- one instruction's channels 16 * tile ... of one column

  // A sum begins with what the row phase left, or with the bias.
  __device__ void begin(float (&sum)[4], const InstructionPlan& i, int tile, int column) const {
    if (i.partial >= 0) {
      const float4 partial = *row_sum(i, tile, column);
      sum[0] = partial.x, sum[1] = partial.y, sum[2] = partial.z, sum[3] = partial.w;
    } else {
      begin_with_bias(sum, i, tile);
    }
  }

  __device__ void begin_with_bias(float (&sum)[4], const InstructionPlan& i, int tile) const {
    const float* bias = table<float>(i.bias) + channel_of_lane(tile);
    sum[0] = sum[1] = bias[0];
    sum[2] = sum[3] = bias[1];
  }

  // Applies the steps to a sum, or to a value, and stores the result.
  __device__ void finish(float (&x)[4], const InstructionPlan& i, int tile, int column) {
    const int channel = channel_of_lane(tile);
    if (i.value >= 0) load(x, i.value, i.value_lag, channel, column);
    const StepPlan* steps = table<StepPlan>(layout.steps) + i.steps;
    for (int s = 0; s < i.n_steps; s++) apply(x, steps[s], channel, column);
    // Channels that fill up a tile must be zero: a step may have made them infinite, and 0 times infinity is NaN.
    for (int r = 0; r < 4; r++) x[r] = channel + r / 2 < i.channels ? x[r] : 0.f;
    if (i.is_output) {
      for (int n = 0; n < 2; n++)
        *reinterpret_cast<float2*>(logits_of(i, image_of_lane() + n) + channel) = float2{x[n], x[n + 2]};
      return;
    }
    const ValuePlan& v = values_[i.out];
    for (int n = 0; n < 2; n++) {
      const int offset = offset_of<kMath>(channel, image_of_lane() + n);
      if (v.shared_columns) store_pair<kMath>(in_shared(v, column) + offset, x[n], x[n + 2]);
      if (v.kept) store_pair<kMath>(in_workspace(v, 0, column) + offset, x[n], x[n + 2]);
    }
  }

  // -- where things lie

  __device__ float4* row_sum(const InstructionPlan& i, int tile, int column) const {
    return reinterpret_cast<float4*>(memory_ + i.partial + (int64_t{column} * i.tiles + tile) * kSumBytes) + lane;
  }

  // A value's column in a row above or in the present one.
  __device__ char* in_workspace(const ValuePlan& v, int dy, int column) const {
    const int row = (params.y + dy + v.rows) % v.rows;
    return memory_ + v.global + (int64_t{row} * v.columns + v.pad_left + column) * (v.fragments * kInputBytes);
  }

  // One of a value's newest columns.
  __device__ char* in_shared(const ValuePlan& v, int column) const {
    // Columns may lie left of the grid.
    const int index = v.shared_columns == 1 ? 0 : (column + v.shared_columns * v.columns) % v.shared_columns;
    return shared_ + v.shared + slot_ * v.slot_bytes + index * (v.fragments * kInputBytes);
  }

 private:
  __device__ bool in_grid(int column) const { return column >= 0 && column < layout.width; }
  __device__ int tiles_of_warp(const InstructionPlan& i) const { return (i.tiles - warp + kWarps - 1) / kWarps; }
  __device__ int channel_of_lane(int tile) const { return tile * kRows + lane / 4 * 2; }  // and the next one
  __device__ int image_of_lane() const { return lane % 4 * 2; }                           // and the next one

  __device__ float4* early_sum(const InstructionPlan& i, int tile) const {
    return reinterpret_cast<float4*>(shared_ + i.sums + tile * kSumBytes) + lane;
  }

  // A value's column in the present row, computed `lag` column steps ago.
  __device__ const char* column_of(int value, int lag, int column) const {
    const ValuePlan& v = values_[value];
    return lag < v.shared_columns ? in_shared(v, column) : in_workspace(v, 0, column);
  }

  __device__ float* logits_of(const InstructionPlan& i, int image) const {
    char* logits = i.logits >= 0 ? shared_ + i.logits : memory_ + layout.logits_global;
    return reinterpret_cast<float*>(logits) + image * layout.logits_stride;
  }

  __device__ int64_t sub_pixel(int image, int channel, int x) const {
    return ((int64_t{image} * layout.image_channels + channel) * layout.height + params.y) * layout.width + x;
  }

  template <class Weights>
  __device__ void accumulate(float (&sum)[4], int first, int count, int column, Weights& weights) const {
    using F = Fragment<kMath>;
    float odd[4] = {};
    const TapPlan* taps = table<TapPlan>(layout.taps) + first;
    for (int t = 0; t < count; t++) {
      const TapPlan tap = taps[t];
      const char* input = column_of(tap.value, tap.lag, column + tap.dx);
      const int fragments = values_[tap.value].fragments;
      for (int f = 0; f < fragments; f++)
        F::multiply(sum, odd, F::weights(weights.next(), lane), F::input(input + f * kInputBytes, lane));
    }
    for (int r = 0; r < 4; r++) sum[r] += odd[r];
  }

  __device__ void load(float (&x)[4], int value, int lag, int channel, int column) const {
    const char* at = column_of(value, lag, column);
    for (int n = 0; n < 2; n++) {
      const float2 pair = load_pair<kMath>(at + offset_of<kMath>(channel, image_of_lane() + n));
      x[n] = pair.x, x[n + 2] = pair.y;
    }
  }

  __device__ void load_condition(float (&x)[4], int index, int channel, int column) const {
    const ConditionPlan& operand = table<ConditionPlan>(layout.conditions)[index];
    const float* data = params.conditions + operand.before * params.images;
    for (int r = 0; r < 4; r++) {
      int64_t at = min(tile_ * kTile + image_of_lane() + r % 2, params.images - 1);
      if (operand.varies_over_pixels) at = (at * layout.height + params.y) * layout.width + column;
      const int c = channel + r / 2;
      x[r] = c < operand.channels ? data[at * operand.channels + c] : 0.f;
    }
  }

  // Mean and 1 / sqrt(variance + epsilon) over all channels of a value; a barrier of the block must come before.
  __device__ void load_moments(float (&scale)[4], float (&mean)[4], const StepPlan& step, int column) const {
    const char* at = column_of(step.operand, step.lag, column);
    for (int n = 0; n < 2; n++) {
      const auto sum = [&](float mean, bool squares) {
        float total = 0;
        for (int c = 0; c < step.all_channels; c += 2) {
          const float2 pair = load_pair<kMath>(at + offset_of<kMath>(c, image_of_lane() + n));
          const float a = pair.x - mean, b = c + 1 < step.all_channels ? pair.y - mean : 0.f;
          total += squares ? a * a + b * b : a + b;
        }
        return total / step.all_channels;
      };
      mean[n] = mean[n + 2] = sum(0, false);
      scale[n] = scale[n + 2] = 1.f / sqrtf(sum(mean[n], true) + step.alpha);
    }
  }

  __device__ void apply(float (&x)[4], const StepPlan& step, int channel, int column) const {
    float operand[4] = {}, shift[4] = {};
    switch (step.reads) {
      case Operand::none: break;
      case Operand::value:
        step.all_channels ? load_moments(operand, shift, step, column)
                          : load(operand, step.operand, step.lag, channel, column);
        break;
      case Operand::condition: load_condition(operand, step.operand, channel, column); break;
      case Operand::constants:
        for (int r = 0; r < 4; r++) {
          operand[r] = table<float>(step.scale)[channel + r / 2];
          shift[r] = table<float>(step.shift)[channel + r / 2];
        }
        break;
    }
    apply_formula(step.kind, step.alpha, x, operand, shift);
  }

  // Draws levels from an output's logits; each warp draws some of the sub-pixels.
  __device__ void draw_levels(const InstructionPlan& i, int x) {
    for (int d = warp; d < kTile * i.n_image_channels; d += kWarps) {
      const int image = tile_ * kTile + d % kTile, channel = i.first_image_channel + d / kTile;
      if (image >= params.images) continue;
      const int64_t at = sub_pixel(image, channel, x);
      const float* logits = logits_of(i, d % kTile) + d / kTile * layout.head.parameters;
      if (params.logits)
        for (int k = lane; k < layout.head.parameters; k += 32)
          params.logits[at * layout.head.parameters + k] = logits[k];
      if (params.known && params.known[at]) continue;
      const int level = draw(logits, layout.head.parameters, params.options, params.noise[at], lane);
      if (params.log_probability && level >= 0) {
        const double log_probability = log_probability_of(level, logits, layout.head.parameters, lane);
        if (lane == 0) params.log_probability[at] = log_probability;
      }
      if (lane == 0) {
        params.levels[at] = max(level, 0);
        if (level < 0) atomic_min(params.error, error_code(params.y * layout.width + x, image, channel));
      }
    }
  }

  // Turns levels into a value that the network reads. Images that a tile lacks have level 0.
  __device__ void encode(const InstructionPlan& i, int column) {
    const ValuePlan& v = values_[i.out];
    const StepPlan* steps = table<StepPlan>(layout.steps) + i.steps;
    for (int d = thread; d < kTile * i.channels; d += kThreads) {
      const int image = tile_ * kTile + d % kTile, channel = d / kTile;
      const int64_t at = sub_pixel(image, i.first_image_channel + channel / i.width, column);
      const int level = image < params.images ? params.levels[at] : 0;
      float x[4] = {i.table < 0 ? static_cast<float>(level)
                                : table<float>(i.table)[level * i.width + channel % i.width]};
      for (int s = 0; s < i.n_steps; s++) {  // they read constants, or nothing; only x[0] counts
        float scale[4] = {}, shift[4] = {};
        if (steps[s].reads == Operand::constants)
          scale[0] = table<float>(steps[s].scale)[channel], shift[0] = table<float>(steps[s].shift)[channel];
        apply_formula(steps[s].kind, steps[s].alpha, x, scale, shift);
      }
      const int offset = offset_of<kMath>(channel, d % kTile);
      if (v.shared_columns) store_one<kMath>(in_shared(v, column) + offset, x[0]);
      if (v.kept) store_one<kMath>(in_workspace(v, 0, column) + offset, x[0]);
    }
  }

  const StagePlan& stage_;
  const ValuePlan* values_;
  char* const shared_;
  char* memory_ = nullptr;
  int tile_ = 0, slot_ = 0;
};

}  // namespace pcf::cuda

// A phased causal program laid out for the GPU: what the kernels read, and where everything lies.
//
// Images are worked on in tiles of 8, the n of the tensor cores' m16n8k16; output channels are its 16 rows. A warp
// computes 16 channels of 8 images at a time. Every array is cut into fragments, each of which a warp reads at once:
//   input    512 bytes, 8 images x 32 channels (16 of 4 bytes): [image][channel]
//   weights  1024 bytes, 16 output channels x 32 input channels (16), each lane's operands side by side
//   sums     512 bytes, 16 channels x 8 images of float32, each lane's four side by side
//
// A row of a tile is computed in column steps x = 0...width. Step x first runs the instructions that see the levels
// drawn in column x - 1 (drawn instructions) at that column, then the others at column x, and draws the levels of
// column x. A tap's lag is the number of column steps since the value that it reads was computed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "program.h"

namespace pcf::cuda {

enum class Math { fp32, tf32, bf16, fp16 };  // the type of what is multiplied; sums and steps are float32
enum class Variant { block, pipeline };

constexpr int kTile = 8, kRows = 16, kWarps = 8, kThreads = 32 * kWarps;
constexpr int kInputBytes = 512, kWeightBytes = 1024, kSumBytes = 512;
constexpr int kRing = 8;           // block: weight fragments of each warp in flight or in use
constexpr int kFlagBytes = 16;     // of a stage: struct Flags in pipeline.h
constexpr int kRowBlocks = 2;      // blocks of the row phase on each multiprocessor at once
constexpr int kBarrierWords = 32;  // for each team of its blocks: a count of arrivals, on a cache line of its own

// Input channels of a fragment.
constexpr int depth_of(Math math) { return math == Math::fp32 || math == Math::tf32 ? 16 : 32; }

// Columns that a warp computes at once in the row phase: as many as its registers have room for sums of.
constexpr int row_columns(Math math) { return math == Math::fp32 ? 4 : 8; }

struct StepPlan {
  StepKind kind;
  float alpha;
  Operand reads;
  int operand, lag;  // a value and how many column steps ago it was computed, or a condition operand
  int all_channels;  // of the operand, where the step reads all of them; else 0
  int scale, shift;  // where they lie in the constants, float32
};

// Conditions lie one after the other, each [images, channels] or [images, H, W, channels].
struct ConditionPlan {
  int channels, varies_over_pixels;
  int64_t before;  // numbers in the operands before it, for one image
};

struct TapPlan {
  int value, dy, dx, lag;
};

struct ValuePlan {
  int fragments;                // of one column
  int pad_left, rows, columns;  // of the rows kept in the workspace, columns with zeros on both sides
  int64_t global;               // where they lie in a tile's workspace
  int kept;                     // 0: nothing reads them there, so they are not written
  int shared, shared_columns;   // where the newest columns lie in shared memory, and how many
  int slot_bytes;               // between the two slots a stage receives the value in; 0: the stage computes it itself
};

struct InstructionPlan {
  int out, channels, tiles;                   // tiles: of 16 channels; 0: it turns levels into a value
  int value, value_lag;                       // pointwise: what its steps work on; -1: a sum
  int drawn;                                  // it runs one column behind
  int first_image_channel, n_image_channels;  // that it reads, or draws if it is an output
  int width, table;  // channels that a level becomes: row `level` of a table in the constants; -1: a number
  int is_output;
  int logits;          // an output's, in shared memory; -1: they lie in the workspace, at logits_global
  int barrier;         // whether to wait before it, as other warps may still be writing what its taps read
  int early, n_early;  // taps that can be summed before this column step's inputs arrive: the first, and how many
  int late, n_late;
  int row, n_row;                                      // taps of the row phase
  int early_fragments, late_fragments, row_fragments;  // weights of one tile of channels
  int steps, n_steps;
  int sums;             // pipeline: where the early sums wait in shared memory; -1: none
  int bias;             // in the constants, float32
  int64_t row_weights;  // in the constants
  int64_t partial;      // the row phase's sums in a tile's workspace; -1: there are none
};

struct StagePlan {
  int first, count;             // instructions
  int values;                   // its table of values
  int64_t weights[kWarps + 1];  // in the constants: each warp's fragments, in the order in which it reads them
  int drawn_fragments[kWarps];  // how many belong to drawn instructions, which come first
  int sent, n_sent;             // values that it sends on: the first, and how many
  int received_bytes;           // of one slot
  int64_t global_slots;         // in a pipeline's workspace
  int shared_weights, shared_slots;
  int resident;  // pipeline: how many of each warp's last fragments stay in shared memory
};

// Instructions of the row phase at the same depth, which do not depend on each other: a part of row_lists.
struct RowDepth {
  int first, count;
};

// Teams of blocks that run all depths of the row phase in one launch; 0 if too few blocks run at once, so that each
// depth is a launch. workers: a team's blocks for each part of a row's columns.
struct RowSplit {
  int teams, workers;
};

// The part of a plan that kernels take by value. Offsets are in bytes, and multiples of 16.
struct Layout {
  int image_channels, height, width;
  Head head;
  int logits_stride;  // floats from one image's logits to the next
  int stages;
  int row_column_parts;         // parts of a row's columns in the row phase, one for each block
  int clear_from, clear_bytes;  // shared memory for values, zero when a row begins
  int64_t logits_global;
  int64_t steps, conditions, taps, values, instructions, stage_plans, row_depths, row_lists,
      sent;                // tables in the constants
  int64_t tile_bytes;      // workspace of a tile
  int64_t pipeline_bytes;  // workspace of a pipeline: flags, then slots
};

struct Limits {
  int shared_bytes = 0;  // that a block can have
  int multiprocessors = 0;
  int largest_cluster = 1;  // blocks; 1: the device has no clusters
};

struct Plan {
  Math math;
  Variant variant;
  Layout layout;
  std::vector<char> constants;  // goes to the device once
  std::vector<RowDepth> row_depths;
  int shared_bytes = 0;
  int64_t pixel_weight_bytes = 0, row_weight_bytes = 0;
  std::vector<int> stage_instructions,
      stage_barriers;  // of each stage in a column step; barriers: those between instructions
  std::vector<int64_t> stage_weight_bytes, stage_early_bytes;  // early: of taps summed before the inputs arrive
};

// Throws std::invalid_argument, saying why, where the program does not fit the variant.
Plan make_plan(const Program&, Math, Variant, const Limits&);

}  // namespace pcf::cuda

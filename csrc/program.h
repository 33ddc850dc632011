// The phased causal program that the compiled runtimes execute: pixelcnn_fast/sampling/passes.py in C++.
// Weights are borrowed while a runtime is built (it packs its own copies) and not read afterwards.
#pragma once

#include <cstdint>
#include <vector>

#include "steps.h"

namespace pcf {

// One operation on an instruction's sum x, channel by channel. What its kind reads, and what alpha means, is said in
// pixelcnn_fast/program/steps.py, the table from which CMake writes steps.h.
struct Step {
  StepKind kind;
  double alpha = 1;
  int operand = -1;             // the value or the condition slot it reads
  const void* scale = nullptr;  // constants: [channels] each, in the program's dtype
  const void* shift = nullptr;
};

// Horizontally adjacent taps as one matrix [width * channels of source, channels of out], row-major.
struct Run {
  int source, dy, dx, width;
  const void* weight;
};

// A whole row at once | at a pixel, before its last draw | after it.
enum class Phase { row, pixel, drawn };

// Levels as an instruction reads them: those of image channels first ... first + count - 1, each as the number it is,
// or as row `level` of a table [levels, width]: a one-hot vector or an embedding. The instruction has count * width
// channels.
struct Input {
  int first = 0, count = 0, width = 1;
  const void* table = nullptr;
};

// out = steps(bias + row runs + pixel runs), or steps(base) where base >= 0, or steps(levels just drawn).
struct Instruction {
  int out, channels;
  Phase phase;
  int base = -1;
  Input input;                  // count > 0: its sum is the levels just drawn
  const void* bias = nullptr;   // [channels]
  std::vector<Run> row_runs, pixel_runs;
  std::vector<Step> steps;
  int lead = 0;                 // of the wavefront: columns ahead of the pixel that is drawn
  int after = 0;                // how many draws of its pixel come before it
};

// What is kept of a value when rows are sampled one by one: that many rows, each with zero columns on both sides.
struct Storage {
  int channels, rows, pad_left, pad_right;
};

// What steps read of a condition: one vector per image, or one per pixel.
struct Slot {
  int channels;
  bool varies_over_pixels;
};

struct Program {
  int image_channels, height, width, levels;
  // The values that hold the logits, one per draw, channel * levels + level. Each draw gives the next
  // image_channels / outputs.size() image channels: all at once, or one after the other, seeing those before.
  std::vector<int> outputs;
  std::vector<Storage> storage;  // by value; values are numbered from 0
  std::vector<Instruction> instructions;
  std::vector<Slot> conditions;
  int lag = 0;                   // rows may start that many columns behind the row above; 0: one row at a time
};

// How values are drawn; by default from what the model says.
struct SamplingOptions {
  double temperature = 1;  // logits are divided by it; 0: the most likely level
  int top_k = 0;           // only the k most likely levels may be drawn; 0: all
  double top_p = 1;        // of those, the most likely that together just reach this probability
};

// One batch of images to sample, complete or teacher-force. All arrays are dense and owned by the caller.
struct Job {
  int images;
  int32_t* levels;                      // [images, C, H, W]: known levels in, all levels out
  const uint8_t* known = nullptr;       // [images, C, H, W]: nonzero keeps the given level; null: none known
  const double* noise;                  // [images, C, H, W] in [0, 1)
  std::vector<const void*> conditions;  // per slot [images, channels] or [images, H, W, channels]
  SamplingOptions options;
  void* logits = nullptr;               // [images, C, H, W, levels] or null: not wanted
  double* log_probability = nullptr;    // [images, C, H, W] at temperature 1, 0 where known; or null: not wanted
};

enum class Weights { same, bf16 };  // how runs' weights are stored: the program's dtype, or narrower

}  // namespace pcf

// The phased causal program that the compiled runtimes execute: pixelcnn_fast/program/phased.py in C++.
// Weights are borrowed while a runtime is built (it packs its own copies) and not read afterwards.
#pragma once

#include <cstdint>
#include <vector>

#include "steps.h"

namespace pcf {

// One operation on an instruction's x, channel by channel. pixelcnn_fast/program/steps.py, the table from which CMake
// writes steps.h, says what each kind reads and what alpha means.
struct Step {
  StepKind kind;
  double alpha = 1;
  int operand = -1;             // the value, or the number of the condition operand, that it reads
  const void* scale = nullptr;  // constants: [channels] each, in the program's dtype
  const void* shift = nullptr;
  int dy = 0, dx = 0;  // where the value is read, from the pixel
};

// Horizontally adjacent taps as one matrix [width * channels of source, channels of out], row-major.
struct Run {
  int source, dy, dx, width;
  const void* weight;
};

// Runs for a whole row at once | at a pixel, before its last draw | at a pixel, after its last draw | after the row's
// last pixel, for the rows below.
enum class Phase { row, pixel, drawn, finished };

// The image as an instruction reads it: image channels first ... first + count - 1, each as a number, or as row `level`
// of a table [levels, width]: a one-hot vector or an embedding. The instruction has count * width channels.
struct ImageInput {
  int first = 0, count = 0, width = 1;
  const void* table = nullptr;
  int levels = 0;  // rows of the table
};

// out = steps(x), where x is the part of the image that was drawn, or bias + row runs + pixel runs, or a value.
enum class InstructionKind { from_levels, convolution, pointwise };

struct Instruction {
  int out, channels;
  InstructionKind kind;
  Phase phase;
  ImageInput input = {};           // from_levels
  const void* bias = nullptr;      // convolution: [channels], or null for zeros
  std::vector<Run> row_runs = {};  // convolution; summed in the row phase
  std::vector<Run> pixel_runs = {};
  int value = -1;  // pointwise
  std::vector<Step> steps = {};
  int lead = 0;          // in a wavefront: how many columns ahead of the pixel that is drawn
  int after = 0;         // how many draws of its pixel come before it
  int dy = 0, dx = 0;    // where the value is read, from the pixel
  int scan = kWholeRow;  // row, finished: the instructions of one scan, which follow each other, go through the row
                         // pixel by pixel; the others compute it at once
  bool from_the_right = false;  // a scan

  static constexpr int kWholeRow = -1;
};

// What is kept of a value when rows are sampled one by one: `rows` rows, each with zero columns on both sides.
struct Storage {
  int channels, rows, pad_left, pad_right;
};

// What steps read of the condition: one vector per image, or one per pixel.
struct ConditionOperand {
  int channels;
  bool varies_over_pixels;
};

// The model's output at a pixel is `distributions` distributions of `parameters` numbers each. Each distribution takes
// `uniforms` numbers of the noise and gives the values of the next image_channels / distributions image channels.
enum class HeadKind { categorical };  // parameters: the logits of the levels

struct HeadTraits {
  const char* name;   // what a head in Python calls it: Head.native
  const char* value;  // the type of the values in Job: a dtype of PyTorch
  int value_bytes;
  bool single;  // a distribution gives one value, drawn with one uniform
};
inline constexpr HeadTraits kHeadKinds[] = {{"categorical", "int32", sizeof(int32_t), true}};

constexpr const HeadTraits& traits(HeadKind kind) { return kHeadKinds[static_cast<int>(kind)]; }

struct Head {
  HeadKind kind;
  int distributions, parameters, uniforms;
  int levels;  // values are integers from 0 to levels - 1; 0: they are real numbers
};

struct Program {
  int image_channels, height, width;
  Head head;
  // The values that hold the parameters, one per draw. Each draw takes the next distributions / outputs.size()
  // distributions: all at once, or one after the other, where each sees those before.
  std::vector<int> outputs;
  std::vector<Storage> storage;  // by value; values are numbered from 0
  std::vector<Instruction> instructions;
  std::vector<ConditionOperand> conditions;
  int lag = 0;  // how many columns behind the row above a row may start; 0: one row at a time
};

// How values are drawn; by default from the model's own distribution.
struct SamplingOptions {
  double temperature = 1;  // logits are divided by it; 0: the most likely level
  int top_k = 0;           // only the k most likely levels may be drawn; 0: all
  double top_p = 1;        // of those, the fewest that reach this probability, the likeliest first

  bool exclude_levels() const { return top_k > 0 || top_p < 1; }
};

// One batch of images to sample, complete or teacher-force. All arrays are dense and owned by the caller.
struct Job {
  int images;
  void* values;  // [images, C, H, W] of the head's type: known ones in, all of them out
  // [images, C, H, W]: nonzero where the value is known; null: none is. A distribution is drawn unless all its values
  // are known.
  const uint8_t* known = nullptr;
  const double* noise;                  // [images, distributions * uniforms, H, W] in [0, 1)
  std::vector<const void*> conditions;  // per operand [images, channels] or [images, H, W, channels]
  SamplingOptions options = {};
  void* parameters = nullptr;         // [images, distributions, H, W, parameters] or null: not wanted
  double* log_probability = nullptr;  // [images, C, H, W] of the values drawn, under the model itself; or null
};

enum class Weights { same, bf16 };  // how runs' weights are stored: the program's dtype, or narrower

}  // namespace pcf

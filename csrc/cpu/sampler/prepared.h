// A program made ready for the CPU: weights packed, sizes padded, and barriers set where threads must wait for each
// other.
#pragma once

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "cpu/sampler/schedule.h"
#include "cpu/simd/buffer.h"
#include "cpu/simd/kernels.h"
#include "program.h"

namespace pcf::cpu {

struct PreparedRun {
  int source, dy, dx;
  Packed weights;
};

template <class T>
struct PreparedStep {
  StepKind kind;
  T alpha;
  int operand, dy, dx;
  std::vector<T> scale, shift;

  bool reads_value() const { return operand_of(kind) == Operand::value; }
  bool reads_condition() const { return operand_of(kind) == Operand::condition; }
};

template <class T>
struct PreparedInstruction {
  int out, channels, padded, lead, after;
  InstructionKind kind;
  Phase phase;
  bool is_output;
  ImageInput input;
  int value, dy, dx;
  int scan;
  bool from_the_right;
  std::vector<T> table, bias;  // bias: padded to whole blocks
  std::vector<PreparedRun> row_runs, pixel_runs;
  std::vector<PreparedStep<T>> steps;
  bool ends_in_products = false;  // whether the last product can apply the steps
  // Whether another thread may still be writing what is read, for the sums over rows above or at a pixel.
  bool barrier_in_row = false, barrier_at_pixel = false;

  bool in_scan() const { return scan != Instruction::kWholeRow; }
  // Whether it is computed for a whole row at once.
  bool by_rows() const { return !in_scan() && ((phase == Phase::row && !is_output) || phase == Phase::finished); }
  // Whether its sum over rows above is kept until its pixel's turn comes.
  bool keeps_partial() const { return !row_runs.empty() && !by_rows(); }
};

// What is computed for a whole row, and does not need each other: instructions, and scans, each of which one thread
// goes through. Scans are numbered by the instruction that they begin with.
struct Stage {
  std::vector<int> by_rows, scans;
};

template <class T>
class PreparedProgram {
 public:
  PreparedProgram(const Program& program, Weights weights, const Kernels<T>& kernels) : kernels(kernels) {
    for (const auto& s : program.storage) depth = std::max(depth, s.rows - 1);
    const auto bytes = [&](const std::vector<Run>& runs, int channels, Weights weights) {
      int64_t sum = 0;
      for (const auto& run : runs) sum += kernels.block_bytes(depth_of(program, run), weights) * blocks(channels);
      return sum;
    };
    int64_t total = 0;
    for (const auto& i : program.instructions)
      total += bytes(i.row_runs, i.channels, of_rows(weights)) + bytes(i.pixel_runs, i.channels, weights);
    packed = Buffer(total);
    set_rounded(program, weights);
    pack(program, weights);
    const auto scans_before = [](const auto& i) { return i.in_scan() && i.phase == Phase::row; };
    if (std::any_of(instructions.begin(), instructions.end(), scans_before)) before_row = stages_of(Phase::row);
    after_row = stages_of(Phase::finished);
    set_barriers(program.outputs.size());
    count_work(program);
  }

  const Kernels<T>& kernels;
  std::vector<PreparedInstruction<T>> instructions;
  std::vector<const PreparedInstruction<T>*> inputs, outputs;
  std::vector<Stage> before_row, after_row;  // before_row: empty if there are no scans, when no stages are needed
  Buffer packed;
  std::vector<bool> rounded;  // which values are kept in bf16, too, for the products that read them
  int depth = 0;              // the furthest row above that anything reads
  int widest = 0;             // channels of the widest instruction, padded
  int widest_row = 0;         // of the widest in the row phase
  int most_steps = 0;         // of an instruction
  ProgramWork work;

 private:
  int blocks(int channels) const { return (channels + kernels.block - 1) / kernels.block; }
  static int depth_of(const Program& program, const Run& run) {
    return run.width * program.storage[run.source].channels;
  }

  // The row phase reads its weights once per row, where widening narrow ones would only cost time.
  Weights of_rows(Weights weights) const { return kernels.multiplies_bf16() ? weights : Weights::same; }

  void set_rounded(const Program& program, Weights weights) {
    rounded.resize(program.storage.size());
    if (weights != Weights::bf16 || !kernels.multiplies_bf16()) return;
    for (const auto& i : program.instructions)
      for (const auto* runs : {&i.row_runs, &i.pixel_runs})
        for (const auto& run : *runs)
          rounded[run.source] = program.storage[run.source].channels % kernels.depths_of_rounded == 0;
  }

  // The pixel phase streams its weights once per pixel, so they lie together, in the order of use, and are narrow if
  // the user asks for that.
  void pack(const Program& program, Weights weights) {
    char* next = packed.get();
    const auto runs = [&](const std::vector<Run>& runs, int channels, Weights weights) {
      std::vector<PreparedRun> result;
      for (const auto& run : runs) {
        const int k = depth_of(program, run);
        const int64_t block_bytes = kernels.block_bytes(k, weights);
        kernels.pack(static_cast<const T*>(run.weight), k, channels, weights, next);
        result.push_back({run.source, run.dy, run.dx, {next, k, block_bytes, weights}});
        next += block_bytes * blocks(channels);
      }
      return result;
    };
    const auto copy = [](const void* from, int n) {
      const T* values = static_cast<const T*>(from);
      return from ? std::vector<T>(values, values + n) : std::vector<T>();
    };
    for (const auto& i : program.instructions) {
      PreparedInstruction<T> p{};
      p.out = i.out, p.channels = i.channels, p.lead = i.lead, p.after = i.after;
      p.kind = i.kind, p.phase = i.phase, p.input = i.input, p.value = i.value;
      p.dy = i.dy, p.dx = i.dx, p.scan = i.scan, p.from_the_right = i.from_the_right;
      p.is_output = std::count(program.outputs.begin(), program.outputs.end(), i.out) > 0;
      p.table = copy(i.input.table, i.input.levels * i.input.width);
      p.padded = blocks(i.channels) * kernels.block;
      p.bias = copy(i.bias, i.channels);
      p.bias.resize(p.padded);
      p.pixel_runs = runs(i.pixel_runs, i.channels, weights);
      for (const auto& s : i.steps)
        p.steps.push_back({s.kind, static_cast<T>(s.alpha), s.operand, s.dy, s.dx, copy(s.scale, i.channels),
                           copy(s.shift, i.channels)});
      p.ends_in_products = in_products(p);
      instructions.push_back(std::move(p));
    }
    for (size_t i = 0; i < instructions.size(); i++) {
      auto& p = instructions[i];
      p.row_runs = runs(program.instructions[i].row_runs, p.channels, of_rows(weights));
      if (p.kind == InstructionKind::from_levels) inputs.push_back(&p);
      widest = std::max(widest, p.padded);
      if (p.by_rows()) widest_row = std::max(widest_row, p.padded);
      most_steps = std::max<int>(most_steps, p.steps.size());
    }
    for (int output : program.outputs)
      for (const auto& p : instructions)
        if (p.out == output) outputs.push_back(&p);
  }

  // Whether its steps are a sum, then relu, or fewer; products read and write whole blocks, and an output has room.
  static bool in_products(const PreparedInstruction<T>& p) {
    const auto is_sum = [](const PreparedStep<T>& s) { return s.kind == StepKind::add && s.alpha == 1; };
    const auto first = p.steps.begin() + (!p.steps.empty() && is_sum(p.steps[0]));
    const bool ends = first == p.steps.end() || (first->kind == StepKind::relu && first + 1 == p.steps.end());
    return ends && (p.channels == p.padded || (p.is_output && p.steps.empty()));
  }

  // What is computed for a whole row in this phase: an instruction, or a scan, is in the stage after those that it
  // reads in the present row.
  std::vector<Stage> stages_of(Phase phase) const {
    std::vector<Stage> stages;
    std::map<int, int> stage;  // by value; the others are known before the first
    for (size_t begin = 0, end; begin < instructions.size(); begin = end) {
      end = begin + 1;
      if (instructions[begin].phase != phase || instructions[begin].is_output) continue;
      if (instructions[begin].in_scan())
        while (end < instructions.size() && instructions[end].scan == instructions[begin].scan) end++;
      int needed = 0;
      const auto needs = [&](int value, int dy) {
        if (const auto found = stage.find(value); dy == 0 && found != stage.end())
          needed = std::max(needed, found->second + 1);
      };
      for (size_t k = begin; k < end; k++) {
        const auto& i = instructions[k];
        if (i.kind == InstructionKind::pointwise) needs(i.value, i.dy);
        for (const auto* runs : {&i.row_runs, &i.pixel_runs})
          for (const auto& run : *runs) needs(run.source, run.dy);
        for (const auto& step : i.steps)
          if (step.reads_value()) needs(step.operand, step.dy);
      }
      for (size_t k = begin; k < end; k++) stage[instructions[k].out] = needed;
      stages.resize(std::max<size_t>(stages.size(), needed + 1));
      (instructions[begin].in_scan() ? stages[needed].scans : stages[needed].by_rows).push_back(begin);
    }
    return stages;
  }

  // Each thread owns some channels, the same ones in all values of equal width. So what a pointwise instruction starts
  // from, and a step's operand, is the thread's own. But whatever reads all channels of a value also reads those of
  // other threads: if the value was written since the last barrier, there is a barrier before the read, which serves
  // all writes before it. There is also one between the sums over rows above and the pixels, and two at each draw.
  void set_barriers(int draws) {
    std::set<int> written;
    const auto needs_barrier = [&](const std::vector<PreparedRun>& runs, const std::vector<PreparedStep<T>>& steps) {
      bool reads = false;
      for (const auto& run : runs) reads |= written.count(run.source) > 0;
      for (const auto& step : steps) reads |= reads_all_channels(step.kind) && written.count(step.operand);
      if (reads) written.clear();
      return reads;
    };
    const auto at_pixels = [&](int after) {
      for (auto& i : instructions) {
        if (i.kind == InstructionKind::from_levels || i.after != after) continue;
        if (i.phase == Phase::row || i.phase == Phase::finished) continue;
        i.barrier_at_pixel = needs_barrier(i.pixel_runs, i.steps);
        written.insert(i.out);
      }
    };
    // What is computed after a pixel's last draw is read by the next sums over rows above, or, if there are none in
    // between, by the next pixel.
    at_pixels(draws);
    const std::set<int> last_written = written;
    for (auto& i : instructions) {
      if ((i.phase != Phase::row && i.row_runs.empty()) || i.phase == Phase::finished) continue;
      i.barrier_in_row = needs_barrier(i.row_runs, i.keeps_partial() ? std::vector<PreparedStep<T>>() : i.steps);
      if (!i.keeps_partial()) written.insert(i.out);
    }
    written = last_written;
    for (int draw = 0; draw < draws; draw++) {
      at_pixels(draw);
      written.clear();
    }
  }

  void count_work(const Program& program) {
    const auto products = [&](const std::vector<PreparedRun>& runs, int channels) {
      double sum = 0;
      for (const auto& run : runs) {
        const bool is_bf16 = run.weights.weights == Weights::bf16 && kernels.multiplies_bf16();
        sum += (is_bf16 ? 0.5 : 1) * run.weights.depth * channels;  // in float32's multiply-adds
      }
      return sum;
    };
    // Of a run, what it reads for the first time: the other pixels it has read before.
    const auto reads = [&](const std::vector<PreparedRun>& runs) {
      double sum = 0;
      for (const auto& run : runs) sum += program.storage[run.source].channels;
      return sum;
    };
    for (const auto& i : instructions) {
      Work& sums = work.partial_sums.emplace_back();
      Work& rest = i.by_rows() ? work.row_phase : work.pixels;
      Work& above = i.keeps_partial() ? sums : rest;
      above.products += products(i.row_runs, i.padded), above.calls += &above == &sums,
          above.barriers += i.barrier_in_row, above.reads += reads(i.row_runs);
      rest.products += products(i.pixel_runs, i.padded), rest.calls++, rest.barriers += i.barrier_at_pixel,
          rest.reads += reads(i.pixel_runs);
      for (const auto& step : i.steps) rest.elements += double{1} * i.channels * cost(step.kind);
      work.longest_lead = std::max(work.longest_lead, i.lead);
    }
    constexpr int kOfParameter = 60;  // the cost of drawing from it
    work.pixels.elements += double{kOfParameter} * program.head.parameters * program.head.distributions;
    work.pixels.barriers += 2 * outputs.size();
    work.row_phase.barriers++;
    work.most_threads = widest / kernels.block;
  }
};

}  // namespace pcf::cpu

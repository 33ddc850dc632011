// A program packed for the CPU: its weights, padded to whole blocks, and barriers where threads must wait for each
// other.
#pragma once

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "cpu/memory/pool.h"
#include "cpu/sampler/schedule.h"
#include "cpu/simd/kernels.h"
#include "program.h"

namespace pcf::cpu {

struct PackedRun : Run {
  Packed packed;
};

template <class T>
struct PackedStep : Step {
  std::vector<T> scales, shifts;

  bool is_sum() const { return kind == StepKind::add && static_cast<T>(alpha) == 1; }
};

// An instruction whose runs and steps have their own copies of what the program only borrows.
template <class T>
struct PackedInstruction : Instruction {
  std::vector<PackedRun> row_runs = {}, pixel_runs = {};  // in place of the instruction's
  std::vector<PackedStep<T>> steps = {};
  std::vector<T> table = {}, biases = {};  // biases: padded to whole blocks
  int padded = 0;
  bool is_output = false;
  bool ends_in_products = false;  // whether the last product can apply the steps
  // Whether another thread may still be writing what is read, for the sums over row runs or at a pixel.
  bool barrier_in_row = false, barrier_at_pixel = false;

  // Whether it is computed for a whole row at once.
  bool by_rows() const { return !in_scan(*this) && ((phase == Phase::row && !is_output) || phase == Phase::finished); }
  // Whether it is computed pixel by pixel, scans apart.
  bool is_at_pixels() const {
    return !reads_image(*this) && (phase != Phase::row || is_output) && phase != Phase::finished;
  }
  // Whether its sum over row runs is kept until its pixel's turn comes.
  bool keeps_partial() const { return !row_runs.empty() && !by_rows(); }
};

// What is computed for a whole row, and does not need each other: instructions, and scans, each of which one thread
// goes through. Scans are numbered by the instruction that they begin with.
struct Stage {
  std::vector<int> by_rows, scans;
};

template <class T>
class PackedProgram {
 public:
  PackedProgram(const Program& program, WeightFormat format, const Kernels<T>& kernels) : kernels(kernels) {
    for (const auto& s : program.storage) depth = std::max(depth, s.rows - 1);
    set_rounded(program, format);
    pack(program, format);
    const auto scans_before = [](const auto& i) { return in_scan(i) && i.phase == Phase::row; };
    if (std::any_of(instructions.begin(), instructions.end(), scans_before)) before_row = stages_of(Phase::row);
    after_row = stages_of(Phase::finished);
    set_barriers(program.outputs.size());
    count_work(program);
  }

  const Kernels<T>& kernels;
  std::vector<PackedInstruction<T>> instructions;
  std::vector<const PackedInstruction<T>*> inputs, outputs;
  std::vector<Stage> before_row, after_row;  // before_row: empty if there are no scans, when no stages are needed
  std::optional<ZeroedBlock> weights;
  int64_t weight_bytes = 0;
  std::vector<bool> rounded;  // which values are kept in bf16, too, for the products that read them
  int depth = 0;              // the furthest row above that anything reads
  int widest = 0;             // channels of the widest instruction, padded
  int widest_row = 0;         // of the widest in the row phase
  int most_steps = 0;         // of an instruction
  ProgramWork work;

 private:
  int blocks(int channels) const { return (channels + kernels.block - 1) / kernels.block; }

  // The row phase reads its weights once per row, where widening narrow ones would only cost time.
  WeightFormat of_rows(WeightFormat format) const { return kernels.multiplies_bf16() ? format : WeightFormat::same; }

  void set_rounded(const Program& program, WeightFormat format) {
    rounded.resize(program.storage.size());
    if (format != WeightFormat::bf16 || !kernels.multiplies_bf16()) return;
    for (const auto& i : program.instructions)
      for (const auto* runs : {&i.row_runs, &i.pixel_runs})
        for (const auto& run : *runs)
          rounded[run.source] = program.storage[run.source].channels % kernels.depths_of_rounded == 0;
  }

  // The pixel phase streams its weights once per pixel, so they lie together, in the order of use, and are narrow if
  // the user asks for that.
  void pack(const Program& program, WeightFormat format) {
    const auto copy = [](const void* from, int n) {
      const T* values = static_cast<const T*>(from);
      return from ? std::vector<T>(values, values + n) : std::vector<T>();
    };
    for (const auto& i : program.instructions) {
      PackedInstruction<T>& p = instructions.emplace_back(PackedInstruction<T>{i});
      p.is_output = std::count(program.outputs.begin(), program.outputs.end(), i.out) > 0;
      p.table = copy(i.input.table, i.input.levels * i.input.width);
      p.padded = blocks(i.channels) * kernels.block;
      p.biases = copy(i.bias, i.channels);
      p.biases.resize(p.padded);
      for (const auto& run : i.row_runs) p.row_runs.push_back({run, layout(program, run, of_rows(format))});
      for (const auto& run : i.pixel_runs) p.pixel_runs.push_back({run, layout(program, run, format)});
      for (const auto& s : i.steps) p.steps.push_back({s, copy(s.scale, i.channels), copy(s.shift, i.channels)});
      p.ends_in_products = in_products(p);
      Instruction& borrowing = p;  // from the program, which may be gone later
      borrowing.row_runs.clear(), borrowing.pixel_runs.clear(), borrowing.steps.clear();
      borrowing.bias = borrowing.input.table = nullptr;
      for (auto& s : p.steps) s.scale = s.shift = nullptr;
    }
    each_run([&](PackedRun& run, int channels) { weight_bytes += run.packed.block_bytes * blocks(channels); });
    char* next = weights.emplace(weight_bytes, false).get();
    each_run([&](PackedRun& run, int channels) {
      kernels.pack(static_cast<const T*>(run.weight), run.packed.depth, channels, run.packed.format, next);
      run.packed.data = next, run.weight = nullptr;
      next += run.packed.block_bytes * blocks(channels);
    });
    for (const auto& p : instructions) {
      if (reads_image(p)) inputs.push_back(&p);
      widest = std::max(widest, p.padded);
      if (p.by_rows()) widest_row = std::max(widest_row, p.padded);
      most_steps = std::max<int>(most_steps, p.steps.size());
    }
    for (int output : program.outputs)
      for (const auto& p : instructions)
        if (p.out == output) outputs.push_back(&p);
  }

  Packed layout(const Program& program, const Run& run, WeightFormat format) const {
    const int depth = run.width * program.storage[run.source].channels;
    return {nullptr, depth, kernels.block_bytes(depth, format), format};
  }

  // In the order in which weights are packed: first those of all pixel phases.
  void each_run(const auto& f) {
    for (auto runs : {&PackedInstruction<T>::pixel_runs, &PackedInstruction<T>::row_runs})
      for (auto& i : instructions)
        for (PackedRun& run : i.*runs) f(run, i.channels);
  }

  // Whether its steps are a sum, then relu, or fewer; products read and write whole blocks, and an output has room.
  static bool in_products(const PackedInstruction<T>& p) {
    const auto first = p.steps.begin() + (!p.steps.empty() && p.steps[0].is_sum());
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
      if (in_scan(instructions[begin]))
        while (end < instructions.size() && instructions[end].scan == instructions[begin].scan) end++;
      int needed = 0;
      for (size_t k = begin; k < end; k++)
        for_each_read(instructions[k], [&](int value, int dy, int) {
          if (const auto found = stage.find(value); dy == 0 && found != stage.end())
            needed = std::max(needed, found->second + 1);
        });
      for (size_t k = begin; k < end; k++) stage[instructions[k].out] = needed;
      stages.resize(std::max<size_t>(stages.size(), needed + 1));
      (in_scan(instructions[begin]) ? stages[needed].scans : stages[needed].by_rows).push_back(begin);
    }
    return stages;
  }

  // Each thread owns some channels, the same ones in all values of equal width. So what a pointwise instruction starts
  // from, and a step's operand, is the thread's own. But whatever reads all channels of a value also reads those of
  // other threads: if the value was written since the last barrier, there is a barrier before the read, which serves
  // all writes before it. There is also one between the sums over row runs and the pixels, and two at each draw.
  void set_barriers(int draws) {
    std::set<int> written;
    const auto needs_barrier = [&](const std::vector<PackedRun>& runs, const std::vector<PackedStep<T>>& steps) {
      bool reads = false;
      for (const auto& run : runs) reads |= written.count(run.source) > 0;
      for (const auto& step : steps) reads |= traits(step.kind).reads_all_channels && written.count(step.operand);
      if (reads) written.clear();
      return reads;
    };
    const auto set_pixel_barriers = [&](int after) {
      for (auto& i : instructions) {
        if (reads_image(i) || i.after != after || i.phase == Phase::row || i.phase == Phase::finished) continue;
        i.barrier_at_pixel = needs_barrier(i.pixel_runs, i.steps);
        written.insert(i.out);
      }
    };
    // What is computed after a pixel's last draw is read by the next sums over row runs, or, if there are none in
    // between, by the next pixel.
    set_pixel_barriers(draws);
    const std::set<int> last_written = written;
    for (auto& i : instructions) {
      if ((i.phase != Phase::row && i.row_runs.empty()) || i.phase == Phase::finished) continue;
      i.barrier_in_row = needs_barrier(i.row_runs, i.keeps_partial() ? std::vector<PackedStep<T>>() : i.steps);
      if (!i.keeps_partial()) written.insert(i.out);
    }
    written = last_written;
    for (int draw = 0; draw < draws; draw++) {
      set_pixel_barriers(draw);
      written.clear();
    }
  }

  // What takes this of float32 takes so many times as much of T.
  static constexpr double kOfElement = double{sizeof(T)} / sizeof(float);

  // Adds what runs take of a thread, whose result has so many channels.
  void count_runs(Work& work, const Program& program, const std::vector<PackedRun>& runs, int channels) const {
    for (const auto& run : runs) {
      const bool is_bf16 = run.packed.format == WeightFormat::bf16 && kernels.multiplies_bf16();
      work.products += (is_bf16 ? 0.5 : kOfElement) * run.packed.depth * channels;
      work.bytes += double{1} * run.packed.block_bytes * blocks(channels);
      work.reads += kOfElement * program.storage[run.source].channels;  // the other pixels it has read before
    }
  }

  void count_work(const Program& program) {
    for (const auto& i : instructions) {
      Work& sums = work.partial_sums.emplace_back();
      Work& rest = i.by_rows() ? work.row_phase : work.pixels;
      Work& above = i.keeps_partial() ? sums : rest;
      count_runs(above, program, i.row_runs, i.padded), count_runs(rest, program, i.pixel_runs, i.padded);
      const double kept = i.padded * sizeof(T);
      rest.calls++, rest.values += kept;
      if (i.keeps_partial()) sums.calls++, sums.values += kept;
      above.barriers += i.barrier_in_row, rest.barriers += i.barrier_at_pixel;
      for (const auto& step : i.steps) rest.elements += kOfElement * i.channels * traits(step.kind).cost;
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

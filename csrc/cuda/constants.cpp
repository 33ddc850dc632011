#include "cuda/constants.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "cuda/pack.h"

namespace pcf::cuda {
namespace {

// The constants as they are put together.
class Constants {
 public:
  template <class T>
  int64_t add(const std::vector<T>& items) {
    return add(items.data(), items.size() * sizeof(T));
  }
  int64_t add(const void* data, size_t bytes) {
    const size_t at = bytes_.size();
    bytes_.resize(at + (bytes + 15) / 16 * 16);
    if (bytes) std::copy_n(static_cast<const char*>(data), bytes, bytes_.data() + at);
    return static_cast<int64_t>(at);
  }
  int64_t size() const { return static_cast<int64_t>(bytes_.size()); }
  std::vector<char> take() { return std::move(bytes_); }

 private:
  std::vector<char> bytes_;
};

class Writer {
 public:
  Writer(ColumnSteps& steps, const std::vector<Range>& stages, MemoryPlan& memory, Plan& plan)
      : column_steps_(steps), program_(steps.program), ranges_(stages), memory_(memory), plan_(plan) {}

  void write() {
    for (PlannedInstruction& i : column_steps_.instructions) write_instruction(i);
    for (size_t s = 0; s < ranges_.size(); s++) write_stage(s);
    std::vector<InstructionPlan> instructions;
    for (const auto& i : column_steps_.instructions) instructions.push_back(i.plan);
    std::vector<ValuePlan> values;
    for (const auto& table : memory_.values) values.insert(values.end(), table.begin(), table.end());
    Layout& layout = plan_.layout;
    layout.stages = static_cast<int>(ranges_.size());
    layout.steps = constants_.add(steps_);
    layout.conditions = constants_.add(conditions());
    layout.taps = constants_.add(taps_);
    layout.sent = constants_.add(sent_);
    layout.values = constants_.add(values);
    layout.instructions = constants_.add(instructions);
    layout.stage_plans = constants_.add(memory_.stages);
    layout.row_lists = constants_.add(row_lists());
    layout.row_depths = constants_.add(plan_.row_depths);
    plan_.constants = constants_.take();
  }

 private:
  static constexpr int kDrawnLevels = -1;  // in place of a value

  void write_instruction(PlannedInstruction& i) {
    InstructionPlan& p = i.plan;
    const int padded = round_up(p.channels, kRows);
    p.bias = static_cast<int>(floats(i.source->bias, p.channels, padded));
    p.steps = static_cast<int>(steps_.size());
    p.n_steps = write_steps(*i.source, padded);
    const ImageInput& input = i.source->input;
    const int table = input.levels * input.width;
    p.table = input.table ? static_cast<int>(floats(input.table, table, table)) : -1;
    const auto write_taps = [&](int& begin, int& count, int& total, const std::vector<Tap>& taps, auto chosen) {
      begin = static_cast<int>(taps_.size());
      for (const Tap& tap : taps) {
        if (!chosen(tap)) continue;
        taps_.push_back(tap.plan);
        count++;
        total += column_steps_.fragments(tap.plan.value);
      }
    };
    write_taps(p.row, p.n_row, p.row_fragments, i.row, [](const Tap&) { return true; });
    write_taps(p.early, p.n_early, p.early_fragments, i.pixel, [](const Tap& tap) { return tap.early; });
    write_taps(p.late, p.n_late, p.late_fragments, i.pixel, [](const Tap& tap) { return !tap.early; });
    // The row phase makes two tiles of channels at a time.
    p.row_weights = constants_.size();
    for (int tile = 0; tile < round_up(p.tiles, 2); tile++)
      for (const Tap& tap : i.row) write_weights(i, tap, tile);
    plan_.row_weight_bytes += constants_.size() - p.row_weights;
  }

  int write_steps(const Instruction& i, int padded) {
    for (const auto& s : i.steps) {
      StepPlan p{s.kind, static_cast<float>(s.alpha), operand_of(s.kind), s.operand, 0, 0, 0, 0};
      if (reads_value(s)) p.lag = column_steps_.lag(i, s.operand, 0);
      if (reads_all_channels(s.kind)) p.all_channels = program_.storage[s.operand].channels;
      if (p.reads == Operand::constants) {
        p.scale = static_cast<int>(floats(s.scale, i.channels, padded));
        p.shift = static_cast<int>(floats(s.shift, i.channels, padded));
      }
      steps_.push_back(p);
    }
    return static_cast<int>(i.steps.size());
  }

  int64_t floats(const void* data, int count, int padded) {
    if (constants_.size() > std::numeric_limits<int>::max())
      throw std::invalid_argument("its weights take more than 2 GiB");
    std::vector<float> copy(padded);
    if (data) std::copy_n(static_cast<const float*>(data), count, copy.begin());
    return constants_.add(copy);
  }

  void write_weights(const PlannedInstruction& i, const Tap& tap, int tile) {
    const int inputs = program_.storage[tap.plan.value].channels;
    for (int f = 0; f < column_steps_.fragments(tap.plan.value); f++) {
      char fragment[kWeightBytes];
      pack_weights(column_steps_.math, tap.weight, inputs, i.plan.channels, f * column_steps_.depth(), tile * kRows,
                   fragment);
      constants_.add(fragment, kWeightBytes);
    }
  }

  // Each warp's weights in the order in which it reads them: the early ones of all instructions, then the late ones.
  void write_stage(size_t s) {
    StagePlan& stage = memory_.stages[s];
    const Range range = ranges_[s];
    stage.first = range.first, stage.count = range.last - range.first;
    stage.values = static_cast<int>(s * program_.storage.size());
    for (int warp = 0; warp < kWarps; warp++) {
      stage.weights[warp] = constants_.size();
      for (bool early : {true, false})
        for (int i = range.first; i < range.last; i++) {
          const PlannedInstruction& instruction = column_steps_.instructions[i];
          for (int tile = warp; tile < instruction.plan.tiles; tile += kWarps) {
            for (const Tap& tap : instruction.pixel)
              if (tap.early == early) write_weights(instruction, tap, tile);
            if (!early && instruction.plan.drawn) stage.drawn_fragments[warp] += instruction.plan.late_fragments;
          }
        }
    }
    stage.weights[kWarps] = constants_.size();
    stage.sent = static_cast<int>(sent_.size());
    if (s + 1 < ranges_.size())
      for (int value : crossing(column_steps_, range.last)) sent_.push_back(value);
    stage.n_sent = static_cast<int>(sent_.size()) - stage.sent;
    plan_.pixel_weight_bytes += constants_.size() - stage.weights[0];
    plan_.stage_weight_bytes.push_back(constants_.size() - stage.weights[0]);
    plan_.stage_instructions.push_back(stage.count);
    int64_t early = 0;
    for (int i = range.first; i < range.last; i++)
      early += int64_t{column_steps_.instructions[i].plan.early_fragments} * column_steps_.instructions[i].plan.tiles *
               kWeightBytes;
    plan_.stage_early_bytes.push_back(early);
    plan_.stage_barriers.push_back(set_barriers(range));
  }

  // Each warp owns some channels, but matrix products read those of other warps too. So there is a barrier of the block
  // before an instruction that reads what was written since the last barrier. Every column step ends with a barrier.
  // Returns how many others there are.
  int set_barriers(Range range) {
    std::set<int> written;
    int barriers = 0;
    for (int i = range.first; i < range.last; i++) {
      InstructionPlan& p = column_steps_.instructions[i].plan;
      for (const auto& [value, lag] : column_steps_.reads(column_steps_.instructions[i]))
        p.barrier |= lag == 0 && written.count(value);
      // Levels that have just been drawn are read, or the logits that they were drawn from are overwritten.
      p.barrier |= written.count(kDrawnLevels) && ((p.tiles == 0 && !p.drawn) || p.is_output);
      if (p.barrier) written.clear();
      barriers += p.barrier;
      written.insert(p.is_output ? kDrawnLevels : p.out);
    }
    return barriers;
  }

  std::vector<ConditionPlan> conditions() const {
    std::vector<ConditionPlan> result;
    int64_t numbers = 0;
    for (const ConditionOperand& operand : program_.conditions) {
      result.push_back({operand.channels, operand.varies_over_pixels, numbers});
      numbers += (operand.varies_over_pixels ? int64_t{program_.height} * program_.width : 1) * operand.channels;
    }
    return result;
  }

  // The instructions of the row phase by depth: each comes after the row values that it reads in the present row.
  std::vector<int> row_lists() {
    std::map<int, int> depth_of;  // by value
    std::map<int, std::vector<int>> by_depth;
    const auto after = [&](int value) { return column_steps_.in_row_phase(value) ? depth_of.at(value) + 1 : 0; };
    for (const auto& i : program_.instructions) {
      int& depth = depth_of[i.out] = 0;
      const bool in_row_phase = column_steps_.in_row_phase(i.out);
      for (const auto& run : i.row_runs)
        if (run.dy == 0) depth = std::max(depth, after(run.source));
      if (i.row_runs.empty() && !in_row_phase) continue;
      if (in_row_phase && i.kind == InstructionKind::pointwise) depth = std::max(depth, after(i.value));
      for (const auto& s : i.steps)
        if (in_row_phase && reads_value(s)) depth = std::max(depth, after(s.operand));
      by_depth[depth].push_back(column_steps_.index_of(i.out));
    }
    std::vector<int> lists;
    for (const auto& [depth, list] : by_depth) {
      plan_.row_depths.push_back({static_cast<int>(lists.size()), static_cast<int>(list.size())});
      lists.insert(lists.end(), list.begin(), list.end());
    }
    return lists;
  }

  ColumnSteps& column_steps_;
  const Program& program_;
  const std::vector<Range>& ranges_;
  MemoryPlan& memory_;
  Plan& plan_;
  Constants constants_;
  std::vector<StepPlan> steps_;
  std::vector<TapPlan> taps_;
  std::vector<int> sent_;
};

}  // namespace

void write_constants(ColumnSteps& steps, const std::vector<Range>& stages, MemoryPlan& memory, Plan& plan) {
  Writer(steps, stages, memory, plan).write();
}

}  // namespace pcf::cuda

// The program in the order in which a column step runs it: what each instruction reads, how many column steps ago that
// was computed, and how much memory it takes.
#pragma once

#include <map>
#include <utility>
#include <vector>

#include "cuda/plan.h"

namespace pcf::cuda {

struct Tap {
  TapPlan plan;
  const float* weight;  // [channels of the value, channels of the instruction]
  bool early;
};

struct PlannedInstruction {
  const Instruction* source;
  InstructionPlan plan;
  std::vector<Tap> row, pixel;
  bool at_pixel;  // runs in column steps, not only in the row phase
  int stage = 0;
};

inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

inline bool reads_value(const Step& s) { return operand_of(s.kind) == Operand::value; }

class ColumnSteps {
 public:
  ColumnSteps(const Program&, Math);  // the program is borrowed

  const Program& program;
  const Math math;
  std::vector<PlannedInstruction> instructions;
  int count = 0;  // of instructions that run in column steps; they come first

  int index_of(int value) const { return index_.at(value); }  // of the instruction that computes it
  int draw_of(int value) const;                               // which draw takes its logits from the value; -1: none
  bool in_row_phase(int value) const;
  int lag(const Instruction&, int value,
          int dx) const;  // column steps since column x + dx of the value was computed, if read at x
  std::vector<std::pair<int, int>> reads(const PlannedInstruction&) const;  // in column steps: (value, lag)

  int depth() const { return depth_of(math); }
  int fragments(int value) const { return round_up(program.storage[value].channels, depth()) / depth(); }
  int column_bytes(int value) const { return fragments(value) * kInputBytes; }
  int weight_bytes(const PlannedInstruction&) const;  // of the taps in column steps
  int sum_bytes(const PlannedInstruction&) const;     // of sums that are ready before the inputs arrive
  int logits_bytes() const;

 private:
  int turn_of(const Instruction&) const;
  void add(const Instruction&, bool at_pixel);
  std::vector<Tap> taps(const Instruction&, const std::vector<Run>&) const;
  bool is_drawn(int value) const { return by_value_.at(value)->phase == Phase::drawn; }

  std::map<int, const Instruction*> by_value_;
  std::map<int, int> index_;
};

}  // namespace pcf::cuda

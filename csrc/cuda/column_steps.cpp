#include "cuda/column_steps.h"

#include <algorithm>

namespace pcf::cuda {

ColumnSteps::ColumnSteps(const Program& program, Math math) : program(program), math(math) {
  for (const auto& i : program.instructions) by_value_[i.out] = &i;
  // Instructions that run in the row phase alone come last.
  const int draws = static_cast<int>(program.outputs.size());
  for (int turn = -1; turn <= draws; turn++)
    for (const auto& i : program.instructions) {
      if (turn != turn_of(i)) continue;
      if (turn < draws) count++;
      add(i, turn < draws);
    }
}

// -1 for drawn instructions, the number of draws for those of the row phase alone, and for others how many draws come
// before them. An output ends its turn.
int ColumnSteps::turn_of(const Instruction& i) const {
  if (i.phase == Phase::drawn) return -1;
  return i.phase == Phase::row && draw_of(i.out) < 0 ? static_cast<int>(program.outputs.size()) : i.after;
}

int ColumnSteps::draw_of(int value) const {
  const auto found = std::find(program.outputs.begin(), program.outputs.end(), value);
  return found == program.outputs.end() ? -1 : static_cast<int>(found - program.outputs.begin());
}

bool ColumnSteps::in_row_phase(int value) const {
  return turn_of(*by_value_.at(value)) == static_cast<int>(program.outputs.size());
}

// Values of the row phase have always been computed.
int ColumnSteps::lag(const Instruction& i, int value, int dx) const {
  return in_row_phase(value) ? 0 : -(dx + is_drawn(value) - (i.phase == Phase::drawn));
}

void ColumnSteps::add(const Instruction& i, bool at_pixel) {
  PlannedInstruction planned{&i, {}, taps(i, i.row_runs), taps(i, i.pixel_runs), at_pixel};
  InstructionPlan& p = planned.plan;
  p.out = i.out, p.channels = i.channels;
  p.tiles = (i.channels + kRows - 1) / kRows;
  p.n_image_channels = program.image_channels / static_cast<int>(program.outputs.size());
  p.first_image_channel = draw_of(i.out) * p.n_image_channels;
  p.width = i.input.width, p.value = i.value;
  switch (i.kind) {
    case InstructionKind::from_levels:
      p.tiles = 0, p.n_image_channels = i.input.count, p.first_image_channel = i.input.first;
      break;
    case InstructionKind::convolution: break;
    case InstructionKind::pointwise: p.value_lag = lag(i, i.value, 0); break;
  }
  p.drawn = i.phase == Phase::drawn, p.is_output = draw_of(i.out) >= 0;
  p.sums = -1;
  instructions.push_back(planned);
  index_[i.out] = static_cast<int>(instructions.size()) - 1;
}

std::vector<Tap> ColumnSteps::taps(const Instruction& i, const std::vector<Run>& runs) const {
  std::vector<Tap> result;
  for (const auto& run : runs)
    for (int d = 0; d < run.width; d++) {
      const int64_t skipped = int64_t{d} * program.storage[run.source].channels * i.channels;
      result.push_back({{run.source, run.dy, run.dx + d, lag(i, run.source, run.dx + d)},
                        static_cast<const float*>(run.weight) + skipped,
                        false});
    }
  return result;
}

std::vector<std::pair<int, int>> ColumnSteps::reads(const PlannedInstruction& i) const {
  std::vector<std::pair<int, int>> result;
  for (const Tap& tap : i.pixel) result.push_back({tap.plan.value, tap.plan.lag});
  if (i.plan.value >= 0) result.push_back({i.plan.value, i.plan.value_lag});
  for (const auto& s : i.source->steps)
    if (reads_value(s)) result.push_back({s.operand, lag(*i.source, s.operand, 0)});
  return result;
}

int ColumnSteps::weight_bytes(const PlannedInstruction& i) const {
  int fragments_of_tile = 0;
  for (const Tap& tap : i.pixel) fragments_of_tile += fragments(tap.plan.value);
  return fragments_of_tile * i.plan.tiles * kWeightBytes;
}

int ColumnSteps::sum_bytes(const PlannedInstruction& i) const {
  const bool early = std::any_of(i.pixel.begin(), i.pixel.end(), [](const Tap& tap) { return tap.plan.lag > 0; });
  return early || !i.row.empty() ? i.plan.tiles * kSumBytes : 0;
}

int ColumnSteps::logits_bytes() const {
  int tiles = 0;
  for (int output : program.outputs) tiles = std::max(tiles, instructions[index_of(output)].plan.tiles);
  return (tiles * kRows + 4) * kTile * static_cast<int>(sizeof(float));
}

}  // namespace pcf::cuda

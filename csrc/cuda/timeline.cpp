#include "cuda/timeline.h"

#include <algorithm>
#include <stdexcept>

namespace pcf::cuda {

Timeline::Timeline(const Program& program, int lag) : program(program), lag(lag) {
  for (const Instruction& i : program.instructions) {
    if (i.scan != Instruction::kWholeRow || i.phase == Phase::finished)
      throw std::invalid_argument("the program computes whole rows");
    by_value_[i.out] = &i;
    longest_lead = std::max(longest_lead, i.lead);
  }
  if (program.lag == 0) throw std::invalid_argument("the program has no wavefront");
  const auto add = [&](const Instruction& i) {
    position_[i.out] = static_cast<int>(entries.size());
    entries.push_back({&i, draw_of(i.out)});
  };
  const auto in_row_phase = [&](const Instruction& i) { return i.phase == Phase::row && draw_of(i.out) < 0; };
  for (const Instruction& i : program.instructions)
    if (in_row_phase(i) && i.kind != InstructionKind::from_levels) add(i);
  for (int draw = 0; draw <= draws(); draw++) {
    for (const Instruction& i : program.instructions)
      if (!in_row_phase(i) && i.kind != InstructionKind::from_levels && i.after == draw) add(i);
    if (draw == draws()) break;
    const int first = draw * distributions_per_draw(), last = first + distributions_per_draw();
    for (const Instruction& i : program.instructions)
      if (i.kind == InstructionKind::from_levels && i.input.first < last && i.input.first + i.input.count > first)
        position_[i.out] = static_cast<int>(entries.size());
    entries.push_back({nullptr, draw});
  }
}

int Timeline::draw_of(int value) const {
  const auto found = std::find(program.outputs.begin(), program.outputs.end(), value);
  return found == program.outputs.end() ? -1 : static_cast<int>(found - program.outputs.begin());
}

Read Timeline::read(const Instruction& i, int value, int dy, int dx) const {
  const int age = instruction(value).lead - i.lead - dx - lag * dy;
  if (age < 0 || (age == 0 && position(value) >= position(i.out)))
    throw std::invalid_argument("the program reads a value before it is computed");
  return {value, dy, dx, age};
}

std::vector<Tap> Timeline::taps(const Instruction& i) const {
  std::vector<Tap> result;
  for (const auto* runs : {&i.row_runs, &i.pixel_runs})
    for (const Run& run : *runs)
      for (int d = 0; d < run.width; d++) {
        const int64_t skipped = int64_t{d} * program.storage[run.source].channels * i.channels;
        result.push_back({read(i, run.source, run.dy, run.dx + d), static_cast<const float*>(run.weight) + skipped});
      }
  return result;
}

}  // namespace pcf::cuda

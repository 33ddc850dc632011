#include "cuda/timeline.h"

#include <algorithm>
#include <stdexcept>

namespace pcf::cuda {
namespace {

bool multiplies_the_same(const Instruction& a, const Instruction& b) {
  const auto same = [](const std::vector<Run>& a, const std::vector<Run>& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Run& x, const Run& y) {
      return x.source == y.source && x.dy == y.dy && x.dx == y.dx && x.width == y.width;
    });
  };
  return b.kind == InstructionKind::convolution && same(a.row_runs, b.row_runs) && same(a.pixel_runs, b.pixel_runs);
}

}  // namespace

Timeline::Timeline(const Program& program, int lag) : program(program), lag(lag), readers_(program.storage.size()) {
  for (const Instruction& i : program.instructions) {
    if (i.scan != Instruction::kWholeRow || i.phase == Phase::finished)
      throw std::invalid_argument("the program computes whole rows");
    by_value_[i.out] = &i;
    for (const auto* runs : {&i.row_runs, &i.pixel_runs})
      for (const Run& run : *runs) readers_[run.source]++;
    for (const Step& s : i.steps)
      if (reads_value(s)) readers_[s.operand]++;
    if (i.kind == InstructionKind::pointwise) readers_[i.value]++;
    longest_lead = std::max(longest_lead, i.lead);
  }
  if (program.lag == 0) throw std::invalid_argument("the program has no wavefront");
  const auto in_row_phase = [&](const Instruction& i) { return i.phase == Phase::row && draw_of(i.out) < 0; };
  const auto add_all = [&](const auto& wanted) {
    std::vector<const Instruction*> found;
    for (const Instruction& i : program.instructions)
      if (i.kind != InstructionKind::from_levels && wanted(i)) found.push_back(&i);
    add(found);
  };
  add_all(in_row_phase);
  for (int draw = 0; draw <= draws(); draw++) {
    add_all([&](const Instruction& i) { return !in_row_phase(i) && i.after == draw; });
    if (draw == draws()) break;
    const int first = draw * distributions_per_draw(), last = first + distributions_per_draw();
    for (const Instruction& i : program.instructions)
      if (i.kind == InstructionKind::from_levels && i.input.first < last && i.input.first + i.input.count > first)
        order_[i.out] = {static_cast<int>(entries.size()), 0};
    entries.push_back({{}, draw});
  }
}

void Timeline::add(const std::vector<const Instruction*>& instructions) {
  for (size_t first = 0; first < instructions.size();) {
    const size_t last = first + group_size(instructions, first);
    Entry entry{{}, draw_of(instructions[first]->out)};
    for (; first < last; first++) {
      order_[instructions[first]->out] = {static_cast<int>(entries.size()), static_cast<int>(entry.group.size())};
      entry.group.push_back(instructions[first]);
    }
    entries.push_back(entry);
  }
}

// How many instructions from `first` on are a group.
size_t Timeline::group_size(const std::vector<const Instruction*>& all, size_t first) const {
  const Instruction& leader = *all[first];
  if (draw_of(leader.out) >= 0) return 1;
  // At its own pixel and, if it reads only some of them, at its own channel.
  const auto in_group = [&](int value, size_t end) {
    return std::any_of(all.begin() + first, all.begin() + end, [&](const Instruction* i) { return i->out == value; });
  };
  const auto can_join = [&](size_t k) {
    const Instruction& i = *all[k];
    if (draw_of(i.out) >= 0 || i.channels != leader.channels || i.lead != leader.lead) return false;
    return std::all_of(i.steps.begin(), i.steps.end(), [&](const Step& s) {
      if (!reads_value(s) || !in_group(s.operand, k)) return true;
      return s.dx == 0 && s.dy == 0 && !reads_all_channels(s.kind);
    });
  };
  size_t members = 1;
  if (leader.kind == InstructionKind::convolution) {
    while (members < kMostMembers && first + members < all.size() && can_join(first + members) &&
           multiplies_the_same(leader, *all[first + members]))
      members++;
    if (members == 3) members = 2;  // a batch of weights has those of all members
  }
  size_t end = first + members;
  while (end < all.size() && all[end]->kind == InstructionKind::pointwise && can_join(end) &&
         (!in_group(all[end]->value, end) || (all[end]->dx == 0 && all[end]->dy == 0)))
    end++;
  return end - first;
}

int Timeline::draw_of(int value) const {
  const auto found = std::find(program.outputs.begin(), program.outputs.end(), value);
  return found == program.outputs.end() ? -1 : static_cast<int>(found - program.outputs.begin());
}

Read Timeline::read(const Instruction& i, int value, int dy, int dx) const {
  const int age = instruction(value).lead - i.lead - dx - lag * dy;
  if (age < 0 || (age == 0 && order_.at(value) >= order_.at(i.out)))
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

#include "cuda/plan/timeline.h"

#include <algorithm>
#include <numeric>
#include <optional>
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

// Calls one(value, dy, dx) for everything that an instruction reads.
template <class One>
void each_read(const Instruction& i, const One& one) {
  switch (i.kind) {
    case InstructionKind::from_levels: break;
    case InstructionKind::convolution:
      for (const auto* runs : {&i.row_runs, &i.pixel_runs})
        for (const Run& run : *runs)
          for (int d = 0; d < run.width; d++) one(run.source, run.dy, run.dx + d);
      break;
    case InstructionKind::pointwise: one(i.value, i.dy, i.dx); break;
  }
  for (const Step& s : i.steps)
    if (reads_value(s)) one(s.operand, s.dy, s.dx);
}

}  // namespace

Timeline::Timeline(const Program& program, int lag) : program(program), lag(lag), readers_(program.storage.size()) {
  for (const Instruction& i : program.instructions) {
    by_value_[i.out] = &i;
    each_read(i, [&](int value, int, int) { readers_[value]++; });
  }
  if (by_rows()) add_rows(Phase::row);
  add_pixels();
  if (by_rows()) add_rows(Phase::finished);
}

// What is computed for a row before its pixels, or after them: as few sweeps as its reads and scans allow.
void Timeline::add_rows(Phase phase) {
  std::vector<const Instruction*> all;
  for (const Instruction& i : program.instructions)
    if (i.phase == phase && i.kind != InstructionKind::from_levels && draw_of(i.out) < 0) all.push_back(&i);
  std::vector<const Instruction*> sweep;
  // Which way a sweep of these instructions must go: 0 if it may go either way; none if it can't go at all.
  const auto direction_of = [&](const std::vector<const Instruction*>& instructions) {
    std::optional<int> found = 0;
    const auto must = [&](int way) {
      if (found) found = *found == 0 || *found == way ? std::optional(way) : std::nullopt;
    };
    for (const Instruction* i : instructions) {
      if (i->scan != Instruction::kWholeRow) must(i->from_the_right ? -1 : 1);
      each_read(*i, [&](int value, int dy, int dx) {
        const auto is_read = [&](const Instruction* other) { return other->out == value; };
        if (dy == 0 && dx != 0 && std::any_of(instructions.begin(), instructions.end(), is_read)) must(dx < 0 ? 1 : -1);
      });
    }
    return found;
  };
  const auto end = [&] {
    if (sweep.empty()) return;
    const std::optional<int> direction = direction_of(sweep);
    if (!direction) throw std::invalid_argument("a scan reads what it has not computed yet");
    add_sums(sweep);
    add(sweep);
    end_sweep(*direction == 0 ? 1 : *direction);
    sweep.clear();
  };
  for (size_t first = 0, last; first < all.size(); first = last) {
    last = first + 1;
    while (last < all.size() && all[first]->scan != Instruction::kWholeRow && all[last]->scan == all[first]->scan)
      last++;
    std::vector<const Instruction*> more = sweep;
    more.insert(more.end(), all.begin() + first, all.begin() + last);
    if (!direction_of(more)) end();
    sweep.insert(sweep.end(), all.begin() + first, all.begin() + last);
  }
  end();
}

void Timeline::add_pixels() {
  const auto in_row_phase = [&](const Instruction& i) { return i.phase == Phase::row && draw_of(i.out) < 0; };
  const auto add_all = [&](const auto& wanted) {
    std::vector<const Instruction*> found;
    for (const Instruction& i : program.instructions)
      if (i.kind != InstructionKind::from_levels && i.phase != Phase::finished && wanted(i)) found.push_back(&i);
    add(found);
  };
  if (!by_rows()) {
    add_all(in_row_phase);
  } else {
    std::vector<const Instruction*> all;
    for (const Instruction& i : program.instructions)
      if (!in_row_phase(i) && i.phase != Phase::finished) all.push_back(&i);
    add_sums(all);
  }
  for (int draw = 0; draw <= draws(); draw++) {
    add_all([&](const Instruction& i) { return !in_row_phase(i) && i.after == draw; });
    if (draw == draws()) break;
    const int first = draw * distributions_per_draw(), last = first + distributions_per_draw();
    for (const Instruction& i : program.instructions)
      if (i.kind == InstructionKind::from_levels && i.input.first < last && i.input.first + i.input.count > first)
        order_[i.out] = {static_cast<int>(entries.size()), 0};
    entries.push_back({{}, draw});
  }
  end_sweep(1);
}

void Timeline::end_sweep(int direction, bool sums) {
  const int first = sweeps.empty() ? 0 : sweeps.back().end, end = static_cast<int>(entries.size());
  sweeps.push_back({first, end, 0, direction, sums});
  Sweep& sweep = sweeps.back();
  for (int e = first; e < end; e++) {
    entries[e].level = level_of(e, sweep);
    sweep.levels = std::max(sweep.levels, entries[e].level + 1);
  }
  std::vector<int> by_level(end - first), place_of(end - first);
  std::iota(by_level.begin(), by_level.end(), first);
  std::stable_sort(by_level.begin(), by_level.end(), [&](int a, int b) { return entries[a].level < entries[b].level; });
  std::vector<Entry> sorted;
  for (const int e : by_level) {
    place_of[e - first] = first + static_cast<int>(sorted.size());
    sorted.push_back(entries[e]);
  }
  std::move(sorted.begin(), sorted.end(), entries.begin() + first);
  for (auto& [value, order] : order_)
    if (order.first >= first) order.first = place_of[order.first - first];
}

// As early as what it reads of this column step allows. What is drawn, and what it is drawn from, keeps its order.
int Timeline::level_of(int entry, const Sweep& sweep) const {
  int level = 0;
  const auto comes_after = [&](int other) { level = std::max(level, entries[other].level + 1); };
  if (entries[entry].draw >= 0)
    for (int e = sweep.first; e < entry; e++)
      if (entries[e].draw >= 0) comes_after(e);
  for (const Instruction* i : entries[entry].group)
    each_read(*i, [&](int value, int dy, int dx) {
      const auto source = order_.find(value);  // those of later sweeps have none yet
      if (source == order_.end() || source->second.first < sweep.first || source->second.first == entry) return;
      if (read(*i, value, dy, dx).age == 0) comes_after(source->second.first);
    });
  return level;
}

// A sweep of sums over what the instructions of the next sweep read of earlier ones: where they read of that sweep,
// too, they go on with these sums, whose weights are read once for several columns. What an output reads is left to it.
void Timeline::add_sums(const std::vector<const Instruction*>& sweep) {
  const auto is_earlier = [&](const Run& run) {
    return run.dy != 0 || std::none_of(sweep.begin(), sweep.end(), [&](const auto* i) { return i->out == run.source; });
  };
  std::vector<const Instruction*> sums;
  for (const Instruction* i : sweep) {
    std::vector<Run> earlier, own;
    for (const auto* runs : {&i->row_runs, &i->pixel_runs})
      for (const Run& run : *runs) (is_earlier(run) ? earlier : own).push_back(run);
    if (earlier.empty() || own.empty() || draw_of(i->out) >= 0) continue;
    Instruction& other = others_.emplace_back(*i);
    other.row_runs.clear(), other.pixel_runs = own, other.bias = nullptr;
    by_value_[i->out] = &other;
    const int value = values();
    Instruction& sum = sums_.emplace_back();
    sum.out = value, sum.channels = i->channels, sum.kind = InstructionKind::convolution, sum.phase = Phase::row;
    sum.bias = i->bias, sum.row_runs = earlier;
    by_value_[value] = &sum, sums_of_[i->out] = value;
    sums.push_back(&sum);
  }
  if (sums.empty()) return;
  add(sums);
  end_sweep(1, true);
}

const Sweep& Timeline::sweep_of(int position) const {
  return *std::find_if(sweeps.begin(), sweeps.end(), [&](const Sweep& sweep) { return position < sweep.end; });
}

void Timeline::add(const std::vector<const Instruction*>& original) {
  std::vector<const Instruction*> instructions;
  for (const Instruction* i : original) instructions.push_back(by_value_.at(i->out));
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
  const Order reader = order_.at(i.out), source = order_.at(value);
  int age = instruction(value).lead - i.lead - dx - lag * dy;
  if (by_rows()) {
    const Sweep& sweep = sweep_of(reader.first);
    const bool is_in_sweep = source.first >= sweep.first && source.first < sweep.end;
    if (dy != 0 || !is_in_sweep) return {value, dy, dx, kLongAgo};
    age = -dx * sweep.direction;
  }
  if (age < 0 || (age == 0 && source >= reader))
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

#include "cuda/plan/timeline.h"

#include <optional>
#include <span>
#include <stdexcept>

namespace pcf::cuda {
namespace {

std::vector<Run> runs_of(const Instruction& i) {
  std::vector<Run> runs = i.row_runs;
  runs.insert(runs.end(), i.pixel_runs.begin(), i.pixel_runs.end());
  return runs;
}

bool multiplies_the_same(const Instruction& a, const Instruction& b) {
  const auto same = [](const Run& x, const Run& y) {
    return x.source == y.source && x.dy == y.dy && x.dx == y.dx && x.width == y.width;
  };
  return is_product(&b) && std::ranges::equal(a.row_runs, b.row_runs, same) &&
         std::ranges::equal(a.pixel_runs, b.pixel_runs, same);
}

bool computes(const auto& instructions, int value) {
  return std::ranges::any_of(instructions, [&](const Instruction* i) { return i->out == value; });
}

// How many instructions from the first on are a group.
size_t group_size(const Timeline& t, const std::span<const Instruction* const>& all) {
  const Instruction& leader = *all[0];
  if (t.draw_of(leader.out) >= 0) return 1;
  // What it reads of the group is at its own pixel and, if it reads only some of the channels, at its own channel.
  const auto can_join = [&](size_t k) {
    const Instruction& i = *all[k];
    if (t.draw_of(i.out) >= 0 || i.channels != leader.channels || i.lead != leader.lead) return false;
    return std::ranges::all_of(i.steps, [&](const Step& s) {
      const bool is_own = s.dx == 0 && s.dy == 0 && !traits(s.kind).reads_all_channels;
      return is_own || !reads_value(s) || !computes(all.first(k), s.operand);
    });
  };
  size_t end = 1;
  if (is_product(&leader)) {
    while (end < std::min<size_t>(kMostMembers, all.size()) && can_join(end) && multiplies_the_same(leader, *all[end]))
      end++;
    if (end == 3) end = 2;  // a batch of weights has those of all members
  }
  for (; end < all.size(); end++) {
    const Instruction& i = *all[end];
    if (i.value < 0 || !can_join(end)) break;
    if ((i.dx != 0 || i.dy != 0) && computes(all.first(end), i.value)) break;
  }
  return end;
}

void add(Timeline& t, Instructions instructions) {
  for (const Instruction*& i : instructions) i = &t.instruction(i->out);
  for (std::span<const Instruction* const> left = instructions; !left.empty();) {
    const auto group = left.first(group_size(t, left));
    t.entries.push_back({{group.begin(), group.end()}, t.draw_of(group[0]->out)});
    left = left.subspan(group.size());
  }
}

// Where the entries from `first` on compute their values.
void set_order(Timeline& t, int first) {
  for (int e = first; e < static_cast<int>(t.entries.size()); e++) {
    const Entry& entry = t.entries[e];
    for (int k = 0; const Instruction* i : entry.group) t.order[i->out] = {e, k++};
    if (!entry.group.empty()) continue;
    const int begin = entry.draw * t.distributions_per_draw(), end = begin + t.distributions_per_draw();
    for (const Instruction& i : t.program.instructions)
      if (reads_image(i) && i.input.first < end && i.input.first + i.input.count > begin) t.order[i.out] = {e, 0};
  }
}

// As early as what it reads of this column step allows. What is drawn, and what it is drawn from, keeps its order.
int depth_of_entry(const Timeline& t, int entry, int first) {
  int depth = 0;
  const auto comes_after = [&](int other) { depth = std::max(depth, t.entries[other].depth + 1); };
  if (t.entries[entry].draw >= 0)
    for (int e = first; e < entry; e++)
      if (t.entries[e].draw >= 0) comes_after(e);
  for (const Instruction* i : t.entries[entry].group)
    for_each_read(*i, [&](int value, int dy, int dx) {
      const auto source = t.order.find(value);  // those of later sweeps have none yet
      if (source == t.order.end() || source->second.first < first || source->second.first == entry) return;
      if (t.read(*i, value, dy, dx).age == 0) comes_after(source->second.first);
    });
  return depth;
}

void end_sweep(Timeline& t, int direction, bool sums = false) {
  const int first = t.sweeps.empty() ? 0 : t.sweeps.back().end, end = static_cast<int>(t.entries.size());
  Sweep& sweep = t.sweeps.emplace_back(Sweep{first, end, 0, direction, sums});
  set_order(t, first);
  for (int e = first; e < end; e++) t.entries[e].depth = depth_of_entry(t, e, first);
  std::ranges::stable_sort(t.entries.begin() + first, t.entries.end(), {}, &Entry::depth);
  set_order(t, first);
  sweep.depths = t.entries.back().depth + 1;
}

// A sweep of sums over what the instructions of the next sweep read of earlier ones: where they read of that sweep,
// too, they go on with these sums, whose weights are read once for several columns. What an output reads is left to it.
void add_sums(Timeline& t, const Instructions& sweep) {
  Instructions sums;
  for (const Instruction* i : sweep) {
    std::vector<Run> own, earlier;
    for (const Run& run : runs_of(*i)) (run.dy != 0 || !computes(sweep, run.source) ? earlier : own).push_back(run);
    if (earlier.empty() || own.empty() || t.draw_of(i->out) >= 0) continue;
    Instruction& other = t.added.emplace_back(*i);
    other.row_runs.clear(), other.pixel_runs = own, other.bias = nullptr;
    t.by_value[i->out] = &other;
    const int value = t.values();
    t.sums_by_value[i->out] = value;
    Instruction sum{.out = value, .channels = i->channels, .kind = i->kind, .phase = Phase::row, .bias = i->bias};
    sum.row_runs = std::move(earlier);
    sums.push_back(t.by_value[value] = &t.added.emplace_back(std::move(sum)));
  }
  if (sums.empty()) return;
  add(t, sums);
  end_sweep(t, 1, true);
}

// Which way a sweep of these instructions must go: 0 if it may go either way; none if it can't go at all.
std::optional<int> direction_of(const Instructions& instructions) {
  bool rightwards = false, leftwards = false;
  for (const Instruction* i : instructions) {
    if (in_scan(*i)) (i->from_the_right ? leftwards : rightwards) = true;
    for_each_read(*i, [&](int value, int dy, int dx) {
      if (dy == 0 && dx != 0 && computes(instructions, value)) (dx < 0 ? rightwards : leftwards) = true;
    });
  }
  if (rightwards && leftwards) return std::nullopt;
  return rightwards - leftwards;
}

// What is computed for a row before its pixels, or after them: as few sweeps as its reads and scans allow.
void add_rows(Timeline& t, Phase phase) {
  Instructions all, sweep;
  for (const Instruction& i : t.program.instructions)
    if (i.phase == phase && !reads_image(i) && t.draw_of(i.out) < 0) all.push_back(&i);
  const auto end = [&] {
    if (sweep.empty()) return;
    const std::optional<int> direction = direction_of(sweep);
    if (!direction) throw std::invalid_argument("a scan reads what it has not computed yet");
    add_sums(t, sweep);
    add(t, sweep);
    end_sweep(t, *direction == 0 ? 1 : *direction);
    sweep.clear();
  };
  for (auto first = all.begin(); first != all.end();) {  // a scan, or an instruction
    const auto is_other = [&](const Instruction* i) { return i->scan != (*first)->scan; };
    const auto last = !in_scan(**first) ? first + 1 : std::find_if(first, all.end(), is_other);
    Instructions more = sweep;
    more.insert(more.end(), first, last);
    if (!direction_of(more)) end();
    sweep.insert(sweep.end(), first, last);
    first = last;
  }
  end();
}

void add_pixels(Timeline& t) {
  const auto in_row_phase = [&](const Instruction& i) { return i.phase == Phase::row && t.draw_of(i.out) < 0; };
  const auto those = [&](const auto& wanted) {
    Instructions found;
    for (const Instruction& i : t.program.instructions)
      if (i.phase != Phase::finished && wanted(i)) found.push_back(&i);
    return found;
  };
  if (t.by_rows())
    add_sums(t, those([&](const Instruction& i) { return !in_row_phase(i); }));
  else
    add(t, those([&](const Instruction& i) { return !reads_image(i) && in_row_phase(i); }));
  for (int draw = 0; draw <= t.draws(); draw++) {
    add(t, those([&](const Instruction& i) { return !reads_image(i) && !in_row_phase(i) && i.after == draw; }));
    if (draw < t.draws()) t.entries.push_back({{}, draw});
  }
  end_sweep(t, 1);
}

}  // namespace

Timeline::Timeline(const Program& program, int lag) : program(program), lag(lag), readers(program.storage.size()) {
  for (const Instruction& i : program.instructions) {
    by_value[i.out] = &i;
    for_each_read(i, [&](int value, int, int) { readers[value]++; });
  }
  if (by_rows()) add_rows(*this, Phase::row);
  add_pixels(*this);
  if (by_rows()) add_rows(*this, Phase::finished);
}

const Sweep& Timeline::sweep_of(int entry) const {
  return *std::ranges::find_if(sweeps, [&](const Sweep& sweep) { return entry < sweep.end; });
}

int Timeline::draw_of(int value) const {
  const auto found = std::ranges::find(program.outputs, value);
  return found == program.outputs.end() ? -1 : static_cast<int>(found - program.outputs.begin());
}

Read Timeline::read(const Instruction& i, int value, int dy, int dx) const {
  const auto reader = order.at(i.out), source = order.at(value);
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
  for (const Run& run : runs_of(i))
    for (int d = 0; d < run.width; d++) {
      const int64_t skipped = int64_t{d} * program.storage[run.source].channels * i.channels;
      result.push_back({read(i, run.source, run.dy, run.dx + d), static_cast<const float*>(run.weight) + skipped});
    }
  return result;
}

}  // namespace pcf::cuda

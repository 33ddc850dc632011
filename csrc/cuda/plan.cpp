#include "cuda/plan.h"

#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <stdexcept>

#include "cuda/pack.h"

namespace pcf {
namespace {

int round_up(int n, int to) { return (n + to - 1) / to * to; }

// The constants while they grow.
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
  char* at(int64_t offset) { return bytes_.data() + offset; }
  int64_t size() const { return static_cast<int64_t>(bytes_.size()); }
  std::vector<char> take() { return std::move(bytes_); }

 private:
  std::vector<char> bytes_;
};

struct Tap {
  TapPlan plan;
  const float* weight;  // [channels of the value, channels of the instruction]
  bool early;
};

struct Instruction {
  const pcf::Instruction* source;
  InstructionPlan plan;
  std::vector<Tap> row, pixel;
  bool at_pixel;   // runs in jobs, not only in the row phase
  int stage = 0;
};

class Planner {
 public:
  Planner(const Program& program, Math math, Variant variant, const Limits& limits)
      : program_(program), limits_(limits) {
    plan_.math = math;
    plan_.variant = variant;
  }

  Plan make() {
    read_program();
    stages_.push_back({0, jobs_});
    if (plan_.variant == Variant::pipeline) split_into_stages();
    place_in_shared();
    place_in_workspace();
    write_constants();
    return std::move(plan_);
  }

 private:
  static constexpr int kLevels = -1;  // in place of a value

  struct Range {
    int first, last;
  };

  // -- what the instructions read

  void read_program() {
    Layout& layout = plan_.layout;
    layout = {};
    layout.image_channels = program_.image_channels, layout.height = program_.height;
    layout.width = program_.width, layout.levels = program_.levels;
    for (const Slot& slot : program_.conditions) {
      const int64_t pixels = slot.varies_over_pixels ? int64_t{program_.height} * program_.width : 1;
      slots_.push_back({slot.channels, slot.varies_over_pixels, numbers_of_slots_});
      numbers_of_slots_ += pixels * slot.channels;
    }
    for (const auto& i : program_.instructions) by_value_[i.out] = &i;
    // In the order of a job; what runs in the row phase alone comes last.
    const int draws = static_cast<int>(program_.outputs.size());
    for (int turn = -1; turn <= draws; turn++)
      for (const auto& i : program_.instructions) {
        if (turn != turn_of(i)) continue;
        if (turn < draws) jobs_++;
        add(i, turn < draws);
      }
  }

  // -1: drawn; how many draws come before it; the number of draws: only in the row phase. An output ends its turn.
  int turn_of(const pcf::Instruction& i) const {
    if (i.phase == Phase::drawn) return -1;
    return i.phase == Phase::row && draw_of(i.out) < 0 ? static_cast<int>(program_.outputs.size()) : i.after;
  }

  // Which draw takes its logits from the value; -1: none.
  int draw_of(int value) const {
    const auto found = std::find(program_.outputs.begin(), program_.outputs.end(), value);
    return found == program_.outputs.end() ? -1 : static_cast<int>(found - program_.outputs.begin());
  }

  bool is_drawn(int value) const { return by_value_.at(value)->phase == Phase::drawn; }
  bool in_row_phase(int value) const { return turn_of(*by_value_.at(value)) == static_cast<int>(program_.outputs.size()); }

  // Jobs since value's column x + dx was made, where the instruction is at x; values of the row phase are at hand.
  int lag(const pcf::Instruction& i, int value, int dx) const {
    return in_row_phase(value) ? 0 : -(dx + is_drawn(value) - (i.phase == Phase::drawn));
  }

  void add(const pcf::Instruction& i, bool at_pixel) {
    Instruction planned{&i, {}, {}, {}, at_pixel};
    InstructionPlan& p = planned.plan;
    p.out = i.out, p.channels = i.channels;
    p.tiles = i.input.count ? 0 : (i.channels + kRows - 1) / kRows;
    p.n_levels = i.input.count ? i.input.count : program_.image_channels / static_cast<int>(program_.outputs.size());
    p.first_level = i.input.count ? i.input.first : draw_of(i.out) * p.n_levels;
    p.width = i.input.width;
    p.base = i.base, p.base_lag = i.base < 0 ? 0 : lag(i, i.base, 0);
    p.drawn = i.phase == Phase::drawn, p.is_output = draw_of(i.out) >= 0;
    p.sums = -1;
    const auto taps = [&](const std::vector<Run>& runs) {
      std::vector<Tap> result;
      for (const auto& run : runs)
        for (int d = 0; d < run.width; d++) {
          const int64_t skipped = int64_t{d} * program_.storage[run.source].channels * i.channels;
          result.push_back({{run.source, run.dy, run.dx + d, lag(i, run.source, run.dx + d)},
                            static_cast<const float*>(run.weight) + skipped, false});
        }
      return result;
    };
    planned.row = taps(i.row_runs);
    planned.pixel = taps(i.pixel_runs);
    instructions_.push_back(planned);
    index_[i.out] = static_cast<int>(instructions_.size()) - 1;
  }

  static bool reads_value(const pcf::Step& s) {
    return s.kind == StepKind::add || s.kind == StepKind::multiply || s.kind == StepKind::layer_norm;
  }

  // The values that an instruction reads in jobs, with lags.
  std::vector<std::pair<int, int>> reads(const Instruction& i) const {
    std::vector<std::pair<int, int>> result;
    for (const Tap& tap : i.pixel) result.push_back({tap.plan.value, tap.plan.lag});
    if (i.plan.base >= 0) result.push_back({i.plan.base, i.plan.base_lag});
    for (const auto& s : i.source->steps)
      if (reads_value(s)) result.push_back({s.operand, lag(*i.source, s.operand, 0)});
    return result;
  }

  int fragments(int value) const { return round_up(program_.storage[value].channels, depth()) / depth(); }
  int depth() const { return depth_of(plan_.math); }
  int column_bytes(int value) const { return fragments(value) * kInputBytes; }

  // -- stages

  // Values made before instruction `at` and read in the same job from there on.
  std::set<int> crossing(int at) const {
    std::set<int> result;
    for (int i = at; i < jobs_; i++)
      for (const auto& [value, lag] : reads(instructions_[i]))
        if (lag == 0 && !in_row_phase(value) && index_.at(value) < at) result.insert(value);
    return result;
  }

  int bytes_of(const std::set<int>& values) const {
    int bytes = 0;
    for (int value : values) bytes += column_bytes(value);
    return bytes;
  }

  int weight_bytes(const Instruction& i) const {
    int fragments_of_tile = 0;
    for (const Tap& tap : i.pixel) fragments_of_tile += fragments(tap.plan.value);
    return fragments_of_tile * i.plan.tiles * kWeightBytes;
  }

  int sum_bytes(const Instruction& i) const {
    const bool early = std::any_of(i.pixel.begin(), i.pixel.end(), [](const Tap& tap) { return tap.plan.lag > 0; });
    return early || !i.row.empty() ? i.plan.tiles * kSumBytes : 0;
  }

  int logits_bytes() const {
    int tiles = 0;
    for (int output : program_.outputs) tiles = std::max(tiles, instructions_[index_.at(output)].plan.tiles);
    return (tiles * kRows + 4) * kTile * static_cast<int>(sizeof(float));
  }

  // Shared memory of a stage that runs instructions first...last-1, but for its weights.
  int bytes_besides_weights(Range range) const {
    int bytes = kFlagBytes + (range.first ? 2 * bytes_of(crossing(range.first)) : 0);
    for (int i = range.first; i < range.last; i++) {
      bytes += sum_bytes(instructions_[i]);
      bytes += instructions_[i].plan.is_output ? logits_bytes() : column_bytes(instructions_[i].plan.out);
    }
    return bytes;
  }

  int stage_bytes(Range range) const {
    int bytes = bytes_besides_weights(range);
    for (int i = range.first; i < range.last; i++) bytes += weight_bytes(instructions_[i]);
    return bytes;
  }

  // As many of each warp's last fragments as fit in this room: the late ones, which nobody should wait for.
  int resident(Range range, int room) const {
    int fragments_of_warp[kWarps] = {};
    for (int i = range.first; i < range.last; i++) {
      const InstructionPlan& p = instructions_[i].plan;
      for (int tile = 0; tile < p.tiles; tile++)
        fragments_of_warp[tile % kWarps] += weight_bytes(instructions_[i]) / p.tiles / kWeightBytes;
    }
    int most = *std::max_element(fragments_of_warp, fragments_of_warp + kWarps);
    const auto bytes = [&](int most) {
      int fragments = 0;
      for (int n : fragments_of_warp) fragments += std::min(n, most);
      return fragments * kWeightBytes;
    };
    while (bytes(most) > room) most--;
    return most;
  }

  // As few stages as shared memory allows, a layer that exceeds it being a stage of its own, then the split that keeps the largest share of weights small.
  void split_into_stages() {
    int64_t total = 0;
    for (int i = 0; i < jobs_; i++) total += weight_bytes(instructions_[i]);
    const auto split = [&](int64_t most_weights) {
      std::vector<Range> ranges;
      int64_t weights = 0;
      for (int i = 0; i < jobs_; i++) {
        weights += weight_bytes(instructions_[i]);
        const bool full = ranges.empty() || stage_bytes({ranges.back().first, i + 1}) > limits_.shared_bytes ||
                          weights > most_weights;
        if (full) {
          ranges.push_back({i, i + 1});
          weights = weight_bytes(instructions_[i]);
          if (bytes_besides_weights(ranges.back()) > limits_.shared_bytes || weights > most_weights)
            return std::vector<Range>();
        }
        ranges.back().last = i + 1;
      }
      return ranges;
    };
    stages_ = split(total);
    if (stages_.empty())
      throw std::invalid_argument("what one layer computes does not fit the shared memory of one block");
    if (static_cast<int>(stages_.size()) > limits_.multiprocessors)
      throw std::invalid_argument("its layers need " + std::to_string(stages_.size()) +
                                  " blocks, more than the device has multiprocessors");
    int64_t low = 0, high = total;  // the least that gives as few stages lies in (low, high]
    while (high - low > kWeightBytes) {
      const int64_t middle = (low + high) / 2;
      const auto ranges = split(middle);
      const bool as_few = !ranges.empty() && ranges.size() == stages_.size();
      (as_few ? high : low) = middle;
    }
    stages_ = split(high);
    for (size_t s = 0; s < stages_.size(); s++)
      for (int i = stages_[s].first; i < stages_[s].last; i++) instructions_[i].stage = static_cast<int>(s);
  }

  // -- where things lie

  void place_in_shared() {
    for (int i = 0; i < jobs_; i++)
      for (Tap& tap : instructions_[i].pixel)
        tap.early = plan_.variant == Variant::pipeline && tap.plan.lag > 0 &&
                    instructions_[index_.at(tap.plan.value)].stage <= instructions_[i].stage;
    plan_.layout.logits_stride = logits_bytes() / kTile / static_cast<int>(sizeof(float));
    stage_plans_.resize(stages_.size());
    for (size_t s = 0; s < stages_.size(); s++) {
      tables_.emplace_back(program_.storage.size());
      for (size_t v = 0; v < program_.storage.size(); v++) tables_[s][v].fragments = fragments(static_cast<int>(v));
    }
    if (plan_.variant == Variant::block)
      place_block();
    else
      place_pipeline();
  }

  // Everything in shared memory if possible: first logits, then the newest column of each value, then older ones.
  void place_block() {
    std::map<int, int> wanted;  // value -> columns
    for (int i = 0; i < jobs_; i++)
      for (const auto& [value, lag] : reads(instructions_[i]))
        if (!in_row_phase(value)) wanted[value] = std::max(wanted[value], 1 + lag);
    const int ring = kWarps * kRing * kWeightBytes;
    int left = limits_.shared_bytes - ring;
    if (left < 0) throw std::invalid_argument("its blocks have too little shared memory");
    const bool logits = logits_bytes() <= left;
    if (logits) left -= logits_bytes();
    std::map<int, int> columns;
    for (int pass = 0; pass < 2; pass++)
      for (const auto& [value, most] : wanted) {
        const int more = (pass == 0 ? 1 : most) - columns[value];
        if (more * column_bytes(value) > left || (pass && columns[value] == 0)) continue;
        left -= more * column_bytes(value);
        columns[value] += more;
      }
    int next = ring;
    plan_.layout.clear_from = next;
    for (const auto& [value, count] : columns) {
      tables_[0][value].shared = next;
      tables_[0][value].shared_columns = count;
      next += count * column_bytes(value);
    }
    plan_.layout.clear_bytes = next - plan_.layout.clear_from;
    for (Instruction& i : instructions_) i.plan.logits = logits ? next : -1;
    plan_.shared_bytes = next + (logits ? logits_bytes() : 0);
  }

  // Values lie at the same place in all stages' tables of what they may hold: weights come last, as their size varies.
  void place_pipeline() {
    for (size_t s = 0; s < stages_.size(); s++) {
      StagePlan& stage = stage_plans_[s];
      auto& table = tables_[s];
      const Range range = stages_[s];
      int next = kFlagBytes;
      const auto received = s ? crossing(range.first) : std::set<int>();
      stage.shared_slots = next;
      stage.received_bytes = bytes_of(received);
      for (int value : received) {
        table[value].shared = next, table[value].shared_columns = 1, table[value].slot_bytes = stage.received_bytes;
        next += column_bytes(value);
      }
      next += stage.received_bytes;
      const auto hold = [&](int value) {
        table[value].shared = next, table[value].shared_columns = 1;
        next += column_bytes(value);
      };
      for (int i = range.first; i < range.last; i++) {
        if (instructions_[i].plan.is_output) {
          instructions_[i].plan.logits = next;
          next += logits_bytes();
        } else {
          hold(instructions_[i].plan.out);
        }
      }
      plan_.layout.clear_bytes = std::max(plan_.layout.clear_bytes, next);
      for (int i = range.first; i < range.last; i++) {
        if (sum_bytes(instructions_[i]) == 0) continue;
        instructions_[i].plan.sums = next;
        next += sum_bytes(instructions_[i]);
      }
      stage.shared_weights = next;
      stage.resident = resident(range, limits_.shared_bytes - next);
      for (int i = range.first; i < range.last; i++) next += weight_bytes(instructions_[i]);
      plan_.shared_bytes = std::max(plan_.shared_bytes, std::min(next, limits_.shared_bytes));
    }
  }

  void place_in_workspace() {
    int64_t next = 0;
    for (size_t v = 0; v < program_.storage.size(); v++) {
      const int value = static_cast<int>(v);
      const Storage& storage = program_.storage[v];
      ValuePlan p{};
      p.pad_left = storage.pad_left, p.rows = storage.rows;
      p.columns = storage.pad_left + program_.width + storage.pad_right;
      p.global = next;
      p.kept = draw_of(value) < 0 && (storage.rows > 1 || in_row_phase(value) || read_in_workspace(value));
      if (p.kept) next += int64_t{p.rows} * p.columns * column_bytes(value);
      for (auto& table : tables_) {
        table[v].pad_left = p.pad_left, table[v].rows = p.rows, table[v].columns = p.columns;
        table[v].global = p.global, table[v].kept = p.kept;
      }
    }
    for (Instruction& i : instructions_) {
      i.plan.partial = i.at_pixel && !i.row.empty() ? next : -1;
      if (i.plan.partial >= 0) next += int64_t{program_.width} * i.plan.tiles * kSumBytes;
    }
    plan_.layout.logits_global = next;
    if (plan_.variant == Variant::block) next += logits_bytes();  // in case that shared memory lacks room
    plan_.layout.tile_bytes = (next + 127) / 128 * 128;
    if (plan_.variant == Variant::block) return;
    int64_t group = static_cast<int64_t>(stages_.size()) * kFlagBytes;
    for (auto& stage : stage_plans_) {
      stage.global_slots = group;
      group += 2 * stage.received_bytes;
    }
    plan_.layout.group_bytes = (group + 127) / 128 * 128;
  }

  bool read_in_workspace(int value) const {
    for (int i = 0; i < jobs_; i++)
      for (const auto& [read, lag] : reads(instructions_[i]))
        if (read == value && lag >= tables_[instructions_[i].stage][value].shared_columns) return true;
    for (const auto& i : instructions_)
      for (const Tap& tap : i.row)
        if (tap.plan.value == value) return true;
    return false;
  }

  // -- the constants

  void write_constants() {
    for (int i = 0; i < static_cast<int>(instructions_.size()); i++) write_instruction(instructions_[i]);
    Layout& layout = plan_.layout;
    for (size_t s = 0; s < stages_.size(); s++) write_stage(s);
    layout.stages = static_cast<int>(stages_.size());
    std::vector<InstructionPlan> instructions;
    for (const auto& i : instructions_) instructions.push_back(i.plan);
    std::vector<ValuePlan> values;
    for (const auto& table : tables_) values.insert(values.end(), table.begin(), table.end());
    layout.steps = constants_.add(steps_);
    layout.slots = constants_.add(slots_);
    layout.taps = constants_.add(taps_);
    layout.sent = constants_.add(sent_);
    layout.values = constants_.add(values);
    layout.instructions = constants_.add(instructions);
    layout.stage_plans = constants_.add(stage_plans_);
    layout.row_lists = constants_.add(row_lists());
    plan_.constants = constants_.take();
  }

  void write_instruction(Instruction& i) {
    InstructionPlan& p = i.plan;
    const int padded = round_up(p.channels, kRows);
    p.bias = static_cast<int>(floats(i.source->bias, p.channels, padded));
    p.steps = static_cast<int>(steps_.size());
    p.n_steps = write_steps(*i.source, padded);
    const Input& input = i.source->input;
    p.table = input.table ? static_cast<int>(floats(input.table, program_.levels * input.width, program_.levels * input.width)) : -1;
    const auto write_taps = [&](int& begin, int& count, int& total, const std::vector<Tap>& taps, auto chosen) {
      begin = static_cast<int>(taps_.size());
      for (const Tap& tap : taps) {
        if (!chosen(tap)) continue;
        taps_.push_back(tap.plan);
        count++;
        total += fragments(tap.plan.value);
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

  int write_steps(const pcf::Instruction& i, int padded) {
    for (const auto& s : i.steps) {
      StepPlan p{s.kind, static_cast<float>(s.alpha), s.operand, 0, 0, 0};
      if (reads_value(s)) p.lag = lag(i, s.operand, 0);
      if (s.kind == StepKind::layer_norm) p.scale = program_.storage[s.operand].channels;
      if (s.kind == StepKind::add_condition || s.kind == StepKind::multiply_condition)
        p.operand = s.operand;
      if (s.kind == StepKind::affine) {
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

  void write_weights(const Instruction& i, const Tap& tap, int tile) {
    const int inputs = program_.storage[tap.plan.value].channels;
    for (int f = 0; f < fragments(tap.plan.value); f++) {
      char fragment[kWeightBytes];
      pack_weights(plan_.math, tap.weight, inputs, i.plan.channels, f * depth(), tile * kRows, fragment);
      constants_.add(fragment, kWeightBytes);
    }
  }

  // Each warp's weights in the order in which it reads them: the early ones of all instructions, then the late ones.
  void write_stage(size_t s) {
    StagePlan& stage = stage_plans_[s];
    stage.first = stages_[s].first, stage.count = stages_[s].last - stages_[s].first;
    stage.values = static_cast<int>(s * program_.storage.size());
    for (int warp = 0; warp < kWarps; warp++) {
      stage.weights[warp] = constants_.size();
      for (bool early : {true, false})
        for (int i = stages_[s].first; i < stages_[s].last; i++) {
          const Instruction& instruction = instructions_[i];
          for (int tile = warp; tile < instruction.plan.tiles; tile += kWarps) {
            for (const Tap& tap : instruction.pixel)
              if (tap.early == early) write_weights(instruction, tap, tile);
            if (!early && instruction.plan.drawn) stage.drawn_fragments[warp] += instruction.plan.late_fragments;
          }
        }
    }
    stage.weights[kWarps] = constants_.size();
    plan_.pixel_weight_bytes += constants_.size() - stage.weights[0];
    plan_.stage_weight_bytes.push_back(constants_.size() - stage.weights[0]);
    plan_.stage_instructions.push_back(stage.count);
    int64_t early = 0;
    for (int i = stages_[s].first; i < stages_[s].last; i++)
      early += int64_t{instructions_[i].plan.early_fragments} * instructions_[i].plan.tiles * kWeightBytes;
    plan_.stage_early_bytes.push_back(early);
    stage.sent = static_cast<int>(sent_.size());
    if (s + 1 < stages_.size())
      for (int value : crossing(stages_[s].last)) sent_.push_back(value);
    stage.n_sent = static_cast<int>(sent_.size()) - stage.sent;
    place_meetings(stages_[s]);
  }

  // Warps own channels, and matrix products read those of other warps: the block meets before an instruction reads
  // what was written since the last meeting. What is older has been waited for: every job ends in a meeting.
  void place_meetings(Range range) {
    std::set<int> written;
    int meetings = 0;
    for (int i = range.first; i < range.last; i++) {
      InstructionPlan& p = instructions_[i].plan;
      for (const auto& [value, lag] : reads(instructions_[i])) p.meet |= lag == 0 && written.count(value);
      // Levels that have just been drawn are read, or the logits that they were drawn from are overwritten.
      p.meet |= written.count(kLevels) && ((p.tiles == 0 && !p.drawn) || p.is_output);
      if (p.meet) written.clear();
      meetings += p.meet;
      written.insert(p.is_output ? kLevels : p.out);
    }
    plan_.stage_meetings.push_back(meetings);
  }

  // The row phase by levels: an instruction comes after the row values that it reads in the present row.
  std::vector<int> row_lists() {
    std::map<int, int> level_of;  // by value
    std::map<int, std::vector<int>> by_level;
    const auto after = [&](int value) { return in_row_phase(value) ? level_of.at(value) + 1 : 0; };
    for (const auto& i : program_.instructions) {
      int& level = level_of[i.out] = 0;
      for (const auto& run : i.row_runs)
        if (run.dy == 0) level = std::max(level, after(run.source));
      if (i.row_runs.empty() && !in_row_phase(i.out)) continue;
      if (in_row_phase(i.out) && i.base >= 0) level = std::max(level, after(i.base));
      for (const auto& s : i.steps)
        if (in_row_phase(i.out) && reads_value(s)) level = std::max(level, after(s.operand));
      by_level[level].push_back(index_.at(i.out));
    }
    std::vector<int> lists;
    for (const auto& [level, list] : by_level) {
      plan_.row_launches.push_back({static_cast<int>(lists.size()), static_cast<int>(list.size())});
      lists.insert(lists.end(), list.begin(), list.end());
    }
    return lists;
  }

  const Program& program_;
  const Limits& limits_;
  Plan plan_;
  std::map<int, const pcf::Instruction*> by_value_;
  std::map<int, int> index_;  // value -> instruction
  std::vector<Instruction> instructions_;
  int jobs_ = 0;  // instructions that run in jobs: the first ones
  std::vector<SlotPlan> slots_;
  int64_t numbers_of_slots_ = 0;
  std::vector<Range> stages_;
  std::vector<std::vector<ValuePlan>> tables_;  // per stage, by value
  std::vector<StagePlan> stage_plans_;
  Constants constants_;
  std::vector<StepPlan> steps_;
  std::vector<TapPlan> taps_;
  std::vector<int> sent_;
};

}  // namespace

Plan make_plan(const Program& program, Math math, Variant variant, const Limits& limits) {
  return Planner(program, math, variant, limits).make();
}

}  // namespace pcf

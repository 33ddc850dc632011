#include "cuda/memory_plan.h"

#include <algorithm>
#include <stdexcept>

namespace pcf::cuda {
namespace {

class MemoryPlanner {
 public:
  MemoryPlanner(ColumnSteps& steps, const std::vector<Range>& stages, const Limits& limits, Plan& plan)
      : column_steps_(steps), storage_(steps.program.storage), ranges_(stages), limits_(limits), plan_(plan) {}

  MemoryPlan make() {
    plan_.layout.logits_stride = column_steps_.logits_bytes() / kTile / static_cast<int>(sizeof(float));
    memory_.stages.resize(ranges_.size());
    std::vector<ValuePlan> table(storage_.size());
    for (size_t v = 0; v < table.size(); v++) table[v].fragments = column_steps_.fragments(static_cast<int>(v));
    memory_.values.assign(ranges_.size(), table);
    if (plan_.variant == Variant::block) {
      plan_block();
    } else {
      mark_early_taps();
      for (size_t s = 0; s < ranges_.size(); s++) plan_stage(s);
    }
    plan_workspace();
    return std::move(memory_);
  }

 private:
  // Puts everything into shared memory if it fits: first logits, then each value's newest column, then older ones.
  void plan_block() {
    std::map<int, int> wanted;  // value -> columns
    for (int i = 0; i < column_steps_.count; i++)
      for (const auto& [value, lag] : column_steps_.reads(column_steps_.instructions[i]))
        if (!column_steps_.in_row_phase(value)) wanted[value] = std::max(wanted[value], 1 + lag);
    const int ring = kWarps * kRing * kWeightBytes;
    int left = limits_.shared_bytes - ring;
    if (left < 0) throw std::invalid_argument("its blocks have too little shared memory");
    const bool logits = column_steps_.logits_bytes() <= left;
    if (logits) left -= column_steps_.logits_bytes();
    std::map<int, int> columns;
    for (int pass = 0; pass < 2; pass++)
      for (const auto& [value, most] : wanted) {
        const int more = (pass == 0 ? 1 : most) - columns[value];
        if (more * column_steps_.column_bytes(value) > left || (pass && columns[value] == 0)) continue;
        left -= more * column_steps_.column_bytes(value);
        columns[value] += more;
      }
    int next = ring;
    plan_.layout.clear_from = next;
    for (const auto& [value, count] : columns) {
      memory_.values[0][value].shared = next;
      memory_.values[0][value].shared_columns = count;
      next += count * column_steps_.column_bytes(value);
    }
    plan_.layout.clear_bytes = next - plan_.layout.clear_from;
    for (PlannedInstruction& i : column_steps_.instructions) i.plan.logits = logits ? next : -1;
    plan_.shared_bytes = next + (logits ? column_steps_.logits_bytes() : 0);
  }

  void mark_early_taps() {
    for (int i = 0; i < column_steps_.count; i++)
      for (Tap& tap : column_steps_.instructions[i].pixel)
        tap.early = tap.plan.lag > 0 && column_steps_.instructions[column_steps_.index_of(tap.plan.value)].stage <=
                                            column_steps_.instructions[i].stage;
  }

  // What must be zero when a row begins comes first, whatever its length; weights come last, as their size varies.
  void plan_stage(size_t s) {
    StagePlan& stage = memory_.stages[s];
    auto& table = memory_.values[s];
    const Range range = ranges_[s];
    int next = kFlagBytes;
    const auto received = s ? crossing(column_steps_, range.first) : std::set<int>();
    stage.shared_slots = next;
    stage.received_bytes = bytes_of(column_steps_, received);
    for (int value : received) {
      table[value].shared = next, table[value].shared_columns = 1, table[value].slot_bytes = stage.received_bytes;
      next += column_steps_.column_bytes(value);
    }
    next += stage.received_bytes;
    for (int i = range.first; i < range.last; i++) {
      InstructionPlan& p = column_steps_.instructions[i].plan;
      if (p.is_output) {
        p.logits = next;
        next += column_steps_.logits_bytes();
      } else {
        table[p.out].shared = next, table[p.out].shared_columns = 1;
        next += column_steps_.column_bytes(p.out);
      }
    }
    plan_.layout.clear_bytes = std::max(plan_.layout.clear_bytes, next);
    for (int i = range.first; i < range.last; i++) {
      const int bytes = column_steps_.sum_bytes(column_steps_.instructions[i]);
      if (bytes == 0) continue;
      column_steps_.instructions[i].plan.sums = next;
      next += bytes;
    }
    stage.shared_weights = next;
    stage.resident = resident_fragments(column_steps_, range, limits_.shared_bytes - next);
    for (int i = range.first; i < range.last; i++) next += column_steps_.weight_bytes(column_steps_.instructions[i]);
    plan_.shared_bytes = std::max(plan_.shared_bytes, std::min(next, limits_.shared_bytes));
  }

  void plan_workspace() {
    int64_t next = 0;
    for (size_t v = 0; v < storage_.size(); v++) {
      const int value = static_cast<int>(v);
      const Storage& storage = storage_[v];
      const int columns = storage.pad_left + column_steps_.program.width + storage.pad_right;
      const bool kept = column_steps_.draw_of(value) < 0 &&
                        (storage.rows > 1 || column_steps_.in_row_phase(value) || read_in_workspace(value));
      for (auto& table : memory_.values) {
        table[v].pad_left = storage.pad_left, table[v].rows = storage.rows, table[v].columns = columns;
        table[v].global = next, table[v].kept = kept;
      }
      if (kept) next += int64_t{storage.rows} * columns * column_steps_.column_bytes(value);
    }
    for (PlannedInstruction& i : column_steps_.instructions) {
      i.plan.partial = i.at_pixel && !i.row.empty() ? next : -1;
      if (i.plan.partial >= 0) next += int64_t{column_steps_.program.width} * i.plan.tiles * kSumBytes;
    }
    plan_.layout.logits_global = next;
    if (plan_.variant == Variant::block) next += column_steps_.logits_bytes();  // in case shared memory lacks room
    plan_.layout.tile_bytes = (next + 127) / 128 * 128;
    if (plan_.variant == Variant::block) return;
    int64_t pipeline = static_cast<int64_t>(ranges_.size()) * kFlagBytes;
    for (auto& stage : memory_.stages) {
      stage.global_slots = pipeline;
      pipeline += 2 * stage.received_bytes;
    }
    plan_.layout.pipeline_bytes = (pipeline + 127) / 128 * 128;
  }

  bool read_in_workspace(int value) const {
    for (int i = 0; i < column_steps_.count; i++)
      for (const auto& [read, lag] : column_steps_.reads(column_steps_.instructions[i]))
        if (read == value && lag >= memory_.values[column_steps_.instructions[i].stage][value].shared_columns)
          return true;
    for (const auto& i : column_steps_.instructions)
      for (const Tap& tap : i.row)
        if (tap.plan.value == value) return true;
    return false;
  }

  ColumnSteps& column_steps_;
  const std::vector<Storage>& storage_;
  const std::vector<Range>& ranges_;
  const Limits& limits_;
  Plan& plan_;
  MemoryPlan memory_;
};

}  // namespace

MemoryPlan plan_memory(ColumnSteps& steps, const std::vector<Range>& stages, const Limits& limits, Plan& plan) {
  return MemoryPlanner(steps, stages, limits, plan).make();
}

}  // namespace pcf::cuda

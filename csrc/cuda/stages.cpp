#include "cuda/stages.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace pcf::cuda {
namespace {

// The shared memory of a stage, without its weights.
int bytes_besides_weights(const ColumnSteps& steps, Range range) {
  int bytes = kFlagBytes + (range.first ? 2 * bytes_of(steps, crossing(steps, range.first)) : 0);
  for (int i = range.first; i < range.last; i++) {
    const PlannedInstruction& instruction = steps.instructions[i];
    bytes += steps.sum_bytes(instruction);
    bytes += instruction.plan.is_output ? steps.logits_bytes() : steps.column_bytes(instruction.plan.out);
  }
  return bytes;
}

int stage_bytes(const ColumnSteps& steps, Range range) {
  int bytes = bytes_besides_weights(steps, range);
  for (int i = range.first; i < range.last; i++) bytes += steps.weight_bytes(steps.instructions[i]);
  return bytes;
}

// Makes each stage as long as shared memory and this many bytes of weights allow; empty if a layer exceeds them.
std::vector<Range> split(const ColumnSteps& steps, int shared_bytes, int64_t most_weights) {
  std::vector<Range> ranges;
  int64_t weights = 0;
  for (int i = 0; i < steps.count; i++) {
    const int more = steps.weight_bytes(steps.instructions[i]);
    weights += more;
    const bool full =
        ranges.empty() || stage_bytes(steps, {ranges.back().first, i + 1}) > shared_bytes || weights > most_weights;
    if (full) {
      ranges.push_back({i, i + 1});
      weights = more;
      if (bytes_besides_weights(steps, ranges.back()) > shared_bytes || weights > most_weights) return {};
    }
    ranges.back().last = i + 1;
  }
  return ranges;
}

}  // namespace

std::vector<Range> split_into_stages(const ColumnSteps& steps, const Limits& limits) {
  int64_t total = 0;
  for (int i = 0; i < steps.count; i++) total += steps.weight_bytes(steps.instructions[i]);
  const std::vector<Range> fewest = split(steps, limits.shared_bytes, total);
  if (fewest.empty())
    throw std::invalid_argument("what one layer computes does not fit into the shared memory of one block");
  if (static_cast<int>(fewest.size()) > limits.multiprocessors)
    throw std::invalid_argument("its layers need " + std::to_string(fewest.size()) +
                                " blocks, more than the device has multiprocessors");
  int64_t low = 0, high = total;  // the smallest limit that gives as few stages lies in (low, high]
  while (high - low > kWeightBytes) {
    const int64_t middle = (low + high) / 2;
    const bool as_few = split(steps, limits.shared_bytes, middle).size() == fewest.size();
    (as_few ? high : low) = middle;
  }
  return split(steps, limits.shared_bytes, high);
}

std::set<int> crossing(const ColumnSteps& steps, int at) {
  std::set<int> result;
  for (int i = at; i < steps.count; i++)
    for (const auto& [value, lag] : steps.reads(steps.instructions[i]))
      if (lag == 0 && !steps.in_row_phase(value) && steps.index_of(value) < at) result.insert(value);
  return result;
}

int bytes_of(const ColumnSteps& steps, const std::set<int>& values) {
  int bytes = 0;
  for (int value : values) bytes += steps.column_bytes(value);
  return bytes;
}

int resident_fragments(const ColumnSteps& steps, Range range, int room) {
  int fragments_of_warp[kWarps] = {};
  for (int i = range.first; i < range.last; i++) {
    const InstructionPlan& p = steps.instructions[i].plan;
    for (int tile = 0; tile < p.tiles; tile++)
      fragments_of_warp[tile % kWarps] += steps.weight_bytes(steps.instructions[i]) / p.tiles / kWeightBytes;
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

}  // namespace pcf::cuda

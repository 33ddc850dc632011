// What the planner's records make of their sums.
#include "cuda/plan/planner.h"

#include <limits>

namespace pcf::cuda {

void Planner::draft_results(const std::vector<const Instruction*>& group, const Joint& joint, int position, Draft& d,
                            Part& part, int number) {
  Record::Product& product = part.product;
  product.results = size_of(results_);
  std::vector<float> biases;
  const bool is_output = draw_of(position) >= 0;
  if (joint.size > 0) draft_joint(joint, position, d, part, number, biases);
  for (size_t k = joint.size; k < group.size(); k++) {
    const Instruction* const i = group[k];
    const size_t begin = biases.size();
    const int sums = timeline_.sums_of(i->out);
    const int goes_on = sums < 0 ? -1 : sums_at(sums, position, d, number);
    if (is_product(i) && sums < 0) add_biases(biases, {i}, part);
    for (int member = 0; member < part.wide; member++) {
      Result& r = add_result(i->out, part, member);
      if (is_output) logits_results_.push_back({number, static_cast<int>(results_.size()) - 1});
      if (sums < 0)
        r.bias = static_cast<uint32_t>((begin + member * kTileChannels) * sizeof(float));
      else
        goes_on_with(r, goes_on);
      draft_steps(*i, position, r, d, number);
      if (timeline_.is_sums(i->out)) r.ending = Ending::sums;
      if (r.ending == Ending::sum || r.ending == Ending::logits) break;  // of all members
    }
    if (!is_output) writes(i->out, number);
  }
  product.n_results = static_cast<int>(size_of(results_) - product.results);
  stage_biases(biases, d, part, number);
}

Result& Planner::add_result(int value, const Part& part, int member) {
  result_values_.push_back(value);
  Result& r = results_.emplace_back();
  r.first_channel = part.first_channel + member * kTileChannels, r.tile_channels = part.wide * kTileChannels;
  r.to = {kNowhere, kNowhere, 0}, r.logits = kNowhere;
  r.bias_member = kTileChannels * sizeof(float), r.bias_tile = part.wide * r.bias_member;
  return r;
}

void Planner::add_biases(std::vector<float>& biases, const std::vector<const Instruction*>& in_turn, const Part& part) {
  const int end = part.first_channel + part.tiles * part.wide * kTileChannels;
  for (int channel = part.first_channel; channel < end; channel++) {
    const Instruction& i = *in_turn[channel % in_turn.size()];
    const int c = channel / static_cast<int>(in_turn.size());
    biases.push_back(i.bias && c < i.channels ? static_cast<const float*>(i.bias)[c] : 0.f);
  }
}

int Planner::sums_at(int sums, int position, Draft& d, int number) {
  return operand_at({sums, 0, 0, kLongAgo}, position, 0, d, number);  // rows are sampled one at a time
}

void Planner::goes_on_with(Result& r, int reference) {
  r.bias_tile = r.tile_channels / kTileChannels * column_, r.bias_member = column_, r.bias_site = kSiteBytes;
  r.bias = static_cast<uint32_t>(r.first_channel / kTileChannels * column_);
  going_on_[static_cast<int>(results_.size()) - 1] = reference;
}

void Planner::stage_biases(const std::vector<float>& biases, Draft& d, Part& part, int number) {
  if (biases.empty()) return;
  if (thrift_.near_biases) {
    part.biases = static_cast<int>(biases_.size());
    biases_.insert(biases_.end(), biases.begin(), biases.end());
    return;
  }
  d.copies.floats = static_cast<int>(floats_.size());
  d.copies.bias_bytes = static_cast<int>(biases.size() * sizeof(float));
  floats_.insert(floats_.end(), biases.begin(), biases.end());
  part.biases = stage(d.copies.bias_bytes, number);
}

Planner::Joint Planner::joint_of(const std::vector<const Instruction*>& group, int position) const {
  const auto products = std::count_if(group.begin(), group.end(), is_product);
  return products == 4 && group.size() > 4 ? lstm_of(group, position) : gate_of(group);
}

bool Planner::has_steps(const Instruction* i, const std::vector<StepKind>& kinds, const Instruction* factor) {
  return std::equal(i->steps.begin(), i->steps.end(), kinds.begin(), kinds.end(), [&](const Step& s, StepKind kind) {
    return s.kind == kind && (kind != StepKind::multiply || !factor || s.operand == factor->out);
  });
}

Planner::Joint Planner::gate_of(const std::vector<const Instruction*>& group) const {
  if (std::count_if(group.begin(), group.end(), is_product) != 2 || timeline_.is_sums(group[0]->out)) return {};
  if (timeline_.sums_of(group[0]->out) >= 0) return {};  // they are not in turn
  const bool keeps_sums = has_steps(group[0], {}) && has_steps(group[1], {});
  if (keeps_sums && group.size() < 4) return {};
  const Instruction *const first = group[keeps_sums ? 2 : 0], *const out = group[keeps_sums ? 3 : 1];
  const bool rounds_tanh = has_steps(first, {StepKind::tanh});
  const StepKind other = rounds_tanh ? StepKind::sigmoid : StepKind::tanh;
  if (!is_read_once(first) || !has_steps(out, {other, StepKind::multiply}, first) ||
      !(rounds_tanh || has_steps(first, {StepKind::sigmoid})))
    return {};
  // The product that an activation is of: the instruction itself, or the one whose sums it reads, if it does.
  const auto product_of = [&](const Instruction* i) -> const Instruction* {
    if (!keeps_sums) return i;
    return i->value == group[0]->out ? group[0] : i->value == group[1]->out ? group[1] : nullptr;
  };
  const auto tanh = product_of(rounds_tanh ? first : out), gate = product_of(rounds_tanh ? out : first);
  if (!tanh || !gate || tanh == gate) return {};
  return {keeps_sums ? 4u : 2u, Ending::gate, {tanh, gate}, nullptr, out, rounds_tanh, keeps_sums};
}

Planner::Joint Planner::lstm_of(const std::vector<const Instruction*>& group, int position) const {
  constexpr auto kTanh = StepKind::tanh, kSigmoid = StepKind::sigmoid, kMultiply = StepKind::multiply;
  const Instruction *tanh = nullptr, *input = nullptr, *forget = nullptr, *output = nullptr, *out = group[4];
  for (const Instruction* i : {group[0], group[1], group[2], group[3]}) {
    if (has_steps(i, {kTanh})) tanh = i;
    if (has_steps(i, {kSigmoid})) output = i;
    if (tanh && has_steps(i, {kSigmoid, kMultiply}, tanh)) input = i;
    if (input && has_steps(i, {kSigmoid, kMultiply, StepKind::add}) && i->steps[2].operand == input->out &&
        i->steps[2].alpha == 1)
      forget = i;
  }
  const bool found = tanh && output && input && forget && is_read_once(tanh) && is_read_once(output) &&
                     is_read_once(input) && out->value == forget->out && has_steps(out, {kTanh, kMultiply}, output) &&
                     distance(position, cell_before(*forget)) >= kVisible;
  return found ? Joint{5, Ending::lstm, {tanh, input, forget, output}, forget, out} : Joint{};
}

Read Planner::cell_before(const Instruction& cell) const {
  return timeline_.read(cell, cell.steps[1].operand, cell.steps[1].dy, cell.steps[1].dx);
}

void Planner::draft_joint(const Joint& joint, int position, Draft& d, const Part& part, int number,
                          std::vector<float>& biases) {
  if (joint.ending == Ending::gate)
    add_biases(biases, joint.members, part);
  else if (timeline_.sums_of(joint.members[0]->out) < 0)
    for (const Instruction* i : joint.members) add_biases(biases, {i}, part);
  Result& r = add_result(joint.out->out, part, 0);
  if (joint.ending == Ending::lstm) r.bias_member = part.tiles * kTileChannels * sizeof(float);
  r.ending = joint.ending;
  if (const int first = timeline_.sums_of(joint.members[0]->out); first >= 0) {
    for (const Instruction* i : joint.members) {
      const int reference = sums_at(timeline_.sums_of(i->out), position, d, number);
      if (i == joint.members[0]) goes_on_with(r, reference);
    }
    r.bias_member = fragments(first) * column_;  // as they are copied one after the other
  }
  writes(joint.out->out, number);
  if (!joint.cell) {
    r.gate = {joint.rounds_tanh, joint.keeps_sums, {}};
    if (!joint.keeps_sums) return;
    also_writes(joint.members[0]->out, number, [](Result& r) -> Target& { return r.gate.sums[0]; });
    also_writes(joint.members[1]->out, number, [](Result& r) -> Target& { return r.gate.sums[1]; });
    return;
  }
  r.lstm.factor = static_cast<uint32_t>(operand_at(cell_before(*joint.cell), position, joint.cell->lead, d, number));
  also_writes(joint.cell->out, number, [](Result& r) -> Target& { return r.lstm.cell; });
}

void Planner::also_writes(int value, int number, Target& (*target)(Result&)) {
  also_written_.push_back({results_.size() - 1, value, target});
  writes(value, number);
}

void Planner::draft_steps(const Instruction& i, int position, Result& r, Draft& d, int number) {
  const auto operand = [&](int value, int dy, int dx) {
    return operand_at(timeline_.read(i, value, dy, dx), position, i.lead, d, number);
  };
  r.lead = i.lead, r.takes_sums = i.kind == InstructionKind::convolution;
  const int starts = i.kind == InstructionKind::pointwise ? operand(i.value, i.dy, i.dx) : -1;
  const int first = static_cast<int>(steps_.size());
  for (const Step& s : i.steps) {
    StepPlan& step = add_step(i, s);
    if (!reads_value(s)) continue;
    step_places_[static_cast<int>(steps_.size()) - 1] = operand(s.operand, s.dy, s.dx);
    if (reads_all_channels(s.kind)) {
      step.all_channels = timeline_.channels(s.operand);
      step.inverse_channels = 1.f / static_cast<float>(step.all_channels);
    }
  }
  const bool is_output = draw_of(position) >= 0;
  if (is_output && starts < 0 && i.steps.empty()) r.ending = Ending::logits;
  if (r.ending == Ending::logits || (!is_output && (is_sum(i, starts, first, r) || is_activated(i, starts, first, r))))
    return;
  r.ending = Ending::steps;
  r.steps = {starts < 0 ? kNowhere : static_cast<uint32_t>(starts), static_cast<uint32_t>(first),
             static_cast<int>(i.steps.size()), i.channels};
}

int Planner::operand_at(const Read& read, int position, int lead, Draft& d, int number) {
  Reference found{read, number, near(position, read), lead};
  if (!is_own(found) && distance(position, read) >= kVisible) {
    found.staged = static_cast<int>(d.copied.size());
    add_fragments(d.copied, read, 0, lead, false);
  } else {
    found.in_shared ? uses_shared(read, number) : uses_ring(read);
  }
  references_.push_back(found);
  return static_cast<int>(references_.size()) - 1;
}

bool Planner::is_own(const Reference& r) {
  return r.staged >= 0 || (r.in_shared && r.read.age == 0 && r.read.dy == 0 && r.read.dx == 0);
}

bool Planner::adds_own(const Instruction& i, size_t step, int first) const {
  return step < i.steps.size() && i.steps[step].kind == StepKind::add && i.steps[step].alpha == 1 &&
         is_own(step_places_.at(first + static_cast<int>(step)));
}

bool Planner::is_sum(const Instruction& i, int starts, int first, Result& r) const {
  if (starts >= 0) return false;
  const size_t adds = adds_own(i, 0, first), left = i.steps.size() - adds;
  if (left > 1 || (left == 1 && i.steps[adds].kind != StepKind::relu)) return false;
  r.ending = Ending::sum;
  r.sum.added = adds ? static_cast<uint32_t>(step_places_.at(first)) : kNowhere;
  r.sum.least = left ? 0 : -std::numeric_limits<float>::infinity();
  return true;
}

bool Planner::is_activated(const Instruction& i, int starts, int first, Result& r) const {
  if (starts >= 0 && !is_own(starts)) return false;
  size_t next = 0;
  const auto is_next = [&](StepKind kind) { return next < i.steps.size() && i.steps[next].kind == kind; };
  Activation activation = Activation::none;
  for (const auto& [kind, found] :
       {std::pair{StepKind::relu, Activation::relu}, std::pair{StepKind::sigmoid, Activation::sigmoid},
        std::pair{StepKind::tanh, Activation::tanh}})
    if (next == 0 && is_next(kind)) activation = found, next++;
  uint32_t factor = kNowhere, term = kNowhere;
  if (is_next(StepKind::multiply) && is_own(step_places_.at(first + static_cast<int>(next))))
    factor = static_cast<uint32_t>(step_places_.at(first + static_cast<int>(next++)));
  if (adds_own(i, next, first)) term = static_cast<uint32_t>(step_places_.at(first + static_cast<int>(next++)));
  if (next != i.steps.size()) return false;
  r.ending = Ending::activated, r.activation = activation;
  r.activated = {starts < 0 ? kNowhere : static_cast<uint32_t>(starts), factor, term, 0};
  return true;
}

StepPlan& Planner::add_step(const Instruction& i, const Step& s) {
  StepPlan step{};
  step.kind = s.kind, step.alpha = static_cast<float>(s.alpha), step.reads = operand_of(s.kind);
  step.condition = s.operand;
  const int width = round_up(i.channels, 2 * kTileChannels);
  step.scale = floats(s.scale, i.channels, width), step.shift = floats(s.shift, i.channels, width);
  steps_.push_back(step);
  return steps_.back();
}

int Planner::floats(const void* from, int count, int width) {
  const auto [found, is_new] = floats_of_.try_emplace({from, width}, static_cast<int>(floats_.size()));
  if (!is_new) return found->second;
  floats_.resize(floats_.size() + round_up(width, 4));
  if (from) std::copy_n(static_cast<const float*>(from), count, floats_.begin() + found->second);
  return found->second;
}

}  // namespace pcf::cuda

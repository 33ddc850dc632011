// What the planner's records make of their sums.
#include <limits>

#include "cuda/plan/planner.h"

namespace pcf::cuda {
namespace {

// Whether an instruction's steps are these, where a multiplication is by the value of `factor`.
bool has_steps(const Instruction* i, const std::vector<StepKind>& kinds, const Instruction* factor = nullptr) {
  return std::ranges::equal(i->steps, kinds, [&](const Step& s, StepKind kind) {
    return s.kind == kind && (kind != StepKind::multiply || !factor || s.operand == factor->out);
  });
}

bool is_read_once(const Planner& p, const Instruction* i) { return p.timeline.readers.at(i->out) == 1; }

Joint gate_of(const Planner& p, const Instructions& group) {
  if (std::ranges::count_if(group, is_product) != 2 || p.timeline.is_sums(group[0]->out)) return {};
  if (p.timeline.sums_of(group[0]->out) >= 0) return {};  // they are not in turn
  const bool keeps_sums = has_steps(group[0], {}) && has_steps(group[1], {});
  if (keeps_sums && group.size() < 4) return {};
  const Instruction *const first = group[keeps_sums ? 2 : 0], *const out = group[keeps_sums ? 3 : 1];
  const bool rounds_tanh = has_steps(first, {StepKind::tanh});
  const StepKind other = rounds_tanh ? StepKind::sigmoid : StepKind::tanh;
  if (!is_read_once(p, first) || !has_steps(out, {other, StepKind::multiply}, first) ||
      !(rounds_tanh || has_steps(first, {StepKind::sigmoid})))
    return {};
  // The product that an activation is of: the instruction itself, or the one whose sums it reads, if it does.
  const auto product_of = [&](const Instruction* i) -> const Instruction* {
    if (!keeps_sums) return i;
    return i->value == group[0]->out ? group[0] : i->value == group[1]->out ? group[1] : nullptr;
  };
  const auto tanh = product_of(rounds_tanh ? first : out), gate = product_of(rounds_tanh ? out : first);
  if (!tanh || !gate || tanh == gate) return {};
  return {keeps_sums ? 4u : 2u, Ending::gate, {tanh, gate}, out, rounds_tanh, keeps_sums};
}

// What an LSTM's forget gate multiplies.
Read cell_before(const Planner& p, const Instruction& cell) {
  return p.timeline.read(cell, cell.steps[1].operand, cell.steps[1].dy, cell.steps[1].dx);
}

Joint lstm_of(const Planner& p, const Instructions& group, int entry) {
  constexpr auto kTanh = StepKind::tanh, kSigmoid = StepKind::sigmoid, kMultiply = StepKind::multiply;
  const Instruction *tanh = nullptr, *input = nullptr, *forget = nullptr, *output = nullptr, *out = group[4];
  for (const Instruction* i : std::span(group).first(4)) {
    if (has_steps(i, {kTanh})) tanh = i;
    if (has_steps(i, {kSigmoid})) output = i;
    if (tanh && has_steps(i, {kSigmoid, kMultiply}, tanh)) input = i;
    if (input && has_steps(i, {kSigmoid, kMultiply, StepKind::add}) && i->steps[2].operand == input->out &&
        i->steps[2].alpha == 1)
      forget = i;
  }
  const bool found = tanh && output && input && forget && is_read_once(p, tanh) && is_read_once(p, output) &&
                     is_read_once(p, input) && out->value == forget->out &&
                     has_steps(out, {kTanh, kMultiply}, output) &&
                     p.timeline.distance(entry, cell_before(p, *forget)) >= kVisible;
  return found ? Joint{5, Ending::lstm, {tanh, input, forget, output}, out} : Joint{};
}

// A value that steps read: where it was written in this column step, or where it was copied ahead, or else anywhere.
// -> the reference to it
uint32_t operand_at(Planner& p, const Read& read, int lead) {
  Draft& d = p.drafts.back();
  // A value's shared memory holds what was computed last.
  const int depth = p.timeline.entries[d.entry].depth, written = p.timeline.depth(read.value);
  const bool is_last = read.age == 0 || (read.age == 1 && depth < written);
  const int distance = p.timeline.distance(d.entry, read);
  Reference found{read, p.present(), is_last && distance <= kNear, lead};
  if (!found.is_own() && distance >= kVisible) {
    found.staged = size_of(d.copied);
    add_fragments(p, d.copied, read, 0, lead, false);
  } else {
    found.in_shared ? p.uses_shared(read, p.present()) : p.uses_ring(read);
  }
  p.references.push_back(found);
  return size_of(p.references) - 1;
}

// Sums that a product goes on with instead of a bias. -> the reference to them
uint32_t sums_at(Planner& p, int sums) {
  return operand_at(p, {sums, 0, 0, kLongAgo}, 0);  // rows are sampled one at a time
}

// Floats of the program, filled up with zeros. -> where they lie
int floats(Planner& p, const void* from, int count, int width) {
  const auto [found, is_new] = p.floats_of.try_emplace({from, width}, size_of(p.floats));
  if (!is_new) return found->second;
  p.floats.resize(p.floats.size() + round_up(width, 4));
  if (from) std::copy_n(static_cast<const float*>(from), count, p.floats.begin() + found->second);
  return found->second;
}

void add_step(Planner& p, const Instruction& i, const Step& s) {
  StepPlan& step = p.steps.emplace_back();
  step.kind = s.kind, step.alpha = static_cast<float>(s.alpha), step.reads = traits(s.kind).operand;
  step.condition = s.operand;
  const int width = round_up(i.channels, 2 * kTileChannels);
  step.scale = floats(p, s.scale, i.channels, width), step.shift = floats(p, s.shift, i.channels, width);
  if (!reads_value(s)) return;
  step.place.at = operand_at(p, p.timeline.read(i, s.operand, s.dy, s.dx), i.lead);
  if (!traits(s.kind).reads_all_channels) return;
  step.all_channels = p.timeline.channels(s.operand);
  step.inverse_channels = 1.f / static_cast<float>(step.all_channels);
}

// Takes the next step, if it is of this kind and reads a value in shared memory at the result's own site. -> the
// reference to the value, or kNowhere
uint32_t take_own(const Planner& p, std::span<const StepPlan>& steps, StepKind kind) {
  if (steps.empty() || steps[0].kind != kind || (kind == StepKind::add && steps[0].alpha != 1)) return kNowhere;
  const uint32_t reference = steps[0].place.at;
  if (!p.references[reference].is_own()) return kNowhere;
  steps = steps.subspan(1);
  return reference;
}

// Common results need not go through the steps one by one. starts: the value that they start from, or kNowhere: the
// sums.
bool is_common(const Planner& p, const std::span<const StepPlan>& steps, uint32_t starts, Result& r) {
  auto left = steps;
  const uint32_t added = take_own(p, left, StepKind::add);
  if (starts == kNowhere && (left.empty() || (left.size() == 1 && left[0].kind == StepKind::relu))) {
    r.ending = Ending::sum, r.sum = {added, left.empty() ? -std::numeric_limits<float>::infinity() : 0};
    return true;
  }
  if (starts != kNowhere && !p.references[starts].is_own()) return false;
  left = steps;
  const StepKind activation = left.empty() ? StepKind::affine : left[0].kind;
  for (const StepKind kind : {StepKind::relu, StepKind::sigmoid, StepKind::tanh})
    if (activation == kind) left = left.subspan(1);
  const uint32_t factor = take_own(p, left, StepKind::multiply), term = take_own(p, left, StepKind::add);
  if (!left.empty()) return false;
  r.ending = Ending::activated, r.activation = activation, r.activated = {starts, factor, term};
  return true;
}

void draft_steps(Planner& p, const Instruction& i, Result& r) {
  r.lead = i.lead, r.takes_sums = is_product(&i);
  const uint32_t starts = i.value < 0 ? kNowhere : operand_at(p, p.timeline.read(i, i.value, i.dy, i.dx), i.lead);
  const uint32_t first = size_of(p.steps);
  for (const Step& s : i.steps) add_step(p, i, s);
  const std::span<const StepPlan> steps = std::span(p.steps).subspan(first);
  const bool may_be_common = r.logits == kNowhere || (starts == kNowhere && steps.empty());
  if (!may_be_common || !is_common(p, steps, starts, r))
    r.ending = Ending::steps, r.steps = {starts, first, static_cast<int>(steps.size()), i.channels};
}

// Of those channels that the record computes.
void add_biases(std::vector<float>& biases, const Instructions& in_turn, const Part& part) {
  const int end = part.first_channel + part.tiles * part.wide * kTileChannels;
  for (int channel = part.first_channel; channel < end; channel++) {
    const Instruction& i = *in_turn[channel % in_turn.size()];
    const int c = channel / size_of(in_turn);
    biases.push_back(i.bias && c < i.channels ? static_cast<const float*>(i.bias)[c] : 0.f);
  }
}

void stage_biases(Planner& p, const std::vector<float>& biases) {
  if (biases.empty()) return;
  Draft& d = p.drafts.back();
  std::vector<float>& all = p.near_biases ? p.biases : p.floats;
  const int first = size_of(all);
  all.insert(all.end(), biases.begin(), biases.end());
  const uint32_t bytes = offset<float>(0, size_of(biases));
  if (p.near_biases)
    d.parts.back().biases = first;
  else
    d.copies.floats = first, d.copies.bias_bytes = bytes, d.biases = stage(p, bytes, p.present());
}

// sums: the reference to those that it goes on with, or kNowhere.
Result& add_result(Planner& p, const Part& part, int member, uint32_t sums) {
  Result& r = p.results.emplace_back();
  r.first_channel = part.first_channel + member * kTileChannels, r.tile_channels = part.wide * kTileChannels;
  r.to = {kNowhere, kNowhere, p.layout.view_of_slots}, r.logits = kNowhere;
  r.bias_member = kTileChannels * sizeof(float);
  if (sums != kNowhere) r.bias = sums, r.bias_member = p.column, r.bias_site = kSiteBytes;
  r.bias_tile = part.wide * r.bias_member;
  return r;
}

void draft_joint(Planner& p, const Joint& joint, std::vector<float>& biases) {
  const Part& part = p.drafts.back().parts.back();
  uint32_t first_sums = kNowhere;
  for (const Instruction* i : joint.members)
    if (const int sums = p.timeline.sums_of(i->out); sums >= 0)
      first_sums = std::min(first_sums, sums_at(p, sums));
    else if (joint.ending == Ending::lstm)
      add_biases(biases, {i}, part);
  Result& r = add_result(p, part, 0, first_sums);
  r.ending = joint.ending;
  if (joint.ending == Ending::gate) {
    add_biases(biases, joint.members, part);
    r.gate = {joint.rounds_tanh, joint.keeps_sums, {}};
    for (int m : {0, 1})
      r.gate.sums[m] = joint.keeps_sums ? p.written(joint.members[m]->out) : Target{0, 0, p.layout.view_of_slots};
  } else {
    // Sums of all members are copied one after the other.
    r.bias_member *= first_sums == kNowhere ? part.tiles : p.fragments(p.references[first_sums].read.value);
    const Instruction& cell = *joint.members[2];
    r.lstm.factor = operand_at(p, cell_before(p, cell), cell.lead);
    r.lstm.cell = p.written(cell.out);
  }
  r.to = p.written(joint.out->out);
}

void draft_result(Planner& p, const Instruction& i, std::vector<float>& biases) {
  Draft& d = p.drafts.back();
  const Part& part = d.parts.back();
  const bool is_output = p.timeline.entries[d.entry].draw >= 0;
  if (is_output) {
    Demand& logits = p.sweeps.back().logits.back();
    logits.first = std::min(logits.first, p.present() + 1);
    d.logits = &logits;
  }
  const int sums = p.timeline.sums_of(i.out);
  const uint32_t begin = offset<float>(0, size_of(biases)), reference = sums < 0 ? kNowhere : sums_at(p, sums);
  if (is_product(&i) && sums < 0) add_biases(biases, {&i}, part);
  for (int member = 0; member < part.wide; member++) {
    Result& r = add_result(p, part, member, reference);
    if (is_output)
      r.logits = -p.logits_channel * 4, r.logits_stride = p.logits_stride;
    else
      r.to = p.written(i.out);
    if (sums < 0) r.bias = begin + member * r.bias_member;
    draft_steps(p, i, r);
    if (p.timeline.is_sums(i.out)) r.ending = Ending::sums;
    if (r.ending == Ending::sum) break;  // of all members
  }
}

}  // namespace

Joint joint_of(const Planner& p, const Instructions& group, int entry) {
  const auto products = std::ranges::count_if(group, is_product);
  return products == 4 && group.size() > 4 ? lstm_of(p, group, entry) : gate_of(p, group);
}

void draft_results(Planner& p, const Instructions& group, const Joint& joint) {
  Part& part = p.drafts.back().parts.back();
  part.first_result = size_of(p.results);
  std::vector<float> biases;
  if (joint.size > 0) draft_joint(p, joint, biases);
  for (const Instruction* i : std::span(group).subspan(joint.size)) draft_result(p, *i, biases);
  part.n_results = size_of(p.results) - part.first_result;
  stage_biases(p, biases);
}

}  // namespace pcf::cuda

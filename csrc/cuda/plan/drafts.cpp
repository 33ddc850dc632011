// The planner's records: which products a column step has, in which order, and what draws.
#include "cuda/plan/planner.h"

#include <stdexcept>

#include "cuda/steps.h"

namespace pcf::cuda {

void Planner::draft_sweep(const Sweep& sweep) {
  SweepDraft& s = sweeps_.emplace_back();
  s.direction = sweep.direction, s.first = static_cast<int>(drafts_.size()), s.end = INT32_MAX;
  s.at_once = sweep.sums && layout_.tiles == 1 ? kTileSites / layout_.images : 1;
  edge(s, {0, 0, 0, 0}, 0);
  const size_t first_staging = stagings_.size(), first_logits = logits_.size();
  for (int p = sweep.first; p < sweep.end; p++) draft(p);
  if (in_cluster() && drafts_.back().record.product.n_results) drafts_.emplace_back();  // receives what the last sends
  // Timeline::distance counts so many entries at least; and windows of memory are at most a turn.
  drafts_.resize(drafts_.size() + std::max(0, kVisible - (sweep.end - sweep.first)));
  size_t needed = 0;
  for (size_t k = first_staging; k < stagings_.size(); k++) needed = std::max(needed, stagings_[k].windows());
  for (size_t k = first_logits; k < logits_.size(); k++) needed = std::max(needed, logits_[k].windows());
  drafts_.resize(std::max(drafts_.size(), s.first + needed));
  s.end = static_cast<int>(drafts_.size());
  form_teams(s);
}

void Planner::form_teams(const SweepDraft& sweep) {
  const auto is_large = [&](const Draft& d) { return d.tiles > 0 && in_teams(d) && team_size(d) > kWarps / 4; };
  const auto first = drafts_.begin() + sweep.first, last = drafts_.begin() + sweep.end;
  const bool are_large = 4 * std::count_if(first, last, is_large) > sweep.end - sweep.first;
  bool is_second = false;
  for (int k = sweep.first; k < sweep.end; k++) {
    Draft& d = drafts_[k];
    if (d.tiles == 0 || !in_teams(d)) continue;
    if (is_second) d.first_warp = are_large ? kWarps / 2 : team_size(d);
    if (d.record.product.n_results) is_second = !is_second;  // or else its sums go on in the next one
  }
}

void Planner::draft(int position) {
  const Entry& entry = timeline_.entries[position];
  if (entry.group.empty()) {
    if (!by_distribution(entry.draw)) draft_draw(entry.draw, 0, timeline_.distributions_per_draw());
    return;
  }
  const Instruction& leader = *entry.group.front();
  if (entry.draw >= 0) {
    const int tiles = parts(leader.channels, kTileChannels), draws = timeline_.distributions_per_draw();
    if (!by_distribution(entry.draw)) return draft_tiles(entry.group, position, 0, tiles);
    const int each = program_.head.parameters / kTileChannels;
    for (int d = 0; d < draws; d++) {
      draft_tiles(entry.group, position, d * each, (d + 1) * each);
      draft_draw(entry.draw, d, 1);
    }
    return;
  }
  const int tiles = padded(leader.out) / kTileChannels;
  const auto products = std::count_if(entry.group.begin(), entry.group.end(), is_product);
  auto next = entry.group.begin();
  if (const Joint gate = gate_of(entry.group); gate.size > 0) {
    draft_tiles({next, next + gate.size}, position, 0, 2 * tiles);
    next += gate.size;
  } else if (products > most_members(math_, layout_.tiles)) {  // one after the other
    for (int k = 1; k < products; k++, next++) draft_tiles({*next}, position, 0, tiles);
  }
  if (next != entry.group.end()) draft_tiles({next, entry.group.end()}, position, 0, tiles);
}

bool Planner::by_distribution(int draw) const {
  const int per_draw = timeline_.distributions_per_draw();
  return draw >= 0 && per_draw > 1 && program_.head.parameters % kTileChannels == 0 && thrift_.by_distribution;
}

void Planner::draft_tiles(const std::vector<const Instruction*>& group, int position, int first, int last) {
  std::vector<Multiplied> known, late;
  std::vector<Member> members;
  const Joint joint = joint_of(group, position);
  const bool is_gate = joint.ending == Ending::gate;
  for (const Instruction* i : joint.size > 0 ? joint.members : group) {
    if (!is_product(i)) continue;
    const std::vector<Tap> taps = timeline_.taps(*i);
    if (!is_gate || members.empty()) members.push_back({{}, first * kTileChannels, {}});
    members.back().instructions.push_back(i);
    for (const Tap& tap : taps) members.back().weights.push_back(tap.weight);
    if (members.size() > 1 || members.back().instructions.size() > 1) continue;
    for (size_t t = 0; t < taps.size(); t++) {
      const bool is_known = distance(position, taps[t].read) >= kVisible;
      add_fragments(is_known ? known : late, taps[t].read, static_cast<int>(t), is_known);
    }
  }
  // A warp that would have several tiles one after the other has some of them at once, as far as it can; and so has
  // one whose batches of weights would not be full, and in a cluster, where L2 is no limit, one of too large a team.
  int wide = 1;
  const auto should_be_wider = [&](int tiles) {
    if (tiles % (2 * warps()) == 0) return true;
    return in_cluster() ? 2 * tiles > warps() && tiles <= warps() : 2 * wide * (known.size() + late.size()) <= kBatch;
  };
  while (members.size() == 1 && 2 * wide <= most_members(math_, layout_.tiles) && (last - first) % (2 * wide) == 0 &&
         should_be_wider((last - first) / wide))
    wide *= 2;
  if (wide > 1) members.resize(wide, members.front());
  for (int w = 1; w < wide; w++) members[w].first_channel += w * kTileChannels;
  const int tiles = (last - first) / wide;
  const int pieces = std::max(1, parts(static_cast<int>(known.size()), thrift_.known));
  for (int tile = 0; tile < tiles; tile += warps()) {
    const int end = pieces == 1 ? tiles : std::min(tile + warps(), tiles);
    for (int piece = 0; piece < pieces; piece++) {
      const bool ends = piece + 1 == pieces;
      const auto begin = known.begin() + piece * thrift_.known;
      const std::vector<Multiplied> before(begin, ends ? known.end() : begin + thrift_.known);
      Draft& d = drafts_.emplace_back();
      const int number = static_cast<int>(drafts_.size()) - 1;
      d.members = members, d.wide = wide, d.lead = group.front()->lead;
      d.first_channel = (first + tile * wide) * kTileChannels;
      for (Member& m : d.members) m.first_channel += tile * wide * kTileChannels;
      d.tiles = end - tile;
      d.record.product.members = std::max(1, static_cast<int>(members.size()));
      batch(d, before, ends ? late : std::vector<Multiplied>());
      if (ends) draft_results(group, joint, position, d, number);
      draft_memory(d, number, ends);
    }
    if (pieces == 1) break;
  }
  if (draw_of(position) >= 0) logits_channel_ = first * kTileChannels, logits_tiles_ = last - first;
}

void Planner::add_fragments(std::vector<Multiplied>& to, const Read& read, int tap, bool copied) const {
  const int depth = this->depth(read.value), chunk = depth / kChunks;
  const bool is_small = timeline_.channels(read.value) <= chunk;
  if (copied && is_small) {
    if (to.empty() || to.back().chunks.size() == kChunks) to.emplace_back();
    to.back().chunks.push_back({read, tap, 0});
    return;
  }
  for (int f = 0; f < fragments(read.value); f++) {
    to.emplace_back();
    for (int c = 0; c < kChunks; c++) to.back().chunks.push_back({read, tap, f * depth + c * chunk});
  }
}

void Planner::draft_memory(Draft& d, int number, bool ends) {
  Record& r = d.record;
  r.copies.count = static_cast<int>(d.copied.size());
  const bool staged_late = std::any_of(d.late.begin(), d.late.end(), [](const auto& m) { return m.staged >= 0; });
  // Steps read it, too, and so do warps that have several tiles.
  if (r.copies.count) {
    const bool is_late = staged_late || (ends && d.copied.size() > d.known.size()) || d.tiles > kWarps;
    d.staging = stage(int64_t{r.copies.count} * column_, number, is_late);
  }
  for (const Multiplied& m : d.copied)
    for (const Chunk& chunk : m.chunks) uses_ring(chunk.read);
  for (const Multiplied& m : d.late)
    if (m.staged < 0) uses_shared(m.chunks[0].read, number);
}

int Planner::stage(int64_t bytes, int record, bool late) {
  const bool lasts = late || arrives_early();  // as other warps may be ahead by what is multiplied before a barrier
  stagings_.push_back({bytes, record, record - thrift_.copies_ahead, record + lasts});
  return static_cast<int>(stagings_.size()) - 1;
}

void Planner::batch(Draft& d, std::vector<Multiplied> known, std::vector<Multiplied> late) const {
  Record& r = d.record;
  if (known.empty() && late.empty()) return;
  for (size_t k = 0; k < known.size(); k++) known[k].staged = static_cast<int>(k);
  d.copied = known;
  const int in_batch = kBatch / r.product.members, ahead = batches_ahead(math_, layout_.tiles);
  int batches = static_cast<int>(known.size()) / in_batch;
  if (late.empty() && static_cast<int>(known.size()) % in_batch == 0) batches--;
  if (batches > ahead) batches -= batches % ahead;
  if (arrives_early() && thrift_.copies_ahead == 1) batches = 0;  // they are there behind it
  r.product.known_batches = batches;
  const auto left = known.begin() + batches * in_batch;
  late.insert(late.begin(), left, known.end());
  known.erase(left, known.end());
  r.product.late_batches = parts(static_cast<int>(late.size()), in_batch);
  Multiplied filling = late.back();
  filling.filling = true;
  late.resize(r.product.late_batches * in_batch, filling);
  r.product.late_turns = r.product.late_batches % batches_ahead(math_, layout_.tiles);
  d.known = std::move(known), d.late = std::move(late);
}

void Planner::draft_draw(int draw, int first, int count) {
  const int number = static_cast<int>(drafts_.size());
  Record& r = drafts_.emplace_back().record;
  r.product.draws = 1;
  switch (program_.head.kind) {
    case HeadKind::categorical: break;  // Walk::draw_sites
  }
  r.draw.first = draw * timeline_.distributions_per_draw() + first, r.draw.distributions = count;
  if (count > 32) throw std::invalid_argument("a draw of more than 32 distributions");
  // Four more floats, so that neighbouring sites lie in different banks.
  r.draw.logits_stride = logits_tiles_ * kTileChannels + 4;
  const int64_t bytes = int64_t{layout_.tiles} * kTileSites * r.draw.logits_stride * 4;
  for (int k : logits_records_) {
    const Record::Product& product = drafts_[k].record.product;
    for (uint32_t n = product.results; n < product.results + product.n_results; n++) {
      results_[n].logits = static_cast<uint32_t>(-logits_channel_ * 4);
      results_[n].logits_stride = r.draw.logits_stride;
    }
    logits_of_[k] = static_cast<int>(logits_.size());
  }
  logits_of_[number] = static_cast<int>(logits_.size());
  logits_.push_back({bytes, number, logits_records_.front() + 1, number + 1});
  logits_records_.clear();
  r.draw.inputs = size_of(inputs_);
  for (const Instruction& i : program_.instructions)
    if (i.kind == InstructionKind::from_levels) draft_input(i, r, number);
  r.draw.n_inputs = static_cast<int>(size_of(inputs_) - r.draw.inputs);
}

void Planner::draft_input(const Instruction& i, const Record& r, int number) {
  const ImageInput& from = i.input;
  const int first = std::max(from.first, r.draw.first);
  const int last = std::min(from.first + from.count, r.draw.first + r.draw.distributions);
  if (first >= last) return;
  InputPlan input{};
  input.first = first, input.count = last - first, input.before = (first - from.first) * from.width;
  input.width = from.width;
  const std::vector<float> tables = tables_of(i, input);
  input.floats = static_cast<int>(tables.size()) / input.count;
  input.table = static_cast<int>(floats_.size());
  floats_.insert(floats_.end(), tables.begin(), tables.end());
  floats_.resize(round_up(static_cast<int>(floats_.size()), 4));
  if (first == from.first) input.pad_from = i.channels, input.pad_to = padded(i.out);
  inputs_.push_back(input);
  input_values_.push_back(i.out);
  writes(i.out, number);
  values_[i.out].is_input = true;
}

std::vector<float> Planner::tables_of(const Instruction& i, const InputPlan& input) const {
  const int levels = i.input.table ? i.input.levels : program_.head.levels;
  std::vector<float> result;
  for (int c = 0; c < input.count; c++)
    for (int level = 0; level < levels; level++)
      for (int k = 0; k < input.width; k++) {
        const int channel = input.before + c * input.width + k;
        float x[4] = {i.input.table ? static_cast<const float*>(i.input.table)[level * input.width + k]
                                    : static_cast<float>(level)};
        for (const Step& s : i.steps) {  // they read constants, or nothing; only x[0] counts
          const auto constant = [&](const void* of) { return of ? static_cast<const float*>(of)[channel] : 0.f; };
          const float scale[4] = {constant(s.scale)}, shift[4] = {constant(s.shift)};
          apply_formula(s.kind, static_cast<float>(s.alpha), x, scale, shift, Math::fp32);
        }
        result.push_back(x[0]);
      }
  return result;
}

}  // namespace pcf::cuda

// The planner's records: which products a column step has, in which order, and what draws.
#include "cuda/plan/planner.h"

#include <stdexcept>

#include "cuda/kernels/steps.h"

namespace pcf::cuda {

void Planner::draft_sweep(const Sweep& sweep) {
  SweepDraft& s = sweeps_.emplace_back();
  s.direction = sweep.direction, s.first = static_cast<int>(drafts_.size()), s.end = INT32_MAX;
  s.at_once = sweep.sums && layout_.tiles == 1 ? kTileSites / layout_.images : 1;
  edge(s, {0, 0, 0, 0}, 0);
  const size_t first_staging = stagings_.size(), first_logits = logits_.size();
  for (int p = sweep.first; p < sweep.end; p++) draft(p);
  // Receives what the last one sends.
  if (in_cluster() && !drafts_.back().parts.empty() && !drafts_.back().parts[0].product.draws) drafts_.emplace_back();
  for (size_t k = s.first; k < drafts_.size(); k++) draft_memory(static_cast<int>(k));
  // Timeline::distance counts so many at least; and windows of memory are at most a turn.
  size_t needed = std::max<size_t>(kVisible, records_between(s.first));
  for (size_t k = first_staging; k < stagings_.size(); k++) needed = std::max(needed, stagings_[k].windows());
  for (size_t k = first_logits; k < logits_.size(); k++) needed = std::max(needed, logits_[k].windows());
  drafts_.resize(std::max(drafts_.size(), s.first + needed));
  s.end = static_cast<int>(drafts_.size());
  form_teams(s);
}

size_t Planner::records_between(int first) const {
  int needed = 0;
  for (int k = first; k < static_cast<int>(drafts_.size()); k++)
    for (const Multiplied& m : drafts_[k].copied)
      for (const Chunk& chunk : m.chunks) {
        const int age = chunk.read.age, written = values_[chunk.read.value].last_written;
        if (age > 0 && age != kLongAgo && written >= first)
          needed = std::max(needed, parts(kVisible + written - k, age));
      }
  return static_cast<size_t>(needed);
}

void Planner::form_teams(SweepDraft& sweep) {
  int large = 0;
  for (int k = sweep.first; k < sweep.end; k++) {
    sweep.has_parts |= drafts_[k].parts.size() > 1;
    for (const Part& part : drafts_[k].parts) large += in_teams(part) && team_of(part.tiles) > kWarps / 4;
  }
  const auto size_of_team = [&](const Part& part) {
    if (sweep.has_parts) return team_of(part.tiles);
    return 4 * large > sweep.end - sweep.first ? kWarps / 2 : std::max(team_of(part.tiles), kWarps / 4);
  };
  // In which record each warp had a tile last, and in which one in a team with others. So who works alone now and then
  // does not disturb the turns of teams.
  std::array<int, kWarps> at_work, in_team;
  at_work.fill(-1), in_team.fill(-1);
  const auto last = [](const auto& in, int first, int size) {
    return *std::max_element(&in[first], &in[first] + size);
  };
  for (int k = sweep.first; k < sweep.end; k++)
    for (const int size : {kWarps / 2, kWarps / 4, 1})  // so that all find free warps
      for (Part& part : drafts_[k].parts) {
        if (!in_teams(part) || size_of_team(part) != size) continue;
        const auto& counted = size > 1 ? in_team : at_work;
        int found = -1;
        for (int first = 0; first < (sweep.has_parts ? kWarps : 2 * size); first += size)
          if (last(at_work, first, size) < k && (found < 0 || last(counted, first, size) < last(counted, found, size)))
            found = first;
        if (k > sweep.first && goes_on(drafts_[k - 1])) found = drafts_[k - 1].parts[0].first_warp;
        part.first_warp = found;
        std::fill_n(&at_work[found], size, k);
        if (size > 1) std::fill_n(&in_team[found], size, k);
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
  std::vector<Multiplied> early, late;
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
      const bool is_early = distance(position, taps[t].read) >= kVisible;
      add_fragments(is_early ? early : late, taps[t].read, static_cast<int>(t), i->lead, is_early);
    }
  }
  // A warp that would have several tiles one after the other has some of them at once, as far as it can; and so has
  // one whose batches of weights would not be full, and in a cluster, where L2 is no limit, one of too large a team.
  int wide = 1;
  const auto should_be_wider = [&](int tiles) {
    if (tiles % (2 * warps()) == 0) return true;
    return in_cluster() ? 2 * tiles > warps() && tiles <= warps() : 2 * wide * (early.size() + late.size()) <= kBatch;
  };
  while (members.size() == 1 && 2 * wide <= most_members(math_, layout_.tiles) && (last - first) % (2 * wide) == 0 &&
         should_be_wider((last - first) / wide))
    wide *= 2;
  if (wide > 1) members.resize(wide, members.front());
  for (int w = 1; w < wide; w++) members[w].first_channel += w * kTileChannels;
  const int tiles = (last - first) / wide;
  const int pieces = std::max(1, parts(static_cast<int>(early.size()), thrift_.early));
  for (int tile = 0; tile < tiles; tile += warps()) {
    const int end = pieces == 1 ? tiles : std::min(tile + warps(), tiles);
    for (int piece = 0; piece < pieces; piece++) {
      const bool ends = piece + 1 == pieces;
      const auto begin = early.begin() + piece * thrift_.early;
      const std::vector<Multiplied> before(begin, ends ? early.end() : begin + thrift_.early);
      Draft& d = pieces == 1 ? with_room_for(end - tile, position) : drafts_.emplace_back();
      d.position = pieces == 1 ? position : -1;
      const int number = static_cast<int>(drafts_.size()) - 1;
      Part& part = d.parts.emplace_back();
      part.members = members, part.wide = wide;
      part.first_channel = (first + tile * wide) * kTileChannels;
      for (Member& m : part.members) m.first_channel += tile * wide * kTileChannels;
      part.tiles = end - tile;
      part.product.members = std::max(1, static_cast<int>(members.size()));
      batch(d, part, before, ends ? late : std::vector<Multiplied>());
      if (ends) draft_results(group, joint, position, d, part, number);
    }
    if (pieces == 1) break;
  }
  if (draw_of(position) >= 0) logits_channel_ = first * kTileChannels, logits_tiles_ = last - first;
}

Draft& Planner::with_room_for(int tiles, int position) {
  const bool is_first = static_cast<int>(drafts_.size()) == sweeps_.back().first;
  if (!is_first && can_join(drafts_.back(), tiles, position)) return drafts_.back();
  return drafts_.emplace_back();
}

// Entries of a level read nothing of each other, but an entry that takes several records does.
bool Planner::can_join(const Draft& d, int tiles, int position) const {
  if (layout_.tiles > 1 || !thrift_.near_biases || d.position < 0 || d.position == position) return false;
  if (timeline_.entries[d.position].level != timeline_.entries[position].level) return false;
  int taken = team_of(tiles);
  for (const Part& part : d.parts) taken += team_of(part.tiles);
  return taken <= kWarps - 2;  // the others copy
}

void Planner::add_fragments(std::vector<Multiplied>& to, const Read& read, int tap, int lead, bool copied) const {
  const int depth = this->depth(read.value), chunk = depth / kChunks;
  const bool is_small = timeline_.channels(read.value) <= chunk;
  if (copied && is_small) {
    if (to.empty() || to.back().chunks.size() == kChunks) to.push_back({{}, lead});
    to.back().chunks.push_back({read, tap, 0});
    return;
  }
  for (int f = 0; f < fragments(read.value); f++) {
    to.push_back({{}, lead});
    for (int c = 0; c < kChunks; c++) to.back().chunks.push_back({read, tap, f * depth + c * chunk});
  }
}

void Planner::draft_memory(int number) {
  Draft& d = drafts_[number];
  d.copies.count = static_cast<int>(d.copied.size());
  if (d.copies.count) d.staging = stage(int64_t{d.copies.count} * column_, number);
  for (const Multiplied& m : d.copied)
    for (const Chunk& chunk : m.chunks) uses_ring(chunk.read);
  for (const Part& part : d.parts)
    for (const Multiplied& m : part.late)
      if (m.staged < 0) uses_shared(m.chunks[0].read, number);
}

int Planner::stage(int64_t bytes, int record) {
  const int first = record - thrift_.copies_ahead + !copies_before_barrier(layout_.tiles);
  const int last = record + 1;  // a warp may still multiply what it knows while others are a barrier ahead
  stagings_.push_back({bytes, record, first, last});
  return static_cast<int>(stagings_.size()) - 1;
}

void Planner::batch(Draft& d, Part& part, std::vector<Multiplied> early, std::vector<Multiplied> late) const {
  if (early.empty() && late.empty()) return;
  Record::Product& product = part.product;
  const int in_batch = kBatch / product.members;
  const auto in_batches = [&](size_t fragments) { return parts(static_cast<int>(fragments), in_batch); };
  const bool may_fill = in_batches(early.size()) + in_batches(late.size()) == in_batches(early.size() + late.size());
  int batches = may_fill ? in_batches(early.size()) : static_cast<int>(early.size()) / in_batch;
  if (late.empty()) batches = in_batches(early.size()) - 1;
  if (batches > kBatchesAhead) batches -= batches % kBatchesAhead;
  if (thrift_.copies_ahead == 1) batches = 0;  // they are there behind it
  product.early_batches = batches;
  const auto fill = [](std::vector<Multiplied>& to, size_t size) {
    if (to.size() >= size) return;
    Multiplied filling = to.back();
    filling.filling = true;
    to.resize(size, filling);
  };
  const size_t before = static_cast<size_t>(batches) * in_batch;
  fill(early, before);
  part.first_copied = static_cast<int>(d.copied.size());
  for (size_t k = 0; k < early.size(); k++) early[k].staged = part.first_copied + static_cast<int>(k);
  d.copied.insert(d.copied.end(), early.begin(), early.end());
  late.insert(late.begin(), early.begin() + before, early.end());
  early.erase(early.begin() + before, early.end());
  product.late_batches = in_batches(late.size());
  fill(late, product.late_batches * in_batch);
  part.early = std::move(early), part.late = std::move(late);
}

void Planner::draft_draw(int draw, int first, int count) {
  const int number = static_cast<int>(drafts_.size());
  Draft& d = drafts_.emplace_back();
  d.parts.emplace_back().product.draws = 1;
  Record::Draw& r = d.draw;
  switch (program_.head.kind) {
    case HeadKind::categorical: break;  // SiteDraws::draw_sites
  }
  r.first = draw * timeline_.distributions_per_draw() + first, r.distributions = count;
  if (count > 32) throw std::invalid_argument("a draw of more than 32 distributions");
  // Four more floats, so that neighbouring sites lie in different banks.
  r.logits_stride = logits_tiles_ * kTileChannels + 4;
  const int64_t bytes = int64_t{layout_.tiles} * kTileSites * r.logits_stride * 4;
  for (const auto& [record, result] : logits_results_) {
    results_[result].logits = static_cast<uint32_t>(-logits_channel_ * 4);
    results_[result].logits_stride = r.logits_stride;
    logits_of_[record] = static_cast<int>(logits_.size());
  }
  logits_of_[number] = static_cast<int>(logits_.size());
  logits_.push_back({bytes, number, logits_results_.front().first + 1, number + 1});
  logits_results_.clear();
  r.inputs = size_of(inputs_);
  for (const Instruction& i : program_.instructions)
    if (i.kind == InstructionKind::from_levels) draft_input(i, r, number);
  r.n_inputs = static_cast<int>(size_of(inputs_) - r.inputs);
}

void Planner::draft_input(const Instruction& i, const Record::Draw& r, int number) {
  const ImageInput& from = i.input;
  const int first = std::max(from.first, r.first);
  const int last = std::min(from.first + from.count, r.first + r.distributions);
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

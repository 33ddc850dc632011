// The planner's records: which products a column step has, in which order, and what draws.
#include <array>
#include <stdexcept>

#include "cuda/kernels/steps.h"
#include "cuda/plan/planner.h"

namespace pcf::cuda {
namespace {

// 1, 2, 4 or 8 warps for so many tiles.
int team_of(const Planner& p, int tiles) {
  int size = 1;
  while (size < std::min(p.share_of(tiles, 0).count, kWarps)) size *= 2;
  return size;
}

// The present record, if a product of so many tiles can be a part of it, or else a new one. Entries of a depth read
// nothing of each other, but an entry that takes several records does.
Draft& with_room_for(Planner& p, int tiles, int entry) {
  const auto depth = [&](int e) { return p.timeline.entries[e].depth; };
  if (p.present() >= p.sweeps.back().first && p.layout.tiles == 1 && p.near_biases) {
    Draft& d = p.drafts.back();
    int taken = team_of(p, tiles);
    for (const Part& part : d.parts) taken += team_of(p, part.tiles);
    if (d.is_open && d.entry != entry && depth(d.entry) == depth(entry) && taken <= kWarps - 2)  // the others copy
      return d;
  }
  return p.drafts.emplace_back();
}

// Splits a product into batches. Known fragments that don't fill turns of the stream are multiplied after the barrier,
// and before the others: the order of a sum must not depend on how it is split, or images would depend on the batch.
void batch(const Planner& p, Draft& d, Part& part, std::vector<Multiplied> early, const std::vector<Multiplied>& late) {
  if (early.empty() && late.empty()) return;
  const int n_early = size_of(early), n_late = size_of(late);
  const auto in_batches = [&](int fragments) { return parts(fragments, part.in_batch()); };
  const bool may_fill = in_batches(n_early) + in_batches(n_late) == in_batches(n_early + n_late);
  int batches = may_fill ? in_batches(n_early) : n_early / part.in_batch();
  if (late.empty()) batches = in_batches(n_early) - 1;
  if (batches > kBatchesAhead) batches -= batches % kBatchesAhead;
  if (p.copies_ahead == 1) batches = 0;  // they are there behind it
  const auto fill = [&](std::vector<Multiplied>& to, int batches) {
    const size_t size = static_cast<size_t>(batches) * part.in_batch();
    if (to.size() >= size) return;
    Multiplied filling = to.back();
    filling.filling = true;
    to.resize(size, filling);
  };
  fill(early, batches);
  part.first_copied = size_of(d.copied);
  for (int k = part.first_copied; Multiplied& m : early) m.staged = k++;
  d.copied.insert(d.copied.end(), early.begin(), early.end());
  early.insert(early.end(), late.begin(), late.end());
  part.product.early_batches = batches, part.product.late_batches = in_batches(size_of(early)) - batches;
  fill(early, in_batches(size_of(early)));
  part.multiplied = std::move(early);
}

// How many tiles of its only instruction a warp has at once. One that would have several tiles one after the other has
// some of them at once, as far as it can; and so has one whose batches of weights would not be full, and in a cluster,
// where L2 is no limit, one of too large a team.
int width_of(const Planner& p, int tiles, size_t fragments) {
  int wide = 1;
  const auto should_be_wider = [&] {
    const int left = tiles / wide;
    if (left % (2 * p.warps()) == 0) return true;
    return p.in_cluster() ? 2 * left > p.warps() && left <= p.warps() : 2 * wide * fragments <= kBatch;
  };
  while (2 * wide <= most_members(p.math, p.layout.tiles) && tiles % (2 * wide) == 0 && should_be_wider()) wide *= 2;
  return wide;
}

// Tiles first ... last - 1 of a group's channels. Where a layer is summed in pieces, a record computes no more than a
// tile for each warp, whose sums go on in the next record.
void draft_tiles(Planner& p, const Instructions& group, const Joint& joint, int entry, int first, int last) {
  std::vector<Member> members;
  for (const Instruction* i : joint.size > 0 ? joint.members : group) {
    if (!is_product(i)) continue;
    if (joint.ending != Ending::gate || members.empty()) members.emplace_back();
    members.back().push_back({i, p.timeline.taps(*i)});
  }
  std::vector<Multiplied> early, late;
  if (!members.empty())
    for (int t = 0; const Tap& tap : members[0][0].taps) {
      const bool is_early = p.timeline.distance(entry, tap.read) >= kVisible;
      add_fragments(p, is_early ? early : late, tap.read, t++, group[0]->lead, is_early);
    }
  const int wide = members.size() == 1 ? width_of(p, last - first, early.size() + late.size()) : 1;
  if (p.timeline.entries[entry].draw >= 0) {
    p.logits_channel = first * kTileChannels;
    p.logits_stride = (last - first) * kTileChannels + 4;  // so that neighbouring sites lie in different banks
    p.sweeps.back().logits.push_back({int64_t{p.layout.tiles} * kTileSites * p.logits_stride * 4, INT32_MAX});
  }
  const int tiles = (last - first) / wide, most = p.most_early;
  const int pieces = std::max(1, parts(size_of(early), most));
  const int at_once = pieces == 1 ? tiles : p.warps();
  for (int tile = 0; tile < tiles; tile += at_once)
    for (int piece = 0; piece < pieces; piece++) {
      const int count = std::min(at_once, tiles - tile);
      const bool ends = piece + 1 == pieces;
      const auto begin = early.begin() + piece * most;
      Draft& d = pieces == 1 ? with_room_for(p, count, entry) : p.drafts.emplace_back();
      d.entry = entry, d.is_open = pieces == 1;
      Part& part = d.parts.emplace_back();
      part.members = members, part.wide = wide, part.tiles = count;
      part.first_channel = (first + tile * wide) * kTileChannels;
      part.product.members = std::max(wide, size_of(members));
      batch(p, d, part, {begin, ends ? early.end() : begin + most}, ends ? late : std::vector<Multiplied>());
      if (ends) draft_results(p, group, joint);
    }
}

// What each level of each image channel becomes: [count, levels, width].
std::vector<float> tables_of(const Planner& p, const Instruction& i, const InputPlan& input) {
  const int levels = i.input.table ? i.input.levels : p.program.head.levels;
  const auto number = [](const void* of, int at) { return of ? static_cast<const float*>(of)[at] : 0.f; };
  std::vector<float> result;
  for (int c = 0; c < input.count; c++)
    for (int level = 0; level < levels; level++)
      for (int k = 0; k < input.width; k++) {
        const int channel = input.before + c * input.width + k;
        float x[4] = {i.input.table ? number(i.input.table, level * input.width + k) : static_cast<float>(level)};
        for (const Step& s : i.steps) {  // they read constants, or nothing; only x[0] counts
          const float scale[4] = {number(s.scale, channel)}, shift[4] = {number(s.shift, channel)};
          apply_formula(s.kind, static_cast<float>(s.alpha), x, scale, shift, Math::fp32);
        }
        result.push_back(x[0]);
      }
  return result;
}

// What a draw gives an instruction that reads levels.
void draft_input(Planner& p, const Instruction& i, const Record::Draw& draw) {
  const ImageInput& from = i.input;
  const int first = std::max(from.first, draw.first);
  const int last = std::min(from.first + from.count, draw.first + draw.distributions);
  if (first >= last) return;
  InputPlan& input = p.inputs.emplace_back();
  input.first = first, input.count = last - first;
  input.before = (first - from.first) * from.width, input.width = from.width;
  const std::vector<float> tables = tables_of(p, i, input);
  input.table = size_of(p.floats), input.floats = size_of(tables) / input.count;
  p.floats.insert(p.floats.end(), tables.begin(), tables.end());
  p.floats.resize(round_up(size_of(p.floats), 4));
  if (first == from.first) input.pad_from = i.channels, input.pad_to = p.padded(i.out);
  input.to = p.written(i.out);
  p.values[i.out].is_input = true;
}

void draft_draw(Planner& p, int draw, int first, int count) {
  if (count > 32) throw std::invalid_argument("a draw of more than 32 distributions");
  Draft& d = p.drafts.emplace_back();
  d.parts.emplace_back().product.draws = 1;
  Demand& logits = p.sweeps.back().logits.back();
  logits.last = p.present() + 1;
  d.logits = &logits;
  d.draw.first = draw * p.timeline.distributions_per_draw() + first, d.draw.distributions = count;
  d.draw.logits_stride = p.logits_stride;
  d.draw.inputs = size_of(p.inputs);
  for (const Instruction& i : p.program.instructions)
    if (reads_image(i)) draft_input(p, i, d.draw);
  d.draw.n_inputs = size_of(p.inputs) - static_cast<int>(d.draw.inputs);
}

void draft_entry(Planner& p, int number) {
  const Entry& entry = p.timeline.entries[number];
  const int draws = p.timeline.distributions_per_draw(), each = p.program.head.parameters / kTileChannels;
  const bool by_distribution =
      entry.draw >= 0 && draws > 1 && p.program.head.parameters % kTileChannels == 0 && p.by_distribution;
  if (entry.group.empty()) {
    if (!by_distribution) draft_draw(p, entry.draw, 0, draws);
    return;
  }
  const Instruction& leader = *entry.group.front();
  if (by_distribution) {
    for (int d = 0; d < draws; d++) {
      draft_tiles(p, entry.group, {}, number, d * each, (d + 1) * each);
      draft_draw(p, entry.draw, d, 1);
    }
    return;
  }
  const int tiles = parts(entry.draw >= 0 ? leader.channels : p.padded(leader.out), kTileChannels);
  const auto products = std::ranges::count_if(entry.group, is_product);
  auto next = entry.group.begin();
  Joint joint = joint_of(p, entry.group, number);
  if (joint.ending == Ending::gate) {
    draft_tiles(p, {next, next + joint.size}, joint, number, 0, 2 * tiles);
    next += joint.size, joint = {};
  } else if (products > most_members(p.math, p.layout.tiles)) {  // one after the other
    for (int k = 1; k < products; k++, next++) draft_tiles(p, {*next}, {}, number, 0, tiles);
    joint = {};
  }
  if (next != entry.group.end()) draft_tiles(p, {next, entry.group.end()}, joint, number, 0, tiles);
}

void draft_memory(Planner& p, int record) {
  Draft& d = p.drafts[record];
  d.copies.count = size_of(d.copied);
  if (d.copies.count) d.staging = stage(p, int64_t{d.copies.count} * p.column, record);
  for (const Multiplied& m : d.copied)
    for (const Chunk& chunk : m.chunks) p.uses_ring(chunk.read);
  for (const Part& part : d.parts)
    for (const Multiplied& m : part.late())
      if (m.staged < 0) p.uses_shared(m.chunks[0].read, record);
}

// How many records a sweep must have: as many as Timeline::distance counts at least, and a turn for each window of
// memory, and so many that what it copies of earlier column steps was written kVisible records before: those of a depth
// may come in any order.
int records_needed(const Planner& p, const SweepDraft& s) {
  int needed = kVisible;
  for (int k = s.first; k <= p.present(); k++)
    for (const Multiplied& m : p.drafts[k].copied)
      for (const Chunk& chunk : m.chunks) {
        const int age = chunk.read.age, written = p.values[chunk.read.value].last_written;
        if (age > 0 && age != kLongAgo && written >= s.first)
          needed = std::max(needed, parts(kVisible + written - k, age));
      }
  for (const auto* demands : {&s.staged, &s.logits})
    for (const Demand& d : *demands) needed = std::max(needed, d.last - d.first + 1);
  return needed;
}

// Where records have few tiles, teams of warps take turns: one multiplies what its next record knows while another is
// at work. What is copied is left to the warps of no team, or to the other team.
void form_teams(Planner& p, SweepDraft& sweep) {
  int large = 0;
  for (int k = sweep.first; k < sweep.end; k++) {
    sweep.has_parts |= p.drafts[k].parts.size() > 1;
    for (const Part& part : p.drafts[k].parts) large += p.in_teams(part) && team_of(p, part.tiles) > kWarps / 4;
  }
  const auto size_of_team = [&](const Part& part) {
    if (sweep.has_parts) return team_of(p, part.tiles);
    return 4 * large > sweep.end - sweep.first ? kWarps / 2 : std::max(team_of(p, part.tiles), kWarps / 4);
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
      for (Part& part : p.drafts[k].parts) {
        if (!p.in_teams(part) || size_of_team(part) != size) continue;
        const auto& counted = size > 1 ? in_team : at_work;
        int found = -1;
        for (int first = 0; first < (sweep.has_parts ? kWarps : 2 * size); first += size)
          if (last(at_work, first, size) < k && (found < 0 || last(counted, first, size) < last(counted, found, size)))
            found = first;
        if (k > sweep.first && p.drafts[k - 1].goes_on()) found = p.drafts[k - 1].parts[0].first_warp;
        part.first_warp = found;
        std::fill_n(&at_work[found], size, k);
        if (size > 1) std::fill_n(&in_team[found], size, k);
      }
}

}  // namespace

void add_fragments(const Planner& p, std::vector<Multiplied>& to, const Read& read, int tap, int lead, bool copied) {
  const int depth = p.depth_in(read.value), chunk = depth / kChunks;
  if (copied && p.timeline.channels(read.value) <= chunk) {
    if (to.empty() || to.back().chunks.size() == kChunks) to.push_back({{}, lead});
    to.back().chunks.push_back({read, tap, 0});
    return;
  }
  for (int f = 0; f < p.fragments(read.value); f++) {
    to.push_back({{}, lead});
    for (int c = 0; c < kChunks; c++) to.back().chunks.push_back({read, tap, f * depth + c * chunk});
  }
}

const Demand* stage(Planner& p, int64_t bytes, int record) {
  const int first = record - p.copies_ahead + !copies_before_barrier(p.layout.tiles);
  const int last = record + 1;  // a warp may still multiply what it knows while others are a barrier ahead
  return &p.sweeps.back().staged.emplace_back(Demand{bytes, first, last});
}

void draft_sweep(Planner& p, const Sweep& sweep) {
  SweepDraft& s = p.sweeps.emplace_back();
  s.first = size_of(p.drafts);
  s.plan.at_once = sweep.sums && p.layout.tiles == 1 ? kTileSites / p.layout.images : 1;
  s.plan.columns = sweep.direction * s.plan.at_once;
  for (int e = sweep.first; e < sweep.end; e++) draft_entry(p, e);
  if (p.in_cluster() && !p.drafts.back().parts[0].product.draws)
    p.drafts.emplace_back();  // receives what the last sends
  for (int k = s.first; k <= p.present(); k++) draft_memory(p, k);
  s.end = std::max(p.present() + 1, s.first + records_needed(p, s));
  p.drafts.resize(s.end);
  for (int k = s.first; k < s.end; k++)
    if (p.drafts[k].parts.empty()) p.drafts[k].parts.emplace_back();
  form_teams(p, s);
}

}  // namespace pcf::cuda

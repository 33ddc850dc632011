#include "cuda/plan.h"

#include <algorithm>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>

#include "cuda/cyclic_memory.h"
#include "cuda/pack.h"
#include "cuda/steps.h"
#include "cuda/timeline.h"

namespace pcf::cuda {
namespace {

int round_up(int n, int to) { return (n + to - 1) / to * to; }
int parts(int n, int of) { return (n + of - 1) / of; }
template <class T>
uint32_t size_of(const std::vector<T>& items) {
  return static_cast<uint32_t>(items.size());
}

// Pieces one after the other, each on a line of the cache: a warp's 512 bytes then touch no line more than they must.
class Bytes {
 public:
  template <class T>
  int64_t add(const std::vector<T>& items) {
    const size_t at = bytes.size(), added = items.size() * sizeof(T);
    const char* const from = reinterpret_cast<const char*>(items.data());
    bytes.insert(bytes.end(), from, from + added);
    bytes.insert(bytes.end(), (128 - added % 128) % 128, 0);
    return static_cast<int64_t>(at);
  }
  int64_t size() const { return static_cast<int64_t>(bytes.size()); }

  std::vector<char> bytes;
};

// Reads nearer than this are of shared memory, as other threads may still be writing what would be copied. And a column
// step has as many records, since the last ones copy for the next step by what the first has found out.
constexpr int kVisible = 4;
// What steps read lies in shared memory if it was computed so few records ago.
constexpr int kNear = 8;

// Tables of so many floats may lie in shared memory.
constexpr size_t kNearFloats = 1024;

// How the planner may spend shared memory.
struct Thrift {
  int known;             // fragments that a record multiplies before its barrier, at most
  bool by_distribution;  // whether each distribution is drawn before the next one's logits are computed
  int copies_ahead;      // how many records ahead of their use known values are copied
};

// 16 bytes of a site that a product reads: of which tap, and from which channel on.
struct Chunk {
  Read read;
  int tap, first;
};

// A fragment of what a product reads: four chunks that lie side by side, or up to four of different places, which only
// copying brings together. filling: one without weights, that fills up a batch.
struct Multiplied {
  std::vector<Chunk> chunks;
  bool filling = false;
  int staged = -1;  // where it is among those copied ahead, if it was

  bool side_by_side() const { return chunks.size() == kChunks && chunks[0].tap == chunks[3].tap; }
};

// Channels that each warp has a tile of: those of an instruction, or of a gate's two, in turn.
struct Member {
  std::vector<const Instruction*> instructions;
  int first_channel;                  // of the first tile
  std::vector<const float*> weights;  // by tap, of one instruction after the other
};

struct Draft {
  Record record{};
  std::vector<Member> members;
  int first_channel = 0, wide = 1;  // wide: members are so many tiles of one instruction
  int lead = 0;
  std::vector<Multiplied> known, late, copied;
  int staging = -1, biases = -1;  // numbers of what is staged
};

// A value that steps read.
struct Reference {
  Read read;
  int record;
  bool in_shared;
  int lead;
  int staged = -1;  // where it begins among what the record copies ahead, if it does
};

// What belongs to a sweep.
struct SweepDraft {
  int direction, at_once, first, end;                        // records
  std::map<std::tuple<int, int, int>, uint32_t> edges = {};  // by lead, dy, dx
  std::vector<Edge> edge_table = {};
  std::map<std::tuple<int, int, int, int>, uint32_t> slots = {};
  std::vector<Slot> slot_table = {};
  bool has(int record) const { return record >= first && record < end; }
};

class Planner {
 public:
  Planner(const Program& program, Math math, int images, const Limits& limits, Thrift thrift)
      : program_(program), math_(math), depth_(depth_of(math)), limits_(limits), thrift_(thrift),
        layout_(geometry(program, math, images)), column_(layout_.tiles * kFragmentBytes),
        timeline_(program, layout_.lag), values_(timeline_.values()) {}

  Plan plan() {
    for (const Sweep& sweep : timeline_.sweeps) draft_sweep(sweep);
    place_in_rings();
    for (SweepDraft& sweep : sweeps_) place_in_shared(sweep);
    resolve();
    return assembled();
  }

 private:
  static Layout geometry(const Program& program, Math math, int images) {
    Layout l{};
    l.image_channels = program.image_channels, l.height = program.height, l.width = program.width;
    l.head = program.head, l.images = images;
    l.by_rows = program.lag == 0;
    const int most_sites = kTileSites * (l.by_rows ? std::min(kMostRowTiles, most_tiles(math)) : most_tiles(math));
    l.lag = l.by_rows ? program.width : std::max(program.lag, parts(program.width, most_sites));
    l.rows = std::min(parts(program.width, l.lag), program.height);
    l.period = l.by_rows ? 1 << 30 : std::max(l.rows * l.lag, program.width);
    l.end_row = l.by_rows ? program.height : 1;
    l.sites = l.rows * images, l.most_images = most_sites / l.rows;
    if (l.sites > most_sites) throw std::invalid_argument("a block has fewer sites than these images");
    for (l.tiles = 1; l.tiles * kTileSites < l.sites;) l.tiles = more_tiles(math, l.tiles);
    return l;
  }

  // -- records

  // A sweep's records are numbered on from those of the sweeps before it.
  void draft_sweep(const Sweep& sweep) {
    SweepDraft& s = sweeps_.emplace_back();
    s.direction = sweep.direction, s.first = static_cast<int>(drafts_.size()), s.end = INT32_MAX;
    s.at_once = sweep.sums && layout_.tiles == 1 ? kTileSites / layout_.images : 1;
    edge(s, {0, 0, 0, 0}, 0);
    const size_t first_staging = stagings_.size(), first_logits = logits_.size();
    for (int p = sweep.first; p < sweep.end; p++) draft(p);
    // Timeline::distance counts so many entries at least; and windows of memory are at most a turn.
    drafts_.resize(drafts_.size() + std::max(0, kVisible - (sweep.end - sweep.first)));
    size_t needed = 0;
    for (size_t k = first_staging; k < stagings_.size(); k++) needed = std::max(needed, stagings_[k].windows());
    for (size_t k = first_logits; k < logits_.size(); k++) needed = std::max(needed, logits_[k].windows());
    drafts_.resize(std::max(drafts_.size(), s.first + needed));
    s.end = static_cast<int>(drafts_.size());
  }

  int padded(int value) const { return round_up(timeline_.channels(value), depth_); }
  int depth(int value) const { return timeline_.is_sums(value) ? depth_of(Math::fp32) : depth_; }  // of a fragment
  int fragments(int value) const { return padded(value) / depth(value); }
  static bool is_product(const Instruction* i) { return i->kind == InstructionKind::convolution; }

  void draft(int position) {
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

  bool by_distribution(int draw) const {
    const int per_draw = timeline_.distributions_per_draw();
    return draw >= 0 && per_draw > 1 && program_.head.parameters % kTileChannels == 0 && thrift_.by_distribution;
  }

  // Tiles first ... last - 1 of a group's channels. Where a layer is summed in pieces, a record computes no more than a
  // tile for each warp, whose sums go on in the next record.
  void draft_tiles(const std::vector<const Instruction*>& group, int position, int first, int last) {
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
    // A warp that would have several tiles one after the other has some of them at once, as far as it can.
    int wide = 1;
    while (members.size() == 1 && wide < most_members(math_, layout_.tiles) &&
           (last - first) % (2 * wide * kWarps) == 0)
      wide *= 2;
    if (wide > 1) members.resize(wide, members.front());
    for (int w = 1; w < wide; w++) members[w].first_channel += w * kTileChannels;
    const int tiles = (last - first) / wide;
    const int pieces = std::max(1, parts(static_cast<int>(known.size()), thrift_.known));
    for (int tile = 0; tile < tiles; tile += kWarps) {
      const int end = pieces == 1 ? tiles : std::min(tile + kWarps, tiles);
      for (int piece = 0; piece < pieces; piece++) {
        const bool ends = piece + 1 == pieces;
        const auto begin = known.begin() + piece * thrift_.known;
        const std::vector<Multiplied> before(begin, ends ? known.end() : begin + thrift_.known);
        Draft& d = drafts_.emplace_back();
        const int number = static_cast<int>(drafts_.size()) - 1;
        d.members = members, d.wide = wide, d.lead = group.front()->lead;
        d.first_channel = (first + tile * wide) * kTileChannels;
        for (Member& m : d.members) m.first_channel += tile * wide * kTileChannels;
        d.record.product.tiles = end - tile;
        d.record.product.members = std::max(1, static_cast<int>(members.size()));
        batch(d, before, ends ? late : std::vector<Multiplied>());
        if (ends) draft_results(group, joint, position, d, number);
        draft_memory(d, number, ends);
      }
      if (pieces == 1) break;
    }
    if (draw_of(position) >= 0) logits_channel_ = first * kTileChannels, logits_tiles_ = last - first;
  }

  int draw_of(int position) const { return timeline_.entries[position].draw; }

  // Values of few channels, such as the image, share fragments where they are copied.
  void add_fragments(std::vector<Multiplied>& to, const Read& read, int tap, bool copied) const {
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

  void draft_memory(Draft& d, int number, bool ends) {
    Record& r = d.record;
    r.copies.count = static_cast<int>(d.copied.size());
    const bool staged_late = std::any_of(d.late.begin(), d.late.end(), [](const auto& m) { return m.staged >= 0; });
    // Steps read it, too, and so do warps that have several tiles.
    if (r.copies.count) {
      const bool is_late = staged_late || (ends && d.copied.size() > d.known.size()) || r.product.tiles > kWarps;
      d.staging = stage(int64_t{r.copies.count} * column_, number, is_late);
    }
    for (const Multiplied& m : d.copied)
      for (const Chunk& chunk : m.chunks) uses_ring(chunk.read);
    for (const Multiplied& m : d.late)
      if (m.staged < 0) uses_shared(m.chunks[0].read, number);
  }

  // Shared memory for what is copied ahead of a record, and still read after its barrier if `late`.
  int stage(int64_t bytes, int record, bool late) {
    stagings_.push_back({bytes, record, record - thrift_.copies_ahead, record + late});
    return static_cast<int>(stagings_.size()) - 1;
  }

  // Splits a product into batches. Known fragments that don't fill turns of the stream are multiplied after the
  // barrier, and before the others: the order of a sum must not depend on how it is split, or images would depend on
  // the batch.
  void batch(Draft& d, std::vector<Multiplied> known, std::vector<Multiplied> late) const {
    Record& r = d.record;
    if (known.empty() && late.empty()) return;
    for (size_t k = 0; k < known.size(); k++) known[k].staged = static_cast<int>(k);
    d.copied = known;
    const int in_batch = kBatch / r.product.members, turn = batches_ahead(math_, layout_.tiles) * in_batch;
    r.product.known_turns = static_cast<int>(known.size()) / turn;
    if (late.empty() && static_cast<int>(known.size()) % turn == 0) r.product.known_turns--;
    const auto left = known.begin() + r.product.known_turns * turn;
    late.insert(late.begin(), left, known.end());
    known.erase(left, known.end());
    r.product.late_batches = parts(static_cast<int>(late.size()), in_batch);
    Multiplied filling = late.back();
    filling.filling = true;
    late.resize(r.product.late_batches * in_batch, filling);
    r.product.late_turns = r.product.late_batches % batches_ahead(math_, layout_.tiles);
    d.known = std::move(known), d.late = std::move(late);
  }

  // The first instructions of a group, if they are a common result of several members.
  struct Joint {
    size_t size = 0;  // 0: they are not
    Ending ending = Ending::sum;
    std::vector<const Instruction*> members = {};  // in the order of Ending
    const Instruction *cell = nullptr, *out = nullptr;
    int rounds_tanh = 0, keeps_sums = 0;
  };

  // What a record makes of its sums, and of values that it has made of them: for each instruction of the group, for
  // each of its members if it has several.
  void draft_results(const std::vector<const Instruction*>& group, const Joint& joint, int position, Draft& d,
                     int number) {
    Record::Product& product = d.record.product;
    product.results = size_of(results_);
    std::vector<float> biases;
    if (joint.size > 0) draft_joint(joint, position, d, number, biases);
    for (size_t k = joint.size; k < group.size(); k++) {
      const Instruction* const i = group[k];
      const size_t begin = biases.size();
      const int sums = timeline_.sums_of(i->out);
      const int goes_on = sums < 0 ? -1 : sums_at(sums, position, d, number);
      if (is_product(i) && sums < 0) add_biases(biases, {i}, d);
      for (int part = 0; part < d.wide; part++) {
        Result& r = add_result(i->out, d, part);
        if (sums < 0)
          r.bias = static_cast<uint32_t>((begin + part * kTileChannels) * sizeof(float));
        else
          goes_on_with(r, goes_on);
        draft_steps(*i, position, r, d, number);
        if (timeline_.is_sums(i->out)) r.ending = Ending::sums;
        if (r.ending == Ending::sum || r.ending == Ending::logits) break;  // of all members
      }
      draw_of(position) < 0 ? writes(i->out, number) : logits_records_.push_back(number);
    }
    product.n_results = static_cast<int>(size_of(results_) - product.results);
    stage_biases(biases, d, number);
  }

  Result& add_result(int value, const Draft& d, int part) {
    result_values_.push_back(value);
    Result& r = results_.emplace_back();
    r.first_channel = d.first_channel + part * kTileChannels, r.tile_channels = d.wide * kTileChannels;
    r.to = {kNowhere, kNowhere, 0}, r.logits = kNowhere;
    r.bias_tile = kTileChannels * sizeof(float);
    return r;
  }

  // Of those channels that the record computes.
  static void add_biases(std::vector<float>& biases, const std::vector<const Instruction*>& in_turn, const Draft& d) {
    const int end = d.first_channel + d.record.product.tiles * d.wide * kTileChannels;
    for (int channel = d.first_channel; channel < end; channel++) {
      const Instruction& i = *in_turn[channel % in_turn.size()];
      const int c = channel / static_cast<int>(in_turn.size());
      biases.push_back(i.bias && c < i.channels ? static_cast<const float*>(i.bias)[c] : 0.f);
    }
  }

  // Sums that a product goes on with instead of a bias. -> the reference to them
  int sums_at(int sums, int position, Draft& d, int number) {
    return operand_at({sums, 0, 0, kLongAgo}, position, d.lead, d, number);
  }
  void goes_on_with(Result& r, int reference) {
    r.bias_tile = column_, r.bias_site = kSiteBytes;
    r.bias = static_cast<uint32_t>(r.first_channel / kTileChannels * column_);
    going_on_[static_cast<int>(results_.size()) - 1] = reference;
  }

  void stage_biases(const std::vector<float>& biases, Draft& d, int number) {
    if (biases.empty()) return;
    d.record.copies.floats = static_cast<int>(floats_.size());
    d.record.copies.bias_bytes = static_cast<int>(biases.size() * sizeof(float));
    floats_.insert(floats_.end(), biases.begin(), biases.end());
    d.biases = stage(d.record.copies.bias_bytes, number, true);
  }

  Joint joint_of(const std::vector<const Instruction*>& group, int position) const {
    const auto products = std::count_if(group.begin(), group.end(), is_product);
    return products == 4 && group.size() > 4 ? lstm_of(group, position) : gate_of(group);
  }

  // Whether an instruction's steps are these, where a multiplication is by the value of `factor`.
  static bool has_steps(const Instruction* i, const std::vector<StepKind>& kinds, const Instruction* factor = nullptr) {
    return std::equal(i->steps.begin(), i->steps.end(), kinds.begin(), kinds.end(), [&](const Step& s, StepKind kind) {
      return s.kind == kind && (kind != StepKind::multiply || !factor || s.operand == factor->out);
    });
  }
  bool is_read_once(const Instruction* i) const { return timeline_.readers(i->out) == 1; }

  // Two products with their activations; or two whose sums are read as well, and then what is made of them.
  Joint gate_of(const std::vector<const Instruction*>& group) const {
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
    const auto member = [&](const Instruction* i) {
      return !keeps_sums ? i : i->value == group[0]->out ? group[0] : group[1];
    };
    const Instruction *const tanh = member(rounds_tanh ? first : out), *const gate = member(rounds_tanh ? out : first);
    if (tanh == gate) return {};
    return {keeps_sums ? 4u : 2u, Ending::gate, {tanh, gate}, nullptr, out, rounds_tanh, keeps_sums};
  }

  Joint lstm_of(const std::vector<const Instruction*>& group, int position) const {
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

  // What an LSTM's forget gate multiplies.
  Read cell_before(const Instruction& cell) const {
    return timeline_.read(cell, cell.steps[1].operand, cell.steps[1].dy, cell.steps[1].dx);
  }

  void draft_joint(const Joint& joint, int position, Draft& d, int number, std::vector<float>& biases) {
    if (joint.ending == Ending::gate)
      add_biases(biases, joint.members, d);
    else if (timeline_.sums_of(joint.members[0]->out) < 0)
      for (const Instruction* i : joint.members) add_biases(biases, {i}, d);
    Result& r = add_result(joint.out->out, d, 0);
    r.bias_member = d.record.product.tiles * kTileChannels * sizeof(float);
    r.ending = joint.ending;
    if (const int first = timeline_.sums_of(joint.members[0]->out); first >= 0) {
      r.bias_member = fragments(first) * column_;  // as they are copied one after the other
      for (const Instruction* i : joint.members) {
        const int reference = sums_at(timeline_.sums_of(i->out), position, d, number);
        if (i == joint.members[0]) goes_on_with(r, reference);
      }
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

  // What the last result writes besides.
  void also_writes(int value, int number, Target& (*target)(Result&)) {
    also_written_.push_back({results_.size() - 1, value, target});
    writes(value, number);
  }

  void draft_steps(const Instruction& i, int position, Result& r, Draft& d, int number) {
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
    if (r.ending == Ending::logits ||
        (!is_output && (is_sum(i, starts, first, r) || is_activated(i, starts, first, r))))
      return;
    r.ending = Ending::steps;
    r.steps = {starts < 0 ? kNowhere : static_cast<uint32_t>(starts), static_cast<uint32_t>(first),
               static_cast<int>(i.steps.size()), i.channels};
  }

  // A value that steps read: where it was written in this column step, or where it was copied ahead, or else anywhere.
  int operand_at(const Read& read, int position, int lead, Draft& d, int number) {
    Reference found{read, number, near(position, read), lead};
    if (!is_own(found) && distance(position, read) >= kVisible) {
      found.staged = static_cast<int>(d.copied.size());
      add_fragments(d.copied, read, 0, false);
    } else {
      found.in_shared ? uses_shared(read, number) : uses_ring(read);
    }
    references_.push_back(found);
    return static_cast<int>(references_.size()) - 1;
  }

  static bool is_own(const Reference& r) {
    return r.staged >= 0 || (r.in_shared && r.read.age == 0 && r.read.dy == 0 && r.read.dx == 0);
  }
  bool is_own(int reference) const { return is_own(references_[reference]); }

  // Common results need not go through the steps one by one. What a result reads is a reference, until all has its
  // place.
  bool adds_own(const Instruction& i, size_t step, int first) const {
    return step < i.steps.size() && i.steps[step].kind == StepKind::add && i.steps[step].alpha == 1 &&
           is_own(step_places_.at(first + static_cast<int>(step)));
  }

  bool is_sum(const Instruction& i, int starts, int first, Result& r) const {
    if (starts >= 0) return false;
    const size_t adds = adds_own(i, 0, first), left = i.steps.size() - adds;
    if (left > 1 || (left == 1 && i.steps[adds].kind != StepKind::relu)) return false;
    r.ending = Ending::sum;
    r.sum.added = adds ? static_cast<uint32_t>(step_places_.at(first)) : kNowhere;
    r.sum.least = left ? 0 : -std::numeric_limits<float>::infinity();
    return true;
  }

  bool is_activated(const Instruction& i, int starts, int first, Result& r) const {
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

  StepPlan& add_step(const Instruction& i, const Step& s) {
    StepPlan step{};
    step.kind = s.kind, step.alpha = static_cast<float>(s.alpha), step.reads = operand_of(s.kind);
    step.condition = s.operand;
    const int width = round_up(i.channels, 2 * kTileChannels);
    step.scale = floats(s.scale, i.channels, width), step.shift = floats(s.shift, i.channels, width);
    steps_.push_back(step);
    return steps_.back();
  }

  void draft_draw(int draw, int first, int count) {
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

  // What a draw gives an instruction that reads levels.
  void draft_input(const Instruction& i, const Record& r, int number) {
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
  }

  // What each level of each image channel becomes: [count, levels, width].
  std::vector<float> tables_of(const Instruction& i, const InputPlan& input) const {
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

  // Floats of the program, filled up with zeros. -> where they lie
  int floats(const void* from, int count, int width) {
    const auto [found, is_new] = floats_of_.try_emplace({from, width}, static_cast<int>(floats_.size()));
    if (!is_new) return found->second;
    floats_.resize(floats_.size() + round_up(width, 4));
    if (from) std::copy_n(static_cast<const float*>(from), count, floats_.begin() + found->second);
    return found->second;
  }

  // -- reads

  int distance(int position, const Read& read) const { return timeline_.distance(position, read, kVisible); }

  // A value's shared memory holds what was computed last.
  bool near(int position, const Read& read) const {
    const bool is_last = read.age == 0 || (read.age == 1 && position < timeline_.position(read.value));
    return is_last && distance(position, read) <= kNear;
  }

  void uses_ring(const Read& read) {
    int& oldest = values_[read.value].oldest;
    oldest = std::max(oldest, layout_.by_rows ? -read.dy : read.age);
  }
  void uses_shared(const Read& read, int record) { values_[read.value].shared_reads.push_back({record, read.age}); }
  void writes(int value, int record) {
    ValueMemory& v = values_[value];
    if (v.first_written < 0) v.first_written = record;
    v.last_written = record;
  }

  uint32_t slot(SweepDraft& sweep, const Read& read) {
    const int length = values_[read.value].oldest + 1;
    const Ring& ring = rings_.at(length);
    Slot slot{ring.at, ring.bytes, length, read.age};
    if (layout_.by_rows) slot.age = 0, slot.dy = read.dy, slot.dx = read.dx;
    const std::tuple key(length, slot.age, slot.dy, slot.dx);
    const auto [found, is_new] = sweep.slots.try_emplace(key, size_of(sweep.slot_table));
    if (is_new) sweep.slot_table.push_back(slot);
    return found->second;
  }

  uint32_t edge(SweepDraft& sweep, const Read& read, int lead) {
    if (read.dy == 0 && read.dx == 0) lead = 0;
    const auto [found, is_new] = sweep.edges.try_emplace({lead, read.dy, read.dx}, size_of(sweep.edge_table));
    if (is_new) sweep.edge_table.push_back({lead, read.dy, read.dx});
    return found->second;
  }

  // -- memory

  void place_in_rings() {
    for (size_t v = 0; v < values_.size(); v++) {
      ValueMemory& value = values_[v];
      if (value.first_written < 0 && (value.in_ring() || !value.shared_reads.empty()))
        throw std::invalid_argument("the program reads logits, or a value that nothing computes");
      if (!value.in_ring()) continue;
      Ring& ring = rings_[value.oldest + 1];
      value.ring = ring.bytes;
      ring.bytes += int64_t{fragments(static_cast<int>(v))} * column_;
      if (ring.bytes > INT32_MAX) throw std::invalid_argument("the values of a column step exceed 2 GB");
    }
    for (auto& [length, ring] : rings_) {
      ring.at = layout_.workspace_bytes;
      layout_.workspace_bytes += ring.bytes * length * (layout_.by_rows ? layout_.width : 1);
    }
  }

  void place_in_shared(const SweepDraft& sweep) {
    const int records = sweep.end - sweep.first;
    CyclicMemory memory(records);
    std::vector<std::pair<int, int64_t*>> placed;
    const auto add = [&](int64_t bytes, int first, int last, int64_t& at) {
      placed.push_back({memory.add(bytes, first, last), &at});
    };
    for (auto* list : {&stagings_, &logits_})
      for (Demand& d : *list)
        if (sweep.has(d.record)) add(d.bytes, d.first, d.last, d.at);
    for (size_t v = 0; v < values_.size(); v++) {
      ValueMemory& value = values_[v];
      if (value.shared_reads.empty() || !sweep.has(value.first_written)) continue;
      int last = value.last_written + 1;
      for (const auto& [record, age] : value.shared_reads) last = std::max(last, record + 1 + age * records);
      add(int64_t{fragments(static_cast<int>(v))} * column_, value.first_written + 1, last, value.shared);
    }
    memory.place();
    for (const auto& [buffer, at] : placed) *at = memory.at(buffer);
    data_bytes_ = std::max(data_bytes_, memory.bytes());
  }

  uint32_t shared_of(int value) const {
    return values_[value].shared_reads.empty() ? kNowhere : static_cast<uint32_t>(values_[value].shared);
  }
  uint32_t ring_of(int value) const {
    return values_[value].in_ring() ? static_cast<uint32_t>(values_[value].ring) : kNowhere;
  }

  Place place(SweepDraft& sweep, const Chunk& chunk, bool in_shared, int lead) {
    const Read& read = chunk.read;
    const int depth = this->depth(read.value);
    Place p;
    p.at = (in_shared ? shared_of(read.value) : ring_of(read.value)) +
           static_cast<uint32_t>(chunk.first / depth * column_ + chunk.first % depth * kSiteBytes / depth);
    p.shift = sweep.at_once > 1 ? static_cast<int>(rings_.at(values_[read.value].oldest + 1).bytes)
                                : -read.dy % layout_.rows * layout_.images;
    p.edge = edge(sweep, read, lead);
    p.slot = in_shared ? kInShared : slot(sweep, read);
    return p;
  }

  // Everything has its place: writes down where.
  void resolve() {
    for (Draft& d : drafts_)
      if (d.staging >= 0) d.record.copies.staged = d.record.product.staged = staged_at(d.staging);
    for (const Reference& r : references_) {
      const uint32_t staged = drafts_[r.record].record.copies.staged + static_cast<uint32_t>(r.staged * column_);
      places_.push_back(r.staged >= 0 ? Place{staged} : place(sweep_of(r.record), {r.read, 0, 0}, r.in_shared, r.lead));
    }
    for (const auto& [step, reference] : step_places_) steps_[step].place = places_[reference];
    const auto place_own = [&](uint32_t& at) {
      if (at != kNowhere) at = places_[at].at;
    };
    for (Result& r : results_) {
      if (r.ending == Ending::sum) place_own(r.sum.added);
      if (r.ending == Ending::lstm) place_own(r.lstm.factor);
      if (r.ending != Ending::activated) continue;
      place_own(r.activated.from), place_own(r.activated.factor), place_own(r.activated.term);
    }
    for (size_t k = 0; k < drafts_.size(); k++) {
      Draft& d = drafts_[k];
      Record& r = d.record;
      if (d.biases >= 0) r.copies.bias = staged_at(d.biases);
      r.copies.places = size_of(places_);
      SweepDraft& sweep = sweep_of(static_cast<int>(k));
      place_copies(sweep, d);
      value_bytes_ += int64_t{r.copies.count} * column_;
      resolve_late(sweep, d);
      const auto logits = logits_of_.find(static_cast<int>(k));
      const uint32_t logits_at = logits == logits_of_.end() ? 0 : static_cast<uint32_t>(logits_[logits->second].at);
      r.draw.logits = logits_at;
      for (uint32_t n = r.product.results; n < r.product.results + r.product.n_results; n++) {
        Result& result = results_[n];
        const auto going_on = going_on_.find(static_cast<int>(n));
        result.bias += going_on == going_on_.end() ? r.copies.bias : places_[going_on->second].at;
        if (result.ending == Ending::sums) result.sums.column_bytes = static_cast<uint32_t>(rings_.at(1).bytes);
        if (result.logits == kNowhere) {
          result.to = target(result_values_[n]);
        } else {
          result.logits += logits_at;
        }
      }
    }
    for (const auto& [result, value, to] : also_written_) to(results_[result]) = target(value);
    for (size_t k = 0; k < inputs_.size(); k++) inputs_[k].to = target(input_values_[k]);
  }

  void place_copies(SweepDraft& sweep, Draft& d) {
    const auto is_whole = [](const Multiplied& m) { return m.side_by_side(); };
    d.record.copies.chunked = !std::all_of(d.copied.begin(), d.copied.end(), is_whole);
    const Place nowhere{0, 0, edge(sweep, {0, program_.height, 0, 0}, 0), 0};  // zeros
    if (d.copied.empty()) places_.push_back(nowhere);  // warps read one, whether they copy or not
    for (const Multiplied& m : d.copied)
      for (size_t c = 0; c < (d.record.copies.chunked ? kChunks : 1); c++)
        places_.push_back(c < m.chunks.size() ? place(sweep, m.chunks[c], false, d.lead) : nowhere);
  }

  uint32_t staged_at(int number) const { return static_cast<uint32_t>(stagings_[number].at); }

  void resolve_late(SweepDraft& sweep, Draft& d) {
    Record::Product& product = d.record.product;
    std::vector<Place> late;
    for (const Multiplied& m : d.late)
      late.push_back(m.staged < 0 ? place(sweep, m.chunks[0], true, d.lead)
                                  : Place{product.staged + static_cast<uint32_t>(m.staged * column_)});
    // How many go on where those before the barrier ended, and whether the others follow each other.
    size_t known = 0;
    while (known < d.late.size() && d.late[known].staged == static_cast<int>(d.known.size() + known)) known++;
    const int in_batch = kBatch / product.members;
    bool row = known % in_batch == 0;
    for (size_t k = known; k < late.size(); k++)
      row &= late[k].edge == kEverySite && late[k].at == late[known].at + static_cast<uint32_t>(k - known) * column_;
    product.late_known = static_cast<int>(known) / in_batch, product.late_in_row = row;
    if (row) {
      product.late = known < late.size() ? late[known].at : 0;
    } else {
      product.late_places = size_of(places_);
      places_.insert(places_.end(), late.begin() + product.late_known * in_batch, late.end());
    }
  }

  Target target(int value) {
    const uint32_t ring = ring_of(value);
    if (ring == kNowhere) return {shared_of(value), ring, 0};
    return {shared_of(value), ring, slot(sweep_of(values_[value].first_written), {value, 0, 0, 0})};
  }

  SweepDraft& sweep_of(int record) {
    return *std::find_if(sweeps_.begin(), sweeps_.end(), [&](const SweepDraft& s) { return s.has(record); });
  }

  // -- what goes to the device

  Plan assembled() {
    Layout& l = layout_;
    Bytes bytes;
    if (sweeps_.size() > kMostSweeps) throw std::invalid_argument("the program goes over a row too often");
    int slots = 0, edges = 0;
    for (SweepDraft& sweep : sweeps_) {
      if (sweep.slot_table.empty()) sweep.slot_table.push_back({0, 0, 1});  // results look one up at any rate
      if (sweep.slot_table.size() > kThreads) throw std::invalid_argument("the program reads too many column steps");
      slots = std::max(slots, static_cast<int>(sweep.slot_table.size()));
      edges = std::max(edges, static_cast<int>(sweep.edge_table.size()));
    }
    l.zeros = static_cast<uint32_t>(data_bytes_);
    l.tables = l.zeros + kSiteBytes;
    l.view_of_slots = l.tiles * kTileSites * sizeof(Site);
    l.view_of_edges = l.view_of_slots + slots * 8;
    // From here on, what was a number is an offset.
    const auto table = [&](const auto& items) { return l.tables + static_cast<uint32_t>(bytes.add(items)); };
    const auto in_view = [&](uint32_t& slot) { slot = l.view_of_slots + slot * 8; };
    const auto place_in_view = [&](Place& p) {
      p.edge = l.view_of_edges + p.edge * 8;
      if (p.slot != kInShared) in_view(p.slot);
    };
    const auto offset = [](uint32_t& number, uint32_t table, size_t bytes) {
      number = table + number * static_cast<uint32_t>(bytes);
    };
    for (Place& p : places_) place_in_view(p);
    for (StepPlan& step : steps_) place_in_view(step.place);
    const uint32_t places = table(places_), steps = table(steps_);
    for (Result& r : results_) {
      in_view(r.to.slot);
      if (r.ending == Ending::lstm) in_view(r.lstm.cell.slot);
      if (r.ending == Ending::gate) in_view(r.gate.sums[0].slot), in_view(r.gate.sums[1].slot);
      if (r.ending != Ending::steps) continue;
      if (r.steps.starts != kNowhere) offset(r.steps.starts, places, sizeof(Place));
      offset(r.steps.first, steps, sizeof(StepPlan));
    }
    for (InputPlan& input : inputs_) {
      in_view(input.to.slot);
      const auto first = floats_.begin() + input.table;
      const std::vector<float> tables(first, first + input.count * input.floats);
      input.near = tables.size() <= kNearFloats ? table(tables) : kNowhere;
    }
    const uint32_t results = table(results_), inputs = table(inputs_);
    for (SweepDraft& sweep : sweeps_) {
      SweepPlan& plan = l.sweeps[l.n_sweeps++];
      plan = {};
      plan.at_once = sweep.at_once, plan.columns = sweep.direction * sweep.at_once;
      plan.edges = static_cast<int>(sweep.edge_table.size()), plan.slots = static_cast<int>(sweep.slot_table.size());
      std::vector<Record> records = records_of(sweep, plan);
      l.records += static_cast<int>(records.size());
      for (Record& r : records) {
        offset(r.copies.places, places, sizeof(Place)), offset(r.product.late_places, places, sizeof(Place));
        offset(r.product.results, results, sizeof(Result)), offset(r.draw.inputs, inputs, sizeof(InputPlan));
      }
      plan.records = table(records);
      for (uint32_t& record : plan.first_copies)
        if (record != kNowhere) offset(record, plan.records, sizeof(Record));
      plan.edge_table = table(sweep.edge_table), plan.slot_table = table(sweep.slot_table);
    }
    set_steps();
    l.conditions = table(conditions());
    l.table_bytes = static_cast<uint32_t>(bytes.size());
    l.first_view = l.tables + l.table_bytes;
    const uint32_t view_bytes = round_up(l.view_of_edges + edges * 8, sizeof(Site));
    l.both_views = 2 * l.first_view + view_bytes;
    const int64_t shared_bytes = l.first_view + 2 * int64_t{view_bytes};
    if (shared_bytes > limits_.shared_bytes)
      throw std::invalid_argument("a column step needs " + std::to_string(shared_bytes) +
                                  " bytes of shared memory, and a block has " + std::to_string(limits_.shared_bytes));
    l.floats = bytes.add(floats_);
    for (size_t k = 0; k < sweeps_.size(); k++) write_weights(bytes, sweeps_[k], l.sweeps[k]);
    Plan plan{math_, l, std::move(bytes.bytes), static_cast<int>(shared_bytes)};
    plan.weight_bytes = weight_bytes_, plan.value_bytes = value_bytes_;
    return plan;
  }

  std::vector<Record> records_of(const SweepDraft& sweep, SweepPlan& plan) const {
    std::vector<Record> records;
    for (uint32_t& record : plan.first_copies) record = kNowhere;
    for (int k = sweep.first; k < sweep.end; k++) {
      Record r = drafts_[k].record;
      const int ahead = k + thrift_.copies_ahead, later = ahead < sweep.end ? ahead : ahead - sweep.end + sweep.first;
      r.copies = drafts_[later].record.copies;
      r.copies.next_step = later != ahead;
      r.copies.for_next = thrift_.copies_ahead == 1;
      r.copies.first_warp = 2 * r.product.tiles <= kWarps ? r.product.tiles : 0;
      r.copies.warps = kWarps - r.copies.first_warp;
      r.product.meets = 1;
      if (r.copies.next_step) plan.first_copies[later - sweep.first] = size_of(records);
      // A warp's tiles one after the other.
      for (int tiles = r.product.tiles; r.product.first_tile == 0 || r.product.first_tile < tiles;) {
        r.product.tiles = std::min(tiles - r.product.first_tile, kWarps);
        records.push_back(r);
        r.product.meets = 0, r.product.first_tile += kWarps;
      }
    }
    records.front().product.then = Then::look;  // early, as the last ones already copy for the next column step
    records.back().product.then = Then::step;
    return records;
  }

  // In which column step, or column, each sweep begins, and how many it has.
  void set_steps() {
    int longest_lead = 0;
    for (const Instruction& i : program_.instructions) longest_lead = std::max(longest_lead, i.lead);
    for (int k = 0; k < layout_.n_sweeps; k++) {
      SweepPlan& sweep = layout_.sweeps[k];
      sweep.first_step = layout_.by_rows ? (sweep.columns > 0 ? 0 : program_.width - 1) : -longest_lead;
      sweep.steps = layout_.by_rows ? parts(program_.width, sweep.at_once)
                                    : program_.width + longest_lead + layout_.lag * (program_.height - 1);
    }
  }

  std::vector<ConditionPlan> conditions() const {
    std::vector<ConditionPlan> result;
    int64_t before = 0;
    for (const ConditionOperand& operand : program_.conditions) {
      result.push_back({operand.channels, operand.varies_over_pixels, before});
      before += operand.channels * (operand.varies_over_pixels ? int64_t{program_.height} * program_.width : 1);
    }
    return result;
  }

  // Each warp's weights in the order in which it multiplies by them.
  void write_weights(Bytes& bytes, const SweepDraft& sweep, SweepPlan& plan) {
    for (int warp = 0; warp < kWarps; warp++) {
      std::vector<char> stream;
      for (int k = sweep.first; k < sweep.end; k++) {
        const Draft& d = drafts_[k];
        for (int tile = warp; tile < d.record.product.tiles; tile += kWarps)
          for (const auto* list : {&d.known, &d.late})
            for (const Multiplied& m : *list)
              for (const Member& member : d.members) {
                stream.resize(stream.size() + kWeightBytes);
                if (!m.filling) pack(m, member, tile * d.wide * kTileChannels, &*stream.end() - kWeightBytes);
              }
      }
      weight_bytes_ += static_cast<int64_t>(stream.size());
      plan.weight_bytes[warp] = static_cast<int>(stream.size());
      // What a warp has in flight goes on at the beginning.
      for (int k = 0; k < batches_ahead(math_, layout_.tiles) * kBatch * kWeightBytes; k++)
        stream.push_back(plan.weight_bytes[warp] ? stream[k] : char{0});
      plan.weights[warp] = bytes.add(stream);
    }
  }

  void pack(const Multiplied& m, const Member& member, int channel, char* fragment) const {
    const int in_turn = static_cast<int>(member.instructions.size()), outputs = member.instructions[0]->channels;
    const size_t taps = member.weights.size() / in_turn;
    const int in_chunk = depth_ / kChunks;
    const auto at = [&](int k, int row) {
      const size_t c = k / in_chunk;
      if (c >= m.chunks.size()) return 0.f;
      const Chunk& chunk = m.chunks[c];
      const int in = chunk.first + k % in_chunk, of_all = member.first_channel + channel + row, out = of_all / in_turn;
      const bool is_there = in < timeline_.channels(chunk.read.value) && out < outputs;
      return is_there ? member.weights[of_all % in_turn * taps + chunk.tap][int64_t{in} * outputs + out] : 0.f;
    };
    pack_weights(math_, at, fragment);
  }

  struct ValueMemory {
    int first_written = -1, last_written = -1;           // by record
    std::vector<std::pair<int, int>> shared_reads = {};  // record, age
    int oldest = -1;                                     // the oldest column step that something reads of the ring
    int64_t ring = 0, shared = 0;
    bool in_ring() const { return oldest >= 0; }
  };
  struct Ring {
    int64_t at = 0, bytes = 0;
  };
  // Shared memory from one window to another: window k lies between the barriers of records k - 1 and k.
  struct Demand {
    int64_t bytes;
    int record, first, last;
    int64_t at = 0;
    size_t windows() const { return static_cast<size_t>(last - first + 1); }
  };

  const Program& program_;
  const Math math_;
  const int depth_;
  const Limits limits_;
  const Thrift thrift_;
  Layout layout_;
  const int column_;  // bytes of a fragment of all sites
  const Timeline timeline_;
  std::vector<ValueMemory> values_;
  std::vector<SweepDraft> sweeps_;
  std::vector<Draft> drafts_;
  std::vector<Demand> stagings_, logits_;
  std::map<int, int> logits_of_;     // by record
  std::vector<int> logits_records_;  // of the draw to come
  int logits_channel_ = 0, logits_tiles_ = 0;
  std::vector<Reference> references_;
  std::map<int, int> step_places_;  // of steps that read a value: the reference
  std::vector<Result> results_;
  std::vector<int> result_values_;  // what each of them is
  struct AlsoWritten {
    size_t result;
    int value;
    Target& (*target)(Result&);
  };
  std::vector<AlsoWritten> also_written_;
  std::map<int, int> going_on_;  // results that go on with sums: the reference to them
  std::vector<int> input_values_;
  std::map<int, Ring> rings_;  // by length
  std::vector<Place> places_;
  std::vector<StepPlan> steps_;
  std::vector<InputPlan> inputs_;
  std::vector<float> floats_;
  std::map<std::pair<const void*, int>, int> floats_of_;
  int64_t data_bytes_ = 0, value_bytes_ = 0, weight_bytes_ = 0;
};

}  // namespace

Plan make_plan(const Program& program, Math math, int images, const Limits& limits) {
  std::string why;
  for (const int known : {1 << 20, 28, 20, 12, 8, 4})  // so that pieces fill their batches
    for (const int copies_ahead : {2, 1})
      for (const bool by_distribution : {false, true}) try {
          return Planner(program, math, images, limits, {known, by_distribution, copies_ahead}).plan();
        } catch (const std::invalid_argument& error) {
          why = error.what();
        }
  throw std::invalid_argument(why);
}

}  // namespace pcf::cuda

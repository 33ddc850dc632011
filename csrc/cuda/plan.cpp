#include "cuda/plan.h"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>

#include "cuda/cyclic_memory.h"
#include "cuda/pack.h"
#include "cuda/timeline.h"

namespace pcf::cuda {
namespace {

int round_up(int n, int to) { return (n + to - 1) / to * to; }
int parts(int n, int of) { return (n + of - 1) / of; }

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

// How the planner may spend shared memory.
struct Thrift {
  int known;             // fragments that a record multiplies before its barrier, at most
  bool by_distribution;  // whether each distribution is drawn before the next one's logits are computed
  int copies_ahead;      // how many records ahead of their use known values are copied
};

// A fragment of what a product reads. weight: null for one that fills up a batch.
struct Multiplied {
  Read read;
  int fragment;
  const float* weight;
  int staged = -1;  // where it is among those copied ahead, if it was
};

struct Draft {
  Record record{};
  const Instruction* instruction = nullptr;
  std::vector<Multiplied> known, late, copied;
  int staging = -1, biases = -1;  // numbers of what is staged
  int added = -1;                 // of a reference
};

class Planner {
 public:
  Planner(const Program& program, Math math, int images, const Limits& limits, Thrift thrift)
      : program_(program), math_(math), depth_(depth_of(math)), limits_(limits), thrift_(thrift),
        layout_(geometry(program, math, images)), column_(layout_.tiles * kFragmentBytes),
        timeline_(program, layout_.lag), values_(program.storage.size()) {}

  Plan plan() {
    edge({0, 0, 0, 0}, 0);
    add_special(Special::look);
    for (size_t p = 0; p < timeline_.entries.size(); p++) draft(static_cast<int>(p));
    place_in_rings();
    place_in_shared();
    resolve();
    return assembled();
  }

 private:
  static Layout geometry(const Program& program, Math math, int images) {
    Layout l{};
    l.image_channels = program.image_channels, l.height = program.height, l.width = program.width;
    l.head = program.head, l.images = images;
    const int most_sites = most_tiles(math) * kTileSites;
    l.lag = std::max(program.lag, parts(program.width, most_sites));
    l.rows = std::min(parts(program.width, l.lag), program.height);
    l.period = std::max(l.rows * l.lag, program.width);
    l.sites = l.rows * images;
    if (l.sites > most_sites) throw std::invalid_argument("a block has fewer sites than these images");
    for (l.tiles = 1; l.tiles * kTileSites < l.sites;) l.tiles = more_tiles(math, l.tiles);
    for (const Instruction& i : program.instructions) l.first_step = std::min(l.first_step, -i.lead);
    l.end_step = program.width + l.lag * (program.height - 1);
    return l;
  }

  // -- records

  Draft& add_special(Special special) {
    Draft& d = drafts_.emplace_back();
    d.record.product.special = special;
    return d;
  }

  int fragments(int value) const { return parts(program_.storage[value].channels, depth_); }
  int padded(int value) const { return fragments(value) * depth_; }

  void draft(int position) {
    const Entry& entry = timeline_.entries[position];
    if (!entry.instruction) {
      if (!by_distribution(entry.draw)) draft_draw(entry.draw, 0, timeline_.distributions_per_draw());
      return;
    }
    const Instruction& i = *entry.instruction;
    std::vector<Multiplied> known, late;
    switch (i.kind) {
      case InstructionKind::from_levels: return;  // draws compute it
      case InstructionKind::convolution:
        for (const Tap& tap : timeline_.taps(i)) {
          const bool is_known = distance(position, tap.read) >= kVisible;
          for (int f = 0; f < fragments(tap.read.value); f++)
            (is_known ? known : late).push_back({tap.read, f, tap.weight});
        }
        break;
      case InstructionKind::pointwise: break;
    }
    const bool is_output = entry.draw >= 0;
    const int tiles = parts(is_output ? i.channels : padded(i.out), kTileChannels);
    if (is_output && by_distribution(entry.draw)) {
      const int each = program_.head.parameters / kTileChannels;
      for (int d = 0; d < timeline_.distributions_per_draw(); d++) {
        draft_tiles(i, position, entry.draw, known, late, d * each, (d + 1) * each);
        draft_draw(entry.draw, d, 1);
      }
    } else {
      draft_tiles(i, position, entry.draw, known, late, 0, tiles);
    }
  }

  bool by_distribution(int draw) const {
    const int per_draw = timeline_.distributions_per_draw();
    return draw >= 0 && per_draw > 1 && program_.head.parameters % kTileChannels == 0 && thrift_.by_distribution;
  }

  // Tiles first ... last - 1 of an instruction's channels. Where a layer is summed in pieces, a record computes no more
  // than a tile for each warp, whose sums go on in the next record.
  void draft_tiles(const Instruction& i, int position, int draw, const std::vector<Multiplied>& known,
                   const std::vector<Multiplied>& late, int first, int last) {
    const int pieces = std::max(1, parts(static_cast<int>(known.size()), thrift_.known));
    for (int tile = first; tile < last; tile += kWarps) {
      const int end = pieces == 1 ? last : std::min(tile + kWarps, last);
      for (int piece = 0; piece < pieces; piece++) {
        const bool ends = piece + 1 == pieces;
        const auto begin = known.begin() + piece * thrift_.known;
        const std::vector<Multiplied> before(begin, ends ? known.end() : begin + thrift_.known);
        Draft& d = draft_product(i, tile, end, before, ends ? late : std::vector<Multiplied>());
        const int number = static_cast<int>(drafts_.size()) - 1;
        d.record.product.begins = piece == 0;
        d.record.result.ending = ends ? Ending::general : Ending::none;
        if (ends) draft_steps(i, position, d, number);
        draw < 0 ? writes(i.out, number) : logits_records_.push_back(number);
      }
      if (pieces == 1) break;
    }
    if (draw >= 0) logits_channel_ = first * kTileChannels, logits_tiles_ = last - first;
  }

  Draft& draft_product(const Instruction& i, int first, int last, const std::vector<Multiplied>& known,
                       const std::vector<Multiplied>& late) {
    const int number = static_cast<int>(drafts_.size()), channels = (last - first) * kTileChannels;
    Draft& d = drafts_.emplace_back();
    d.instruction = &i;
    Record& r = d.record;
    r.product.tiles = last - first, r.result.first_channel = first * kTileChannels;
    r.steps.channels = i.channels, r.steps.lead = i.lead, r.steps.starts = -1;
    r.result.shared = r.result.ring = r.result.logits = r.result.added = kNowhere;
    r.copies.floats = floats(i.bias, i.channels, round_up(i.channels, 2 * kTileChannels)) + first * kTileChannels;
    r.copies.bias_bytes = channels * 4;
    d.biases = stage(r.copies.bias_bytes, number, true);
    batch(d, known, late);
    const bool staged_late = std::any_of(d.late.begin(), d.late.end(), [](const auto& m) { return m.staged >= 0; });
    // A warp that has several tiles reads all of it again after the barrier.
    if (r.copies.count)
      d.staging = stage(int64_t{r.copies.count} * column_, number, staged_late || r.product.tiles > kWarps);
    for (const Multiplied& m : d.known) uses_ring(m.read);
    for (const Multiplied& m : d.late) m.staged < 0 ? uses_shared(m.read, number) : uses_ring(m.read);
    return d;
  }

  // Shared memory for what is copied ahead of a record, and still read after its barrier if `late`.
  int stage(int64_t bytes, int record, bool late) {
    stagings_.push_back({bytes, record - thrift_.copies_ahead, record + late});
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
    r.copies.count = static_cast<int>(known.size());
    const int turn = batches_ahead(math_, layout_.tiles) * kBatch;
    r.product.known_turns = static_cast<int>(known.size()) / turn;
    if (late.empty() && static_cast<int>(known.size()) % turn == 0) r.product.known_turns--;
    const auto left = known.begin() + r.product.known_turns * turn;
    late.insert(late.begin(), left, known.end());
    known.erase(left, known.end());
    r.product.late_batches = parts(static_cast<int>(late.size()), kBatch);
    Multiplied filling = late.back();
    filling.weight = nullptr;
    late.resize(r.product.late_batches * kBatch, filling);
    d.known = std::move(known), d.late = std::move(late);
  }

  void draft_steps(const Instruction& i, int position, Draft& d, int number) {
    Record& r = d.record;
    const auto operand = [&](int value, int dy, int dx) {
      const Read read = timeline_.read(i, value, dy, dx);
      return Reference{read, number, near(position, read), i.lead};
    };
    if (i.kind == InstructionKind::pointwise) r.steps.starts = reference(operand(i.value, i.dy, i.dx));
    r.steps.first = static_cast<int>(steps_.size());
    for (const Step& s : i.steps) {
      StepPlan& step = add_step(i, s);
      if (!reads_value(s)) continue;
      const int place = reference(operand(s.operand, s.dy, s.dx));
      step_places_[static_cast<int>(steps_.size()) - 1] = place;
      if (reads_all_channels(s.kind)) {
        step.all_channels = program_.storage[s.operand].channels;
        step.inverse_channels = 1.f / static_cast<float>(step.all_channels);
      }
    }
    r.steps.count = static_cast<int>(steps_.size()) - r.steps.first;
    shorten(i, d);
  }

  // The usual ends of a product need not go through the steps one by one.
  void shorten(const Instruction& i, Draft& d) {
    if (i.kind != InstructionKind::convolution) return;
    auto next = i.steps.begin();
    int added = -1;
    if (next != i.steps.end() && next->kind == StepKind::add && next->alpha == 1) {
      added = step_places_.at(d.record.steps.first), next++;
      const Reference& found = references_[added];
      if (!found.in_shared || found.read.age != 0 || found.read.dy != 0 || found.read.dx != 0) return;
    }
    const bool relu = next != i.steps.end() && next->kind == StepKind::relu;
    if (next + relu != i.steps.end()) return;
    d.record.result.ending = Ending::sum, d.record.result.relu = relu, d.added = added;
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
    Record& r = add_special(Special::draw).record;
    switch (program_.head.kind) {
      case HeadKind::categorical: break;  // Walk::draw_sites
    }
    r.draw.first = draw * timeline_.distributions_per_draw() + first, r.draw.distributions = count;
    if (count > 32) throw std::invalid_argument("a draw of more than 32 distributions");
    // Four more floats, so that neighbouring sites lie in different banks.
    r.result.logits_stride = logits_tiles_ * kTileChannels + 4;
    const int64_t bytes = int64_t{layout_.tiles} * kTileSites * r.result.logits_stride * 4;
    for (int k : logits_records_) {
      drafts_[k].record.result.logits = static_cast<uint32_t>(-logits_channel_ * 4);
      drafts_[k].record.result.logits_stride = r.result.logits_stride;
      logits_of_[k] = static_cast<int>(logits_.size());
    }
    logits_of_[number] = static_cast<int>(logits_.size());
    logits_.push_back({bytes, logits_records_.front() + 1, number + 1});
    logits_records_.clear();
    r.draw.inputs = static_cast<int>(inputs_.size());
    for (const Instruction& i : program_.instructions)
      if (i.kind == InstructionKind::from_levels) draft_input(i, r, number);
    r.draw.n_inputs = static_cast<int>(inputs_.size()) - r.draw.inputs;
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
    const int table = from.levels * from.width;
    input.table = from.table ? floats(from.table, table, table) : -1;
    input.steps = static_cast<int>(steps_.size());
    for (const Step& s : i.steps) add_step(i, s);
    input.n_steps = static_cast<int>(i.steps.size());
    if (first == from.first) input.pad_from = i.channels, input.pad_to = padded(i.out);
    inputs_.push_back(input);
    input_values_.push_back(i.out);
    writes(i.out, number);
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

  struct Reference {
    Read read;
    int record;
    bool in_shared;
    int lead;
  };

  int distance(int position, const Read& read) const { return timeline_.distance(position, read, kVisible); }

  // A value's shared memory holds what was computed last.
  bool near(int position, const Read& read) const {
    const bool is_last = read.age == 0 || (read.age == 1 && position < timeline_.position(read.value));
    return is_last && distance(position, read) <= kNear;
  }

  int reference(const Reference& r) {
    r.in_shared ? uses_shared(r.read, r.record) : uses_ring(r.read);
    references_.push_back(r);
    return static_cast<int>(references_.size()) - 1;
  }

  void uses_ring(const Read& read) { values_[read.value].oldest = std::max(values_[read.value].oldest, read.age); }
  void uses_shared(const Read& read, int record) { values_[read.value].shared_reads.push_back({record, read.age}); }
  void writes(int value, int record) {
    ValueMemory& v = values_[value];
    if (v.first_written < 0) v.first_written = record;
    v.last_written = record;
  }

  int slot(int value, int age) {
    const int length = values_[value].oldest + 1;
    const auto [found, is_new] = slots_.try_emplace({length, age}, static_cast<int>(slot_table_.size()));
    if (is_new) slot_table_.push_back({rings_.at(length).at, rings_.at(length).bytes, length, age});
    return found->second;
  }

  int edge(const Read& read, int lead) {
    if (read.dy == 0 && read.dx == 0) lead = 0;
    const auto [found, is_new] = edges_.try_emplace({lead, read.dy, read.dx}, static_cast<int>(edge_table_.size()));
    if (is_new) edge_table_.push_back({lead, read.dy, read.dx});
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
      layout_.workspace_bytes += ring.bytes * length;
    }
  }

  void place_in_shared() {
    int needed = kVisible;
    for (const auto* list : {&stagings_, &logits_})
      for (const Demand& d : *list) needed = std::max(needed, d.last - d.first + 1);
    while (static_cast<int>(drafts_.size()) < needed) add_special(Special::none);
    const int records = static_cast<int>(drafts_.size());
    CyclicMemory memory(records);
    std::vector<std::pair<int, int64_t*>> placed;
    const auto add = [&](int64_t bytes, int first, int last, int64_t& at) {
      placed.push_back({memory.add(bytes, first, last), &at});
    };
    for (auto* list : {&stagings_, &logits_})
      for (Demand& d : *list) add(d.bytes, d.first, d.last, d.at);
    for (size_t v = 0; v < values_.size(); v++) {
      ValueMemory& value = values_[v];
      if (value.shared_reads.empty()) continue;
      int last = value.last_written + 1;
      for (const auto& [record, age] : value.shared_reads) last = std::max(last, record + 1 + age * records);
      add(int64_t{fragments(static_cast<int>(v))} * column_, value.first_written + 1, last, value.shared);
    }
    memory.place();
    for (const auto& [buffer, at] : placed) *at = memory.at(buffer);
    data_bytes_ = memory.bytes();
  }

  uint32_t shared_of(int value) const {
    return values_[value].shared_reads.empty() ? kNowhere : static_cast<uint32_t>(values_[value].shared);
  }
  uint32_t ring_of(int value) const {
    return values_[value].in_ring() ? static_cast<uint32_t>(values_[value].ring) : kNowhere;
  }

  Place place(const Read& read, int fragment, bool in_shared, int lead) {
    Place p;
    p.at = (in_shared ? shared_of(read.value) : ring_of(read.value)) + static_cast<uint32_t>(fragment * column_);
    p.shift = -read.dy % layout_.rows * layout_.images;
    p.edge = edge(read, lead);
    p.slot = in_shared ? kInShared : slot(read.value, read.age);
    return p;
  }

  // Everything has its place: writes down where.
  void resolve() {
    for (const Reference& r : references_) places_.push_back(place(r.read, 0, r.in_shared, r.lead));
    for (const auto& [step, reference] : step_places_) steps_[step].place = places_[reference];
    for (size_t k = 0; k < drafts_.size(); k++) {
      Draft& d = drafts_[k];
      Record& r = d.record;
      if (d.staging >= 0) r.copies.staged = r.product.staged = staged_at(d.staging);
      if (d.biases >= 0) r.copies.bias = r.result.bias = staged_at(d.biases);
      if (d.added >= 0) r.result.added = places_[d.added].at;
      r.copies.places = static_cast<int>(places_.size());
      if (r.copies.count)
        for (const Multiplied& m : d.copied) places_.push_back(place(m.read, m.fragment, false, r.steps.lead));
      value_bytes_ += int64_t{r.copies.count} * column_;
      resolve_late(d);
      if (const auto found = logits_of_.find(static_cast<int>(k)); found != logits_of_.end())
        r.result.logits += static_cast<uint32_t>(logits_[found->second].at);
      else if (d.instruction)
        resolve_result(d.instruction->out, r.result);
    }
    for (size_t k = 0; k < inputs_.size(); k++) resolve_result(input_values_[k], inputs_[k]);
    if (slot_table_.size() > kThreads) throw std::invalid_argument("the program reads too many column steps");
  }

  uint32_t staged_at(int number) const { return static_cast<uint32_t>(stagings_[number].at); }

  void resolve_late(Draft& d) {
    Record::Product& product = d.record.product;
    std::vector<Place> late;
    for (const Multiplied& m : d.late)
      late.push_back(m.staged < 0 ? place(m.read, m.fragment, true, d.record.steps.lead)
                                  : Place{product.staged + static_cast<uint32_t>(m.staged * column_)});
    // How many go on where those before the barrier ended, and whether the others follow each other.
    size_t known = 0;
    while (known < d.late.size() && d.late[known].staged == static_cast<int>(d.known.size() + known)) known++;
    bool row = known % kBatch == 0;
    for (size_t k = known; k < late.size(); k++)
      row &= late[k].edge == kEverySite && late[k].at == late[known].at + static_cast<uint32_t>(k - known) * column_;
    product.late_known = row ? static_cast<int>(known / kBatch) : -1;
    if (row) {
      product.late = known < late.size() ? late[known].at : 0;
    } else {
      product.late_places = static_cast<int>(places_.size());
      places_.insert(places_.end(), late.begin(), late.end());
    }
  }

  template <class Result>
  void resolve_result(int value, Result& result) {
    result.shared = shared_of(value), result.ring = ring_of(value);
    if (result.ring != kNowhere) result.slot = slot(value, 0);
  }

  // -- what goes to the device

  Plan assembled() {
    Layout& l = layout_;
    Bytes bytes;
    std::vector<Record> records;
    for (const Draft& d : drafts_) records.push_back(d.record);
    l.records = static_cast<int>(records.size()), l.edges = static_cast<int>(edge_table_.size());
    l.zeros = static_cast<uint32_t>(data_bytes_);
    l.tables = l.zeros + kSiteBytes;
    l.copies_ahead = thrift_.copies_ahead;
    const auto table = [&](const auto& items) { return l.tables + static_cast<uint32_t>(bytes.add(items)); };
    l.record_table = table(records), l.places = table(places_), l.steps = table(steps_), l.inputs = table(inputs_);
    l.conditions = table(conditions()), l.edge_table = table(edge_table_), l.slot_table = table(slot_table_);
    l.table_bytes = static_cast<uint32_t>(bytes.size());
    l.slots = static_cast<int>(slot_table_.size());
    l.sites_at = l.tables + l.table_bytes;
    l.slots_at = l.sites_at + 2 * static_cast<uint32_t>(l.tiles) * kTileSites * sizeof(Site);
    l.masks_at = l.slots_at + 2 * static_cast<uint32_t>(l.slots) * 8;
    const int64_t shared_bytes = l.masks_at + 2 * int64_t{l.edges} * 8;
    if (shared_bytes > limits_.shared_bytes)
      throw std::invalid_argument("a column step needs " + std::to_string(shared_bytes) +
                                  " bytes of shared memory, and a block has " + std::to_string(limits_.shared_bytes));
    l.floats = bytes.add(floats_);
    write_weights(bytes);
    Plan plan{math_, l, std::move(bytes.bytes), static_cast<int>(shared_bytes)};
    plan.weight_bytes = weight_bytes_, plan.value_bytes = value_bytes_;
    return plan;
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
  void write_weights(Bytes& bytes) {
    for (int warp = 0; warp < kWarps; warp++) {
      std::vector<char> stream;
      for (const Draft& d : drafts_) {
        for (int tile = warp; tile < d.record.product.tiles; tile += kWarps)
          for (const auto* list : {&d.known, &d.late})
            for (const Multiplied& m : *list) {
              stream.resize(stream.size() + kWeightBytes);
              if (m.weight)
                pack_weights(math_, m.weight, program_.storage[m.read.value].channels, d.instruction->channels,
                             m.fragment * depth_, d.record.result.first_channel + tile * kTileChannels,
                             &*stream.end() - kWeightBytes);
            }
      }
      weight_bytes_ += static_cast<int64_t>(stream.size());
      stream.resize(std::max<size_t>(stream.size(), kBatch * kWeightBytes));  // a warp always has batches in flight
      layout_.weights[warp] = bytes.add(stream);
      layout_.batches[warp] = static_cast<int>(stream.size() / (kBatch * kWeightBytes));
    }
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
    int first, last;
    int64_t at = 0;
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
  std::vector<Draft> drafts_;
  std::vector<Demand> stagings_, logits_;
  std::map<int, int> logits_of_;     // by record
  std::vector<int> logits_records_;  // of the draw to come
  int logits_channel_ = 0, logits_tiles_ = 0;
  std::vector<Reference> references_;
  std::map<int, int> step_places_;  // of steps that read a value: the reference
  std::vector<int> input_values_;
  std::map<int, Ring> rings_;  // by length
  std::map<std::pair<int, int>, int> slots_;
  std::vector<Slot> slot_table_;
  std::map<std::tuple<int, int, int>, int> edges_;
  std::vector<Edge> edge_table_;
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

// How a program is laid out for the GPU: what the planner's files share. drafts.cpp: which records a column step has;
// results.cpp: what is made of their sums; memory.cpp: where everything lies; image.cpp: what goes to the device.
//
// The device's structs are drafted with numbers in place of offsets: of a value in Target::shared, of a reference where
// a result or a step reads a value, and else of an item in its table. They become offsets when everything has its
// place.
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <span>
#include <vector>

#include "cuda/plan.h"
#include "cuda/plan/timeline.h"

namespace pcf::cuda {

inline int round_up(int n, int to) { return (n + to - 1) / to * to; }
inline int parts(int n, int of) { return (n + of - 1) / of; }
int size_of(const auto& items) { return static_cast<int>(items.size()); }
template <class T>
uint32_t offset(uint32_t table, uint32_t number) {
  return table + number * static_cast<uint32_t>(sizeof(T));
}

// What steps read lies in shared memory if it was computed so few records ago.
constexpr int kNear = 8;

// Shared memory from one window to another, at most a whole turn: window k lies between the barriers of records k - 1
// and k.
struct Demand {
  int64_t bytes = 0;
  int first = 0, last = 0;
  int64_t at = 0;
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
  int lead;  // of what reads it
  bool filling = false;
  int staged = -1;  // where it is among those copied ahead, if it was

  bool side_by_side() const { return chunks.size() == kChunks && chunks[0].tap == chunks[3].tap; }
};

// Channels that each warp has a tile of: those of an instruction, or of a gate's two, in turn.
struct Turn {
  const Instruction* instruction;
  std::vector<Tap> taps;
};
using Member = std::vector<Turn>;

// What some of the warps do in a record: a product, or a draw.
struct Part {
  Record::Product product{};
  std::vector<Member> members;          // if it is wide: the only one, of which a warp has so many tiles at once
  int tiles = 0;                        // each of all members, one after the other if a warp has several
  int first_channel = 0, wide = 1;      // of each member
  std::vector<Multiplied> multiplied;   // in this order
  int first_result = 0, n_results = 0;  // in the planner's
  int first_copied = 0;                 // of its fragments, among those that the record copies
  int biases = -1;                      // the first of them, if all biases lie near
  int first_warp = 0;                   // that has a tile

  int in_batch() const { return kBatch / product.members; }  // fragments
  int early() const { return product.early_batches * in_batch(); }
  std::span<const Multiplied> late() const { return std::span(multiplied).subspan(early()); }
};

// A record: more than one part if they are of one depth, and there are warps enough.
struct Draft {
  int entry = -1;        // of the last part
  bool is_open = false;  // whether parts of other entries may join it
  std::vector<Part> parts;
  Record::Copies copies{};
  Record::Draw draw{};
  Record::Exchange exchange{};
  std::vector<Multiplied> copied;
  const Demand *staging = nullptr, *biases = nullptr, *logits = nullptr;

  // Whether its sums go on in the next record.
  bool goes_on() const { return parts[0].tiles > 0 && parts[0].n_results == 0; }
};

// What a result writes besides its value.
inline std::span<Target> also_written(Result& r) {
  if (r.ending == Ending::lstm) return {&r.lstm.cell, 1};
  if (r.ending == Ending::gate && r.gate.keeps_sums) return r.gate.sums;
  return {};
}

// A value that steps read.
struct Reference {
  Read read;
  int record;
  bool in_shared;
  int lead;
  int staged = -1;  // where it begins among what the record copies ahead, if it does

  bool is_own() const { return staged >= 0 || (in_shared && read.age == 0 && read.dy == 0 && read.dx == 0); }
};

// What belongs to a sweep.
struct SweepDraft {
  SweepPlan plan{};
  int first, end = INT32_MAX;          // records
  bool has_parts = false;              // whether any of them has more than one
  std::deque<Demand> staged, logits;   // what is copied ahead, and what is drawn from
  std::vector<Edge> edges = {Edge{}};  // kEverySite
  std::vector<Ring> slots;
  std::vector<LateBatch> late;                                           // with one tile of sites
  std::map<std::pair<int, std::vector<uint32_t>>, uint32_t> late_lists;  // their firsts

  bool has(int record) const { return record >= first && record < end; }
};

struct ValueMemory {
  int first_written = -1, last_written = -1;           // by record
  std::vector<std::pair<int, int>> shared_reads = {};  // record, age
  int oldest = -1;                                     // the oldest column step that something reads of the ring
  int64_t ring = 0;
  Demand shared = {};
  bool is_input = false;

  bool in_ring() const { return oldest >= 0; }
};

struct Planner {
  const Timeline& timeline;
  const Math math;
  // How it may spend shared memory: fragments that a record multiplies before its barrier, at most; how many records
  // ahead of their use early values are copied; whether each distribution is drawn before the next one's logits are
  // computed; and whether all biases lie there, or else are copied as values are.
  const int most_early, copies_ahead;
  const bool by_distribution, near_biases;
  Layout layout;
  const Program& program = timeline.program;
  const int depth = depth_of(math);
  const int column = layout.tiles * kFragmentBytes;  // bytes of a fragment of all sites
  std::vector<ValueMemory> values = std::vector<ValueMemory>(timeline.values());
  std::deque<SweepDraft> sweeps = {};
  std::vector<Draft> drafts = {};
  int logits_channel = 0, logits_stride = 0;  // of the draw to come
  std::vector<Reference> references = {};
  std::map<int, Ring> rings = {};     // by length
  std::vector<Location> places = {};  // those of references, then others
  std::vector<Result> results = {};
  std::vector<StepPlan> steps = {};
  std::vector<InputPlan> inputs = {};
  std::vector<float> floats = {}, biases = {};
  std::map<std::pair<const void*, int>, int> floats_of = {};  // the program's, by width

  bool in_cluster() const { return layout.cluster > 1; }
  int warps() const { return kWarps * layout.cluster; }

  // Of a record's tiles, those that a block of the cluster computes.
  struct Share {
    int first, count;
  };
  Share share_of(int tiles, int rank) const {
    const int each = parts(tiles, layout.cluster), first = std::min(rank * each, tiles);
    return {first, std::min(each, tiles - first)};
  }
  bool in_teams(const Part& part) const { return part.tiles > 0 && 2 * share_of(part.tiles, 0).count <= kWarps; }

  int padded(int value) const { return round_up(timeline.channels(value), depth); }
  int depth_in(int value) const { return timeline.is_sums(value) ? depth_of(Math::fp32) : depth; }  // of a fragment
  int fragments(int value) const { return padded(value) / depth_in(value); }

  int present() const { return size_of(drafts) - 1; }  // the record that is being drafted
  void writes(int value) {
    ValueMemory& v = values[value];
    if (v.first_written < 0) v.first_written = present();
    v.last_written = present();
  }
  Target written(int value) { return writes(value), Target{static_cast<uint32_t>(value), 0, 0}; }
  void uses_ring(const Read& read) {
    int& oldest = values[read.value].oldest;
    oldest = std::max(oldest, layout.by_rows ? -read.dy : read.age);
  }
  void uses_shared(const Read& read, int record) { values[read.value].shared_reads.push_back({record, read.age}); }

  std::span<Result> results_of(const Part& part) {
    return std::span(results).subspan(part.first_result, part.n_results);
  }
};

// The first instructions of a group, if they are a common result of several members: two products with their
// activations, or two whose sums are read as well, and then what is made of them; or the four of an LSTM.
struct Joint {
  size_t size = 0;  // 0: they are not
  Ending ending = Ending::sum;
  Instructions members = {};  // in the order of Ending
  const Instruction* out = nullptr;
  int rounds_tanh = 0, keeps_sums = 0;
};
Joint joint_of(const Planner&, const Instructions& group, int entry);

// A sweep's records are numbered on from those of the sweeps before it.
void draft_sweep(Planner&, const Sweep&);

// Values of few channels, such as the image, share fragments where they are copied. lead: of what reads them.
void add_fragments(const Planner&, std::vector<Multiplied>& to, const Read&, int tap, int lead, bool copied);

// Shared memory for what is copied ahead of a record.
const Demand* stage(Planner&, int64_t bytes, int record);

// What the present record makes of its last part's sums, and of values that it has made of them: for each instruction
// of the group, for each of its members if it has several.
void draft_results(Planner&, const Instructions& group, const Joint&);

// Gives everything a place in shared memory and in the rings.
void place_all(Planner&);

Plan assembled(Planner&, int most_shared_bytes);

}  // namespace pcf::cuda

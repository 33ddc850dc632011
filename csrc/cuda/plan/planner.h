// How a program is laid out for the GPU: the planner, in five files. drafts.cpp: which records a column step has;
// results.cpp: what is made of their sums; clusters.cpp: what blocks send each other; memory.cpp: where everything
// lies; image.cpp: what goes to the device.
#pragma once

#include <algorithm>
#include <array>
#include <map>
#include <tuple>
#include <vector>

#include "cuda/plan.h"
#include "cuda/plan/timeline.h"
#include "wavefront.h"

namespace pcf::cuda {
inline int round_up(int n, int to) { return (n + to - 1) / to * to; }
inline int parts(int n, int of) { return (n + of - 1) / of; }
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

// Reads nearer than this are of shared memory, as other threads may still be writing what would be copied (in a
// cluster, one record later than else; but the order of a sum must not depend on that). And a column step has as many
// records, since the last ones copy for the next step by what the first has found out.
constexpr int kVisible = 5;
// What steps read lies in shared memory if it was computed so few records ago.
constexpr int kNear = 8;

// Tables of so many floats may lie in shared memory.
constexpr size_t kNearFloats = 1024;

// How the planner may spend shared memory.
struct Thrift {
  int early;             // fragments that a record multiplies before its barrier, at most
  bool by_distribution;  // whether each distribution is drawn before the next one's logits are computed
  int copies_ahead;      // how many records ahead of their use early values are copied
  bool near_biases;      // whether all biases lie there, or else are copied as values are
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
struct Member {
  std::vector<const Instruction*> instructions;
  int first_channel;                  // of the first tile
  std::vector<const float*> weights;  // by tap, of one instruction after the other
};

// What some of the warps do in a record: a product, or a draw.
struct Part {
  Record::Product product{};
  std::vector<Member> members;
  int tiles = 0;                    // each of all members, one after the other if a warp has several
  int first_channel = 0, wide = 1;  // wide: members are so many tiles of one instruction
  std::vector<Multiplied> early, late;
  int first_copied = 0;  // of its early fragments, among those that the record copies
  int biases = -1;       // the number of what is staged; or the first of them, if all lie near
  int first_warp = 0;    // that has a tile
};

// A record: more than one part if they are of one level, and there are warps enough.
struct Draft {
  int position = -1;  // of the last entry that is a part, or -1
  std::vector<Part> parts;
  Record::Copies copies{};
  Record::Draw draw{};
  Record::Exchange exchange{};
  std::vector<Multiplied> copied;
  std::vector<int> written_back;  // values of the record before it
  int staging = -1;               // the number of what is staged
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
  int64_t value_bytes = 0;                                   // that they copy
  bool has_parts = false;                                    // whether any of them has more than one
  std::map<std::tuple<int, int, int>, uint32_t> edges = {};  // by lead, dy, dx
  std::vector<Edge> edge_table = {};
  std::map<std::tuple<int, int, int, int, int>, uint32_t> slots = {};
  std::vector<Slot> slot_table = {};
  std::vector<std::array<Place, kBatch>> late = {};  // with one tile of sites, of batches
  std::map<std::pair<int, std::vector<std::tuple<uint32_t, int, uint32_t>>>, uint32_t> late_lists = {};  // their firsts
  bool has(int record) const { return record >= first && record < end; }
};

class Planner {
 public:
  Planner(const Program& program, Math math, int images, int cluster, const Limits& limits, Thrift thrift)
      : program_(program), math_(math), depth_(depth_of(math)), limits_(limits), thrift_(thrift),
        layout_(geometry(program, math, images, cluster)), column_(layout_.tiles * kFragmentBytes),
        timeline_(program, layout_.lag), values_(timeline_.values()) {}

  Plan plan() {
    for (const Sweep& sweep : timeline_.sweeps) draft_sweep(sweep);
    if (in_cluster()) draft_exchanges();
    place_in_rings();
    for (SweepDraft& sweep : sweeps_) place_in_shared(sweep);
    resolve();
    return assembled();
  }

 private:
  static Layout geometry(const Program& program, Math math, int images, int cluster);

  // Where records have few tiles, teams of warps take turns: one multiplies what its next record knows while another is
  // at work. What is copied is left to the warps of no team, or to the other team.
  void form_teams(SweepDraft& sweep);

  // How many records a sweep from `first` on must have, so that what it copies of earlier column steps was written
  // kVisible records before: those of a level may come in any order.
  size_t records_between(int first) const;
  bool in_teams(const Part& part) const { return part.tiles > 0 && 2 * share_of(part.tiles, 0).count <= kWarps; }
  // Whether a record's sums go on in the next one.
  static bool goes_on(const Draft& d) {
    return !d.parts.empty() && d.parts[0].tiles > 0 && d.parts[0].product.n_results == 0;
  }
  // 1, 2, 4 or 8 warps for so many tiles.
  int team_of(int tiles) const {
    int size = 1;
    while (size < std::min(share_of(tiles, 0).count, kWarps)) size *= 2;
    return size;
  }

  // -- clusters

  bool in_cluster() const { return layout_.cluster > 1; }

  int warps() const { return kWarps * layout_.cluster; }

  // Of a record's tiles, those that a block of the cluster computes.
  struct Share {
    int first, count;
  };
  Share share_of(int tiles, int rank) const;

  // Whether blocks send a value to each other, and each writes it to its own ring; or else it is written there at once.
  bool is_sent(int value) const { return in_cluster() && !values_[value].is_input && !timeline_.is_sums(value); }

  // What the record after a product writes to this block's rings, once all of it has come.
  void draft_exchanges();
  int64_t sent_bytes(const Part& part, int tiles) const;

  // -- records

  // A sweep's records are numbered on from those of the sweeps before it.
  void draft_sweep(const Sweep& sweep);
  int padded(int value) const { return round_up(timeline_.channels(value), depth_); }
  int depth(int value) const { return timeline_.is_sums(value) ? depth_of(Math::fp32) : depth_; }  // of a fragment
  int fragments(int value) const { return padded(value) / depth(value); }
  static bool is_product(const Instruction* i) { return i->kind == InstructionKind::convolution; }

  void draft(int position);
  bool by_distribution(int draw) const;

  // Tiles first ... last - 1 of a group's channels. Where a layer is summed in pieces, a record computes no more than a
  // tile for each warp, whose sums go on in the next record.
  void draft_tiles(const std::vector<const Instruction*>& group, int position, int first, int last);
  int draw_of(int position) const { return timeline_.entries[position].draw; }

  // The present record, if a product of so many tiles can be a part of it, or else a new one.
  Draft& with_room_for(int tiles, int position);
  bool can_join(const Draft& d, int tiles, int position) const;

  // Values of few channels, such as the image, share fragments where they are copied. lead: of what reads them.
  void add_fragments(std::vector<Multiplied>& to, const Read& read, int tap, int lead, bool copied) const;
  void draft_memory(int number);

  // Shared memory for what is copied ahead of a record.
  int stage(int64_t bytes, int record);

  // Splits a product into batches. Known fragments that don't fill turns of the stream are multiplied after the
  // barrier, and before the others: the order of a sum must not depend on how it is split, or images would depend on
  // the batch.
  void batch(Draft& d, Part& part, std::vector<Multiplied> early, std::vector<Multiplied> late) const;

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
                     Part& part, int number);
  Result& add_result(int value, const Part& part, int member);

  // Of those channels that the record computes.
  static void add_biases(std::vector<float>& biases, const std::vector<const Instruction*>& in_turn, const Part& part);

  // Sums that a product goes on with instead of a bias. -> the reference to them
  int sums_at(int sums, int position, Draft& d, int number);
  void goes_on_with(Result& r, int reference);
  void stage_biases(const std::vector<float>& biases, Draft& d, Part& part, int number);
  Joint joint_of(const std::vector<const Instruction*>& group, int position) const;

  // Whether an instruction's steps are these, where a multiplication is by the value of `factor`.
  static bool has_steps(const Instruction* i, const std::vector<StepKind>& kinds, const Instruction* factor = nullptr);
  bool is_read_once(const Instruction* i) const { return timeline_.readers(i->out) == 1; }

  // Two products with their activations; or two whose sums are read as well, and then what is made of them.
  Joint gate_of(const std::vector<const Instruction*>& group) const;
  Joint lstm_of(const std::vector<const Instruction*>& group, int position) const;

  // What an LSTM's forget gate multiplies.
  Read cell_before(const Instruction& cell) const;
  void draft_joint(const Joint& joint, int position, Draft& d, const Part& part, int number,
                   std::vector<float>& biases);

  // What the last result writes besides.
  void also_writes(int value, int number, Target& (*target)(Result&));
  void draft_steps(const Instruction& i, int position, Result& r, Draft& d, int number);

  // A value that steps read: where it was written in this column step, or where it was copied ahead, or else anywhere.
  int operand_at(const Read& read, int position, int lead, Draft& d, int number);
  static bool is_own(const Reference& r);
  bool is_own(int reference) const { return is_own(references_[reference]); }

  // Common results need not go through the steps one by one. What a result reads is a reference, until all has its
  // place.
  bool adds_own(const Instruction& i, size_t step, int first) const;
  bool is_sum(const Instruction& i, int starts, int first, Result& r) const;
  bool is_activated(const Instruction& i, int starts, int first, Result& r) const;
  StepPlan& add_step(const Instruction& i, const Step& s);
  void draft_draw(int draw, int first, int count);

  // What a draw gives an instruction that reads levels.
  void draft_input(const Instruction& i, const Record::Draw& r, int number);

  // What each level of each image channel becomes: [count, levels, width].
  std::vector<float> tables_of(const Instruction& i, const InputPlan& input) const;

  // Floats of the program, filled up with zeros. -> where they lie
  int floats(const void* from, int count, int width);

  // -- reads

  int distance(int position, const Read& read) const { return timeline_.distance(position, read, kVisible); }

  // A value's shared memory holds what was computed last.
  bool near(int position, const Read& read) const;
  void uses_ring(const Read& read);
  void uses_shared(const Read& read, int record) { values_[read.value].shared_reads.push_back({record, read.age}); }
  void writes(int value, int record);
  uint32_t slot(SweepDraft& sweep, const Read& read);
  uint32_t edge(SweepDraft& sweep, const Read& read, int lead);

  // -- memory

  void place_in_rings();
  void place_in_shared(const SweepDraft& sweep);
  uint32_t shared_of(int value) const;
  uint32_t ring_of(int value) const;
  Place place(SweepDraft& sweep, const Chunk& chunk, bool in_shared, int lead);

  // Everything has its place: writes down where.
  void resolve();
  void place_copies(SweepDraft& sweep, Draft& d);
  void place_exchange(SweepDraft& sweep, Draft& d);
  uint32_t staged_at(int number) const { return static_cast<uint32_t>(stagings_[number].at); }

  void resolve_late(SweepDraft& sweep, Part& part);
  void resolve_result(int number, const Draft& d, const Part& part);
  Target target(int value);
  SweepDraft& sweep_of(int record);

  // -- what goes to the device

  Plan assembled();
  // A list for all warps, or one for each of them if records have parts.
  std::vector<Record> records_of(const SweepDraft& sweep, SweepPlan& plan, int rank) const;
  void add_records(std::vector<Record>& records, const SweepDraft& sweep, SweepPlan& plan, int rank, int warp) const;
  bool has_tile(const Part& part, int rank, int warp) const;
  void leave_copying_to(Record::Copies& copies, const SweepDraft& sweep, const Draft& d, int rank, int warp) const;

  // In which column step, or column, each sweep begins, and how many it has.
  void set_steps();
  std::vector<ConditionPlan> conditions() const;

  // Each warp's weights in the order in which it multiplies by them.
  std::vector<Weights> write_weights(Bytes& bytes, const SweepDraft& sweep, int rank);
  void pack(const Multiplied& m, const Member& member, int channel, char* fragment) const;

  struct ValueMemory {
    int first_written = -1, last_written = -1;           // by record
    std::vector<std::pair<int, int>> shared_reads = {};  // record, age
    int oldest = -1;                                     // the oldest column step that something reads of the ring
    int64_t ring = 0, shared = 0;
    bool is_input = false;
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
  std::map<int, int> logits_of_;                     // by record
  std::vector<std::pair<int, int>> logits_results_;  // of the draw to come: record, result
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
  std::vector<float> floats_, biases_;
  std::map<int, int> near_biases_;  // of results: the first of the record's biases
  std::map<std::pair<const void*, int>, int> floats_of_;
  int64_t data_bytes_ = kBarrierBytes, weight_bytes_ = 0;
};

}  // namespace pcf::cuda

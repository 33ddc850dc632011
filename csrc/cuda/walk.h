// A block's walk over its images (plan.h).
#pragma once

#include <type_traits>

#include "cuda/draw.h"
#include "cuda/fragments.h"
#include "cuda/steps.h"
#include "cuda/weight_stream.h"

namespace pcf::cuda {

// What the kernel takes by value: a batch of images on the device. Arrays are dense; sub-pixels are [images, C, H, W].
struct KernelParams {
  Layout layout;
  const char* constants;
  char* workspace;  // [blocks][layout.workspace_bytes]
  int images;
  int32_t* levels;       // known ones in, all out
  const uint8_t* known;  // null: none
  const double* noise;
  const float* conditions;  // one operand after the other
  DrawOptions options;
  float* logits;              // [..., levels]; null: not wanted
  double* log_probability;    // of the levels drawn, at temperature 1; null: not wanted
  unsigned long long* error;  // error_code() of the first sub-pixel with logits that are not finite
};

// Grows in the order of drawing.
__device__ inline unsigned long long error_code(int site, int image, int channel) {
  return static_cast<unsigned long long>(site) << 40 | static_cast<unsigned long long>(image) << 16 | channel;
}

// In place of one: a thread has waited in vain. Its channel is none.
constexpr unsigned long long kWaitedInVain = 0xffff;
constexpr uint32_t kMostWait = 4;  // of time_passed(): some ten seconds, where others take microseconds

// kBlocks: that share their images, 1 or kCluster.
template <Math kMath, int kTiles, int kBlocks>
class Walk {
 public:
  __device__ explicit Walk(const KernelParams& params)
      : params_(params), layout_(params.layout), warp_(thread_index() / 32), lane_(thread_index() % 32),
        rank_(kShares ? cluster_rank() : 0) {}

  __device__ __forceinline__ void run() {
    const char* const tables = params_.constants + rank_ * layout_.table_bytes;
    for (uint32_t at = thread() * 16; at < layout_.table_bytes; at += kThreads * 16)
      in_shared<uint4>(layout_.tables + at) = *reinterpret_cast<const uint4*>(tables + at);
    if (kArrives && thread() == 0)
      for (int k = 0; k < 2; k++) begin_meeting(kMeetings + k * 8, kWarps * kBlocks);
    if (thread() < kSiteBytes / 16) in_shared<uint4>(layout_.zeros + thread() * 16) = uint4{0, 0, 0, 0};
    if constexpr (kArrives) {
      sync_all();
      arrive_with(0);
    }
    uint32_t view = layout_.first_view;
    const int n = layout_.n_sweeps;
    for (int done = layout_.first_row * n; done < layout_.end_row * n; done++)
      run_sweep(layout_.sweeps[done % n], done / n, view);
    if (kShares) sync_cluster();  // others may still arrive here
  }

 private:
  static constexpr int kSites = kTiles * kTileSites;
  static constexpr bool kShares = kBlocks > 1;
  // Whether a warp arrives at a barrier before it waits there, and multiplies what it knows in between.
  static constexpr bool kArrives = kTiles == 1;
  static constexpr int kAhead = batches_ahead(kMath, kTiles), kMost = most_members(kMath, kTiles);
  // What is read early, where there are registers to spare, and else when it is needed.
  static constexpr bool kFewTiles = kDepth<kMath> == 32 && kTiles <= 4;
  // Whether rows are sampled one at a time, and several columns summed at once.
  __device__ bool by_rows() const { return kTiles <= kMostRowTiles && layout_.by_rows; }
  template <class T>
  using Held = std::conditional_t<kFewTiles, const T, const T&>;
  static constexpr uint32_t kColumnBytes = kTiles * kFragmentBytes;

  __device__ const float* constants(int index) const {
    return reinterpret_cast<const float*>(params_.constants + layout_.floats) + index;
  }
  __device__ float constant(int index) const { return arrived(*constants(index)); }
  // What a lane multiplies lies there, from the beginning of a fragment on.
  __device__ uint32_t lane_offset() const { return group() * kSiteBytes; }
  __device__ int thread() const { return warp_ * 32 + lane_; }
  __device__ int group() const { return lane_ / 4; }
  __device__ int member() const { return lane_ % 4; }

  // -- the walk

  // view: one that nobody reads, and then again.
  __device__ __forceinline__ void run_sweep(const SweepPlan& sweep, int row, uint32_t& view) {
    place_sites(view, sweep, row);
    sync_all();
    place_in_rings(sweep, row);
    look(sweep, view, view, 0);
    sync_block();
    list_late(sweep, view);
    const uint32_t list = warp_ * sweep.list_bytes;
    for (const uint32_t at : sweep.first_copies)
      if (at != kNowhere) Copying(*this, in_shared<const Record>(at + list).copies).start(*this, view);
    const auto weights = [&]() -> const Weights& {
      return in_shared<const Weights>(sweep.weights + warp_ * sizeof(Weights));
    };
    weights_.begin(params_.constants + weights().at, lane_);
    weight_turn_ = 0, turn_is_one_ = false;
    wait_copies<kArrives ? 0 : 1>();
    sync_block();
    uint32_t at = sweep.records + list;
    for (int steps = sweep.steps; steps > 0;) {
      Then then;
      do {
        then = run_record(in_shared<const Record>(at), view);
        at += sizeof(Record);
      } while (then == Then::next);
      if (then == Then::look) {
        look(sweep, view, next(view), 1);
      } else if (then == Then::list_late) {
        list_late(sweep, next(view));
      } else {
        weights_.begin_again(weights().bytes);
        view = next(view), at = sweep.records + list, steps--;
      }
    }
    wait_copies<0>();
  }

  // -- sites

  __device__ unsigned first_block() const { return block_index() - rank_; }  // of the cluster

  // The view of the next column step.
  __device__ uint32_t next(uint32_t view) const { return layout_.both_views - view; }
  __device__ Site& site(uint32_t view, int index) const { return in_shared<Site>(view + index * sizeof(Site)); }

  // Where the sites are in a sweep's first column step.
  __device__ void place_sites(uint32_t view, const SweepPlan& sweep, int first_row) {
    const bool one_column = kTiles > 1 || sweep.at_once == 1;
    if (kTiles == 1) {
      const int ahead = one_column ? 0 : group() / layout_.images;
      copies_at_ = (group() - ahead * layout_.images) * kSiteBytes, copies_shift_ = one_column ? -kSiteBytes : ahead;
    }
    if (thread() >= kSites) return;
    const int part = thread() / layout_.images, row = one_column ? part : 0, ahead = one_column ? 0 : part;
    const int behind = sweep.first_step - layout_.lag * row;
    const int turns = behind >= 0 ? behind / layout_.period : -((-behind + layout_.period - 1) / layout_.period);
    const int batch = block_index() / kBlocks;
    const int image = batch * layout_.images + thread() % layout_.images;
    const bool used = thread() < layout_.sites * sweep.at_once && image < params_.images;
    site(view, thread()) = Site{image, used ? first_row + row + layout_.rows * turns : kNoRow,
                                behind - layout_.period * turns + ahead, ahead};
  }

  // And where the ring of this thread's slot stands.
  __device__ void place_in_rings(const SweepPlan& sweep, int row) {
    if (thread() >= sweep.slots) return;
    Slot& slot = in_shared<Slot>(sweep.slot_table + thread() * sizeof(Slot));
    slot.stands = by_rows() ? (row + slot.dy + slot.length) % slot.length : 0;
  }

  // So many columns to the right, which may be in a later row.
  __device__ Site advanced(Site s, int columns) const {
    s.column += columns;
    while (s.column >= layout_.period) s.column -= layout_.period, s.row += layout_.rows;
    return s;
  }
  __device__ bool in_grid(int row, int column) const {
    return row >= 0 && row < layout_.height && column >= 0 && column < layout_.width;
  }

  // Makes the view of the column step that comes `steps` steps after that of `now`.
  __device__ void look(const SweepPlan& sweep, uint32_t now, uint32_t then, int steps) {
    const int columns = steps * sweep.columns;
    if (steps > 0 && thread() < kSites) site(then, thread()) = advanced(site(now, thread()), columns);
    if (thread() < sweep.slots) {
      Slot& slot = in_shared<Slot>(sweep.slot_table + thread() * sizeof(Slot));
      int index;
      if (by_rows()) {
        index = slot.stands * layout_.width + site(now, 0).column + columns + slot.dx;
      } else {
        const int stands = slot.stands + steps == slot.length ? 0 : slot.stands + steps;
        index = stands - slot.age;
        if (index < 0) index += slot.length;
        slot.stands = stands;
      }
      const unsigned block = kShares && slot.common ? first_block() : block_index();
      const int64_t at = block * layout_.workspace_bytes + slot.ring + index * slot.bytes;
      in_shared<uint64_t>(then + layout_.view_of_slots + thread() * 8) =
          reinterpret_cast<uint64_t>(params_.workspace + at);
    }
    // A warp looks after as many edges at once as it has lanes for, and first the last one, since the first has slots.
    constexpr int kEdges = kSites < 32 && 32 % kSites == 0 ? 32 / kSites : 1;
    const int height = layout_.height, width = layout_.width, period = layout_.period, rows = layout_.rows;
    const int edges = sweep.edges;
    const uint32_t table = sweep.edge_table;
#pragma unroll 1
    for (int begin = (kWarps - 1 - warp_) * kEdges; begin < edges; begin += kWarps * kEdges) {
      const int e = begin + lane_ / kSites % kEdges;
      const Edge edge = in_shared<const Edge>(table + min(e, edges - 1) * sizeof(Edge));
#pragma unroll
      for (int first = 0; first < kSites; first += 32) {
        const int index = kEdges > 1 ? lane_ % kSites : min(first + lane_, kSites - 1);
        const Site s = site(now, index);
        int row = s.row, column = s.column + edge.lead + columns;
        if (column >= period) column -= period, row += rows;
        while (column >= period) column -= period, row += rows;
        const auto in_grid = [&](int row, int column) {
          return static_cast<unsigned>(row) < static_cast<unsigned>(height) &&
                 static_cast<unsigned>(column) < static_cast<unsigned>(width);
        };
        const bool inside = in_grid(row, column) && in_grid(row + edge.dy, column + edge.dx);
        const uint32_t sites =
            ballot(inside || (e == int{kEverySite} && !by_rows())) >> (kEdges > 1 ? lane_ / kSites * kSites : 0);
        const bool is_first = kEdges > 1 ? index == 0 : lane_ == 0;
        if (is_first && e < edges) in_shared<uint32_t>(then + layout_.view_of_edges + e * 8 + first / 8) = sites;
      }
    }
  }

  // And where the values of late batches lie in it, by site, once the edges are there.
  __device__ void list_late(const SweepPlan& sweep, uint32_t then) {
    if constexpr (kTiles > 1) return;
    constexpr int kAtOnce = 4;
    const int site = lane_ / kBatch, last = sweep.late_batches - 1;
#pragma unroll 1
    for (int first = warp_; first <= last; first += kAtOnce * kWarps) {
      uint32_t words[kAtOnce];
      bool there[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; n++) {
        const int k = first + n * kWarps <= last ? first + n * kWarps : first;  // that one again
        words[n] = in_shared<const uint32_t>(sweep.late_table + (k * kBatch + lane_ % kBatch) * 4);
      }
#pragma unroll
      for (int n = 0; n < kAtOnce; n++)
        there[n] = is_at(then, (words[n] & LateBatch::kEdge) >> LateBatch::kEdgeBits, site);
#pragma unroll
      for (int n = 0; n < kAtOnce; n++) {
        const int k = first + n * kWarps <= last ? first + n * kWarps : first;
        const uint32_t at = (words[n] & LateBatch::kAt) + shifted(site, words[n] & LateBatch::kShift) * kSiteBytes;
        const uint32_t to = then + layout_.view_of_late + k * kLateBytes + lane_ * 4;
        in_shared<uint32_t>(to) = there[n] ? at : layout_.zeros;
      }
    }
  }
  // edge, slot: where a view has them.
  __device__ bool is_at(uint32_t view, uint32_t edge, int site) const {
    return in_shared<const uint32_t>(view + edge + site / 32 * 4) >> site % 32 & 1;
  }
  __device__ char* slot_of(uint32_t view, uint32_t slot) const {
    return in_global_memory(in_shared<const uint64_t>(view + slot));
  }
  // If there is one.
  __device__ char* ring_of(uint32_t view, const Target& to) const { return slot_of(view, to.slot) + to.ring; }
  __device__ int shifted(int site, int shift) const {
    site -= shift;
    return site < 0 ? site + layout_.sites : site;
  }

  // -- products

  // Copies what a record knows of earlier column steps, and its biases, a fragment by one warp after the other. Where a
  // warp's first two come from is read before other work, which hides the time that it takes.
  class Copying {
   public:
    __device__ Copying(const Walk& walk, const Record::Copies& copies)
        : copies_(copies), first_(walk.warp_ - copies.first_warp) {
      const int last = copies_.count - 1;
#pragma unroll
      for (int n = 0; n < kEarly; n++) places_[n] = place(walk, max(min(first_ + n * copies.warps, last), 0));
    }

    __device__ bool is_mine() const {
      return kArrives ? static_cast<unsigned>(first_) < static_cast<unsigned>(copies_.warps) : first_ >= 0;
    }

    __device__ __forceinline__ void start(const Walk& walk, uint32_t view) const {
      std::conditional_t<kEarly != 0, const Record::Copies, const Record::Copies&> copies = copies_;
      const auto copy = [&](const Source& from, int fragment, bool wanted) {
        const uint32_t to = copies.staged + fragment * kColumnBytes + walk.lane_ * 16;
#pragma unroll
        for (int tile = 0; tile < kTiles; tile++)
          copy_async(shared_memory() + to + tile * kFragmentBytes, from.at[tile], from.there[tile], wanted);
      };
      if (is_mine()) {
        if constexpr (kEarly > 0) {  // two at a time, while it reads where the next two come from
          Place now[2] = {places_[0], places_[1]};
          for (int f = first_; f < copies.count; f += 2 * copies.warps) {
            const Source first(walk, now[0], view), second(walk, now[1], view);
            for (int n = 0; n < 2; n++) now[n] = place(walk, min(f + (n + 2) * copies.warps, copies.count - 1));
            copy(first, f, true), copy(second, f + copies.warps, f + copies.warps < copies.count);
          }
        } else {
          for (int f = first_; f < copies.count; f += copies.warps) copy(Source(walk, place(walk, f), view), f, true);
        }
        for (int at = (first_ * 32 + walk.lane_) * 16; at < copies.bias_bytes; at += copies.warps * 32 * 16)
          copy_async(shared_memory() + copies.bias + at, walk.constants(copies.floats) + at / 4, true, true);
        if (kArrives) commit_copies(false);
      }
      if (!kArrives) commit_copies(copies.for_next);
    }

   private:
    static constexpr int kEarly = kFewTiles && kSparesRegisters ? 2 : 0;

    // Of the chunk that a lane copies.
    __device__ __forceinline__ Place place(const Walk& walk, int fragment) const {
      const int index = copies_.chunked ? fragment * kChunks + walk.member() : fragment;
      Place p = in_shared<const Place>(copies_.places + index * sizeof(Place));
      if (!copies_.chunked) p.at += walk.member() * kChunkBytes;
      return p;
    }

    // Where a lane copies from, for each tile.
    struct Source {
      const char* at[kTiles];
      bool there[kTiles];

      __device__ __forceinline__ Source(const Walk& walk, const Place& p, uint32_t view) {
        const char* const from = walk.slot_of(view, p.slot) + p.at;
#pragma unroll
        for (int tile = 0; tile < kTiles; tile++) {
          const int site = tile * kTileSites + walk.group();
          int offset = kTiles == 1 ? walk.copies_at_ + walk.copies_shift_ * p.shift : (site - p.shift) * kSiteBytes;
          if (offset < 0) offset += walk.layout_.sites * kSiteBytes;
          at[tile] = from + offset, there[tile] = walk.is_at(view, p.edge, site);
        }
      }
    };

    const Record::Copies& copies_;
    const int first_;
    Place places_[2];
  };

  // Sums of a warp's tiles of sites, for one member after the other. The order in which a sum is made up must not
  // depend on the number of tiles or members: images would depend on the batch.
  using Sums = float[kMost * kTiles][2][4];

  template <int kFirst, int kEnd>
  __device__ __forceinline__ void clear_sums() {
#pragma unroll
    for (int s = kFirst * 8; s < kEnd * 8; s++) sums_[s / 8][s / 4 % 2][s % 4] = 0;
  }

  // A batch of weights: for each of its fragments of values those of all members. at(f, tile): where a lane's site of
  // the f-th lies.
  template <int kMembers, class At>
  __device__ __forceinline__ void multiply(const uint4 (&weights)[kBatch][2], const At& at) {
#pragma unroll
    for (int f = 0; f < kBatch / kMembers; f++)
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++) {
        const auto values = Fragment<kMath>::values(at(f, tile), lane_);
#pragma unroll
        for (int m = 0; m < kMembers; m++)
          Fragment<kMath>::multiply(sums_[m * kTiles + tile], weights[f * kMembers + m], values);
      }
  }

  // The next batch, of fragments that follow each other.
  template <int kMembers, int kTurn>
  __device__ __forceinline__ void multiply_row(uint32_t& at) {
    weights_.template next<kTurn>([&](const auto& weights) {
      multiply<kMembers>(weights, [&](int f, int tile) { return at + f * kColumnBytes + tile * kFragmentBytes; });
    });
    at += kBatch / kMembers * kColumnBytes;
  }

  // Where a lane's site of each fragment of a late batch lies, if a block has one tile of them.
  struct LateAddresses {
    uint32_t at[kBatch];

    __device__ __forceinline__ LateAddresses(const Walk& walk, uint32_t list) {
      if constexpr (kTiles > 1) return;
      const uint4 found = in_shared<const uint4>(list + walk.group() * sizeof(uint4));
      at[0] = found.x, at[1] = found.y, at[2] = found.z, at[3] = found.w;
    }
  };

  // The next batch, of fragments that lie anywhere.
  template <int kMembers, int kTurn>
  __device__ __forceinline__ void multiply_places(uint32_t& next, uint32_t view) {
    weights_.template next<kTurn>([&](const auto& weights) {
      multiply<kMembers>(weights, [&](int f, int tile) {
        const Place p = in_shared<const Place>(next + f * sizeof(Place));
        const int site = tile * kTileSites + group();
        return is_at(view, p.edge, site) ? p.at + shifted(site, p.shift) * kSiteBytes : layout_.zeros;
      });
    });
    next += kBatch / kMembers * sizeof(Place);
  }

  // Calls one(turn) for `count` batches, with turns from kFirst on that the code knows.
  template <int kFirst, class One>
  __device__ __forceinline__ void in_turn(int count, const One& one) {
    static_assert(kAhead <= 3);
    while (count > 0) {
      one(std::integral_constant<int, kFirst>());
      if (count == 1) return;
      one(std::integral_constant<int, kFirst + 1>());
      if (kAhead == 3) {
        if (count == 2) return;
        one(std::integral_constant<int, kFirst + 2>());
      }
      count -= kAhead;
    }
  }

  // Before the barrier.
  template <int kMembers, int kTurn>
  __device__ __forceinline__ void multiply_known(const Record::Product& p) {
    uint32_t at = p.staged + lane_offset();
    in_turn<kTurn>(p.known_batches, [&](auto turn_of) { multiply_row<kMembers, decltype(turn_of)::value>(at); });
  }

  // Behind it.
  template <int kMembers, int kTurn>
  __device__ __forceinline__ void multiply_late(const Record::Product& p, const LateAddresses& first, uint32_t view) {
    if constexpr (kTiles == 1) {
      uint32_t list = view + p.late;
      const auto multiply_next = [&](const LateAddresses& late, auto turn_of) {
        weights_.template next<decltype(turn_of)::value>(
            [&](const auto& weights) { multiply<kMembers>(weights, [&](int f, int) { return late.at[f]; }); });
      };
      if (p.late_batches == 0) return;
      multiply_next(first, std::integral_constant<int, kTurn>());
      in_turn<kTurn + 1>(p.late_batches - 1,
                         [&](auto turn_of) { multiply_next(LateAddresses(*this, list += kLateBytes), turn_of); });
    } else {
      uint32_t at = p.staged + p.known_batches * (kBatch / kMembers * kColumnBytes) + lane_offset();
      uint32_t next = p.late;
      int known = p.late_known;
      in_turn<kTurn>(p.late_batches, [&](auto turn_of) {
        if (known == 0 && !p.at_places) at = p.late + lane_offset();
        if (known-- > 0 || !p.at_places)
          multiply_row<kMembers, decltype(turn_of)::value>(at);
        else
          multiply_places<kMembers, decltype(turn_of)::value>(next, view);
      });
    }
  }

  __device__ __forceinline__ void turn_by(int batches) {
    weight_turn_ += batches;
    if (weight_turn_ >= kAhead) weight_turn_ -= kAhead;
    turn_is_one_ = weight_turn_ == 1;
  }

  // Calls part(members, turn): how many there are, and the turn of the stream that comes next.
  template <class Part>
  __device__ __forceinline__ void with_constants(int members, const Part& part) {
    const auto with_turn = [&](auto members) {
      if (weight_turn_ == 0)
        part(members, std::integral_constant<int, 0>());
      else if (kAhead == 2 || turn_is_one_)
        part(members, std::integral_constant<int, 1>());
      else
        part(members, std::integral_constant<int, 2>());
    };
    if (kMost == 1 || members == 1)
      with_turn(std::integral_constant<int, 1>());
    else if (kMost == 2 || members == 2)
      with_turn(std::integral_constant<int, kMost == 1 ? 1 : 2>());
    else
      with_turn(std::integral_constant<int, kMost>());
  }

  // Behind it, what was copied for the next record is there, and what all threads have made.
  __device__ __forceinline__ void meet() {
    if constexpr (kArrives) {
      for (const uint32_t began = time_passed(); !has_met(meeting(), meetings_ / 2 % 2);)
        if (time_passed() - began > kMostWait) give_up();
      meetings_++;
    } else {
      wait_copies<1>();
      sync_block();
    }
  }

  // What others were to make will never be there.
  __device__ void give_up() {
    atomic_min(params_.error, kWaitedInVain);
    wait_copies<0>();
    if (kShares) sync_cluster();  // others may still write to this block
    end_thread();
  }

  __device__ void sync_all() { kShares ? sync_cluster() : sync_block(); }

  // -- a barrier at which a warp arrives when it has done its part of a record, and for which it waits when it has
  // multiplied what the next one knows

  __device__ uint32_t meeting() const { return kMeetings + meetings_ % 2 * 8; }

  __device__ __forceinline__ void arrive_with(int bytes) {
    wait_copies<0>();
    sync_warp();
    if (kShares && thread() == 0) expect_bytes(meeting(), bytes);
    if (lane_ == 0) arrive_here(meeting());
    if (kShares && lane_ > 0 && lane_ < kBlocks) arrive(meeting(), rank_ ^ lane_);
  }

  template <class T>
  __device__ __forceinline__ void send_to_all(uint32_t at, T value) {
#pragma unroll
    for (int other = 1; other < kBlocks; other++) send(rank_ ^ other, at, value, meeting());
  }

  // Writes to the rings what has come for them: two fragments at a time. Where the first two lie
  // is found out before all threads meet.
  class WritingBack {
   public:
    __device__ __forceinline__ WritingBack(const Walk& walk, const Record& r, uint32_t view)
        : record_(r), first_{Fragment(walk, r, 0, view), Fragment(walk, r, 1, view)} {}

    __device__ __forceinline__ void finish(const Walk& walk, uint32_t view) const {
      const int left = record_.exchange.count - (walk.warp_ - record_.copies.first_warp), warps = record_.copies.warps;
      if (left > 0) write(walk, first_[0], first_[1], warps < left);
      for (int n = 2; n * warps < left; n += 2)
        write(walk, Fragment(walk, record_, n, view), Fragment(walk, record_, n + 1, view), (n + 1) * warps < left);
    }

   private:
    struct Fragment {
      uint32_t from;
      char* to;

      __device__ __forceinline__ Fragment(const Walk& walk, const Record& r, int n, uint32_t view) {
        const int f = walk.warp_ - r.copies.first_warp + n * r.copies.warps;
        const uint32_t place = r.exchange.places + max(min(f, r.exchange.count - 1), 0) * sizeof(Place);
        const Place p = in_shared<const Place>(place);
        from = p.at, to = walk.slot_of(view, p.slot) + p.shift;
      }
    };

    static __device__ __forceinline__ void write(const Walk& walk, const Fragment& a, const Fragment& b, bool both) {
      const uint32_t lane = walk.lane_ * 16;
      const uint4 x = in_shared<const uint4>(a.from + lane), y = in_shared<const uint4>(b.from + lane);
      *reinterpret_cast<uint4*>(a.to + lane) = x;
      if (both) *reinterpret_cast<uint4*>(b.to + lane) = y;
    }

    const Record& record_;
    const Fragment first_[2];
  };

  __device__ __forceinline__ Then run_record(const Record& r, uint32_t now) {
    Held<Record::Product> product = r.product;
    const int bytes = kShares ? r.exchange.bytes : 0;
    if (product.warps >> warp_ & 1) {
      if constexpr (kShares) {  // warps with a tile leave copying to others, if there are any
        const bool copies = product.barriers & kAllCopy;
        compute(
            product,
            [&] {
              if (copies) Copying(*this, r.copies).start(*this, of_copies(r, now));
            },
            now);
        if (copies) WritingBack(*this, r, now).finish(*this, now);
      } else {
        const Copying copying(*this, r.copies);
        compute(product, [&] { copying.start(*this, of_copies(r, now)); }, now);
      }
      if (kArrives && product.barriers & kAfter) arrive_with(bytes);
      if (product.n_results) clear_sums<0, kTiles>();  // for the next product
    } else {
      const Copying copying(*this, r.copies);
      const auto copy_and_meet = [&] {
        if (product.barriers & kBefore) {
          copying.start(*this, of_copies(r, now));
          meet();
        }
      };
      const auto meet_and_draw = [&] {
        const auto first = [&] { return Pixel(*this, r.draw, warp_, now); };
        if constexpr (kFewTiles && kSparesRegisters) {
          if (product.draws) {
            const Pixel early = first();
            copy_and_meet();
            draw_sites(r.draw, early, now);
          } else {
            copy_and_meet();
          }
        } else {
          copy_and_meet();
          if (product.draws) draw_sites(r.draw, first(), now);
        }
        clear_sums<0, kMost * kTiles>();  // so that they take no registers meanwhile
      };
      if constexpr (kShares && kSparesRegisters) {
        const WritingBack early(*this, r, now);
        meet_and_draw();
        if (copying.is_mine()) early.finish(*this, now);
      } else {
        meet_and_draw();
        if (kShares && copying.is_mine()) WritingBack(*this, r, now).finish(*this, now);
      }
      if (kArrives && product.barriers & kAfter) arrive_with(bytes);
    }
    return product.then;
  }

  // copy(): the warp copies what it is to.
  template <class Copy>
  __device__ __forceinline__ void compute(const Record::Product& product, const Copy& copy, uint32_t now) {
    with_constants(product.members, [&](auto members, auto turn_of) {
      multiply_known<decltype(members)::value, decltype(turn_of)::value>(product);
    });
    turn_by(product.known_batches < kAhead ? product.known_batches : 0);
    const LateAddresses late(*this, now + product.late);
    if (product.barriers & kBefore) {
      copy();
      meet();
    }
    with_constants(product.members, [&](auto members, auto turn_of) {
      multiply_late<decltype(members)::value, decltype(turn_of)::value>(product, late, now);
    });
    turn_by(product.late_turns);
    if (product.n_results) finish(product, now);
  }

  // The view of the column step for which a record copies.
  __device__ uint32_t of_copies(const Record& r, uint32_t now) const { return r.copies.next_step ? next(now) : now; }

  // -- what follows a product. Of a tile, a lane has x[0], x[1]: its first channel at sites 2 * member and the next,
  // x[2], x[3]: its second channel there.

  __device__ int site_of(int tile, int n) const { return tile * kTileSites + member() * 2 + n; }
  __device__ uint32_t offset_at(int channel, int site) const {
    return offset_of<kMath>(channel, kTiles) + site * kSiteBytes;
  }

  // Makes results of the sums.
  __device__ __forceinline__ void finish(const Record::Product& product, uint32_t now) {
    Result r = in_shared<const Result>(product.results);
#pragma unroll 1
    for (int n = 1;; n++) {
      const int tile = product.first_tile + warp_, channel = r.first_channel + tile * r.tile_channels + group() * 2;
      const Bias bias(r, r.bias + tile * r.bias_tile + group() * 8);
      char* const ring = kShares ? nullptr : ring_of(now, r.to);  // or it is sent, and written back
      if (r.ending == Ending::sum)
        add_and_store(r, ring, channel, bias);
      else if (r.ending == Ending::gate)
        gate_and_store(r, ring, channel, bias, now);
      else if (kMost >= 4 && r.ending == Ending::lstm)
        cell_and_store(r, ring, channel, bias, now);
      else
        switch (r.ending) {
          case Ending::sum:
          case Ending::gate:
          case Ending::lstm: break;
          case Ending::logits: store_logits(r, channel, bias); break;
          case Ending::activated: activate_and_store(r, ring, channel, bias); break;
          case Ending::steps: step_and_store(r, ring, channel, bias, now); break;
          case Ending::sums:
            if constexpr (kTiles <= kMostRowTiles) store_sums(r, ring_of(now, r.to), channel, bias, now);
            break;
        }
      if (n == product.n_results) break;
      if (r.takes_sums) next_sums();
      r = in_shared<const Result>(product.results + n * sizeof(Result));
    }
  }

  // Moves those of the next member to the front.
  __device__ __forceinline__ void next_sums() {
#pragma unroll
    for (int s = kTiles * 8; s < kMost * kTiles * 8; s++)
      sums_[s / 8 - kTiles][s / 4 % 2][s % 4] = sums_[s / 8][s / 4 % 2][s % 4];
    clear_sums<(kMost - 1) * kTiles, kMost * kTiles>();
  }

  // What is added to a lane's sums: a bias, or sums that a product goes on with, which each site has of its own.
  struct Bias {
    uint32_t at, site_bytes;
    float2 of_all;

    __device__ __forceinline__ Bias(const Result& r, uint32_t at)
        : at(at), site_bytes(r.bias_site), of_all(in_shared<const float2>(at)) {}
    __device__ __forceinline__ Bias of_member(const Result& r, int member) const {
      return Bias(r, at + member * r.bias_member);
    }
    __device__ __forceinline__ float2 of(int site) const {
      const bool is_own = kTiles <= 2 || (kTiles <= kMostRowTiles && site_bytes);
      return is_own ? in_shared<const float2>(at + site * site_bytes) : of_all;
    }
  };

  // The sums of a tile of sites. number: which of the warp's.
  __device__ __forceinline__ void sums_of(float (&x)[4], int number, int tile, const Bias& bias) {
    Fragment<kMath>::finish(x, sums_[number], lane_);
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const float2 added = bias.of(site_of(tile, n));
      x[n] += added.x, x[n + 2] += added.y;
    }
  }

  // A value in shared memory; `otherwise` if it is nowhere. Without a branch, which would take longer.
  __device__ __forceinline__ void own(float (&x)[4], uint32_t at, int channel, int tile, float otherwise) const {
    const uint32_t base = at == kNowhere ? kUnused : at;  // copies may be on their way to what lies behind it
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const uint32_t offset = offset_at(channel, site_of(tile, n));
      const uint32_t from = kArrives && at == kNowhere ? kUnused : base + offset;
      const float2 pair = in_shared<const Pair<kMath>>(from).values();
      x[n] = at == kNowhere ? otherwise : pair.x, x[n + 2] = at == kNowhere ? otherwise : pair.y;
    }
  }

  __device__ __forceinline__ void add_and_store(const Result& r, char* ring, int channel, const Bias& first) {
    for_members(r, first, [&](int m, const Bias& bias) {
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++) {
        float x[4], added[4];
        sums_of(x, m * kTiles + tile, tile, bias);
        own(added, r.sum.added, channel + m * kTileChannels, tile, -0.f);
#pragma unroll
        for (int c = 0; c < 4; c++) x[c] += added[c], x[c] = x[c] < r.sum.least ? r.sum.least : x[c];  // keeps NaN
        store(x, r.to, ring, tile, channel + m * kTileChannels);
      }
    });
  }

  // Calls one(member, its bias) for all members that are tiles of one wide layer, and clears their sums.
  template <class One>
  __device__ __forceinline__ void for_members(const Result& r, const Bias& first, const One& one) {
#pragma unroll
    for (int m = 0; m < kMost; m++) {
      if (m > 0 && m * kTileChannels >= r.tile_channels) return;
      one(m, first.of_member(r, m));
#pragma unroll
      for (int s = 0; s < kTiles * 8 && m > 0; s++) sums_[m * kTiles + s / 8][s / 4 % 2][s % 4] = 0;
    }
  }

  __device__ __forceinline__ void store_logits(const Result& r, int channel, const Bias& first) {
    for_members(r, first, [&](int m, const Bias& bias) {
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++) {
        float x[4];
        sums_of(x, m * kTiles + tile, tile, bias);
        store_logits(x, r, tile, channel + m * kTileChannels);
      }
    });
  }

  __device__ __forceinline__ void store_sums(const Result& r, char* ring, int channel, const Bias& bias,
                                             uint32_t view) {
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) {
      float x[4];
      sums_of(x, tile, tile, bias);
#pragma unroll
      for (int n = 0; n < 2; n++) {
        const Site s = site(view, site_of(tile, n));
        const int of_column = site_of(tile, n) - s.ahead * layout_.images;
        const uint32_t at = offset_of<Math::fp32>(channel, kTiles) + of_column * kSiteBytes;
        if (in_grid(s.row, s.column))
          *reinterpret_cast<float2*>(ring + at + s.ahead * r.sums.column_bytes) = float2{x[n], x[n + 2]};
      }
    }
  }

  __device__ __forceinline__ void activate_and_store(const Result& r, char* ring, int channel, const Bias& bias) {
    const bool has_sums = r.activated.from == kNowhere;
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) {
      float x[4], sums[4], factor[4], term[4];
      sums_of(sums, tile, tile, bias);
      own(x, r.activated.from, channel, tile, 0);
#pragma unroll
      for (int c = 0; c < 4; c++) x[c] = has_sums ? sums[c] : x[c];
      if (r.activation == Activation::sigmoid)
        activate(StepKind::sigmoid, x);
      else if (r.activation == Activation::tanh)
        activate(StepKind::tanh, x);
      else if (r.activation == Activation::relu)
        activate(StepKind::relu, x);
      own(factor, r.activated.factor, channel, tile, 1);
      own(term, r.activated.term, channel, tile, -0.f);
#pragma unroll
      for (int c = 0; c < 4; c++) x[c] = x[c] * factor[c] + term[c];
      store(x, r.to, ring, tile, channel);
    }
  }

  // A member's sums of a tile.
  template <int kMember>
  __device__ __forceinline__ void sums_of_member(float (&x)[4], int tile, const Result& r, const Bias& first) {
    sums_of(x, kMember * kTiles + tile, tile, first.of_member(r, kMember));
  }
  static __device__ __forceinline__ void activate(StepKind kind, float (&x)[4]) {
    const float none[4] = {};
    apply_formula(kind, 0, x, none, none, kMath);
  }
  // As it is read once it has been stored.
  static __device__ __forceinline__ void round_as_stored(float (&x)[4]) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const float2 pair = Pair<kMath>(x[n], x[n + 2]).values();
      x[n] = pair.x, x[n + 2] = pair.y;
    }
  }

  // A lane has a channel of both factors, each at two sites.
  __device__ __forceinline__ void gate_and_store(const Result& r, char* ring, int channel, const Bias& first,
                                                 uint32_t view) {
    for_members(r, first, [&](int m, const Bias& bias) {
      const int unit = (channel + m * kTileChannels) / 2;
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++) {
        float x[4], rounded[4];
        sums_of(x, m * kTiles + tile, tile, bias);
        const auto store_unit = [&](const Target& to, char* ring, float a, float b) {
          store_one<!kShares>(to, ring, a, unit, site_of(tile, 0));
          store_one<!kShares>(to, ring, b, unit, site_of(tile, 1));
          if (kShares && to.shared != kNowhere) send_unit(to.shared, a, b, unit, tile);
        };
        if (r.gate.keeps_sums) {
          const auto ring_for = [&](const Target& to) { return kShares ? nullptr : ring_of(view, to); };
          store_unit(r.gate.sums[0], ring_for(r.gate.sums[0]), x[0], x[1]);
          store_unit(r.gate.sums[1], ring_for(r.gate.sums[1]), x[2], x[3]);
          round_as_stored(x);
        }
#pragma unroll
        for (int n = 0; n < 2; n++) x[n] = hyperbolic_tangent(x[n], kMath), x[n + 2] = logistic(x[n + 2], kMath);
#pragma unroll
        for (int c = 0; c < 4; c++) rounded[c] = x[c];
        round_as_stored(rounded);
#pragma unroll
        for (int n = 0; n < 2; n++) x[n] = r.gate.rounds_tanh ? rounded[n] * x[n + 2] : x[n] * rounded[n + 2];
        store_unit(r.to, ring, x[0], x[1]);
      }
    });
  }

  // Two lanes have neighbouring units, each at two sites; one sends both at the first site, the other at the second.
  __device__ __forceinline__ void send_unit(uint32_t shared, float a, float b, int unit, int tile) {
    const bool is_second = group() % 2;
    const float mine = is_second ? b : a, other = shuffle_xor(is_second ? a : b, 4);
    const Pair<kMath> pair(is_second ? other : mine, is_second ? mine : other);
    send_to_all(shared + offset_at(unit - is_second, site_of(tile, is_second)), pair);
  }

  __device__ __forceinline__ void cell_and_store(const Result& r, char* ring, int channel, const Bias& bias,
                                                 uint32_t view) {
    char* const cells = kShares ? nullptr : ring_of(view, r.lstm.cell);
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) {
      float cell[4], input[4], forget[4], output[4], factor[4];
      sums_of_member<0>(cell, tile, r, bias);
      sums_of_member<1>(input, tile, r, bias);
      sums_of_member<2>(forget, tile, r, bias);
      sums_of_member<3>(output, tile, r, bias);
      own(factor, r.lstm.factor, channel, tile, 0);
      activate(StepKind::tanh, cell), activate(StepKind::sigmoid, input);
      activate(StepKind::sigmoid, forget), activate(StepKind::sigmoid, output);
      round_as_stored(cell), round_as_stored(output);
#pragma unroll
      for (int c = 0; c < 4; c++) cell[c] *= input[c];
      round_as_stored(cell);
#pragma unroll
      for (int c = 0; c < 4; c++) cell[c] = forget[c] * factor[c] + cell[c];
      store(cell, r.lstm.cell, cells, tile, channel);
      round_as_stored(cell);
      activate(StepKind::tanh, cell);
#pragma unroll
      for (int c = 0; c < 4; c++) cell[c] *= output[c];
      store(cell, r.to, ring, tile, channel);
    }
    clear_sums<kTiles, kMost * kTiles>();
  }

  // Any steps. The sums of a tile at a time come to the front, so that the code of all kinds of steps is there once.
  __device__ __forceinline__ void step_and_store(const Result& r, char* ring, int channel, const Bias& bias,
                                                 uint32_t view) {
#pragma unroll 1
    for (int tile = 0; tile < kTiles; tile++) {
      float x[4];
      sums_of(x, 0, tile, bias);
      if (r.steps.starts != kNowhere) load(x, in_shared<const Place>(r.steps.starts), channel, tile, view);
#pragma unroll 1
      for (int s = 0; s < r.steps.count; s++)
        apply(x, in_shared<const StepPlan>(r.steps.first + s * sizeof(StepPlan)), r.lead, channel, tile, view);
      // Channels that fill up a fragment must be zero: a step may have made them infinite, and 0 times infinity is NaN.
#pragma unroll
      for (int c = 0; c < 4; c++) x[c] = channel + c / 2 < r.steps.channels ? x[c] : 0.f;
      r.logits == kNowhere ? store(x, r.to, ring, tile, channel) : store_logits(x, r, tile, channel);
#pragma unroll
      for (int s = 8; s < kTiles * 8; s++) sums_[s / 8 - 1][s / 4 % 2][s % 4] = sums_[s / 8][s / 4 % 2][s % 4];
    }
  }

  __device__ __forceinline__ void store(const float (&x)[4], const Target& to, char* ring, int tile, int channel) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const Pair<kMath> pair(x[n], x[n + 2]);
      const uint32_t offset = offset_at(channel, site_of(tile, n));
      if (to.shared != kNowhere) in_shared<Pair<kMath>>(to.shared + offset) = pair;
      if (kShares && to.shared != kNowhere) send_to_all(to.shared + offset, pair);
      if (!kShares && to.ring != kNowhere) *reinterpret_cast<Pair<kMath>*>(ring + offset) = pair;
    }
  }

  __device__ __forceinline__ void store_logits(const float (&x)[4], const Result& r, int tile, int channel) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const uint32_t at = r.logits + (site_of(tile, n) * r.logits_stride + channel) * 4;
      in_shared<float2>(at) = float2{x[n], x[n + 2]};
      if (kShares) send_to_all(at, float2{x[n], x[n + 2]});
    }
  }

  __device__ float2 pair_at(const Place& p, int channel, int site, uint32_t view) const {
    if (!is_at(view, p.edge, site)) return {0, 0};
    const uint32_t at = p.at + offset_at(channel, shifted(site, p.shift));
    if (p.slot == kInShared) return in_shared<const Pair<kMath>>(at).values();
    const float2 pair = reinterpret_cast<const Pair<kMath>*>(slot_of(view, p.slot) + at)->values();
    return {arrived(pair.x), arrived(pair.y)};
  }

  __device__ __forceinline__ void load(float (&x)[4], const Place& p, int channel, int tile, uint32_t view) const {
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const float2 pair = pair_at(p, channel, site_of(tile, n), view);
      x[n] = pair.x, x[n + 2] = pair.y;
    }
  }

  // Mean and 1 / sqrt(variance + epsilon) over all channels of a value.
  __device__ void load_moments(float (&scale)[4], float (&mean)[4], const StepPlan& step, int tile,
                               uint32_t view) const {
    for (int n = 0; n < 2; n++) {
      const auto sum = [&](float mean, bool squares) {
        float total = 0;
        for (int c = 0; c < step.all_channels; c += 2) {
          const float2 pair = pair_at(step.place, c, site_of(tile, n), view);
          const float a = pair.x - mean, b = c + 1 < step.all_channels ? pair.y - mean : 0.f;
          total += squares ? a * a + b * b : a + b;
        }
        return total * step.inverse_channels;
      };
      const float found = sum(0, false), inverse = 1.f / sqrtf(sum(found, true) + step.alpha);
#pragma unroll
      for (int c = 0; c < 2; c++) mean[n + 2 * c] = found, scale[n + 2 * c] = inverse;
    }
  }

  __device__ void load_condition(float (&x)[4], int index, int lead, int channel, int tile, uint32_t view) const {
    const ConditionPlan& operand = in_shared<const ConditionPlan>(layout_.conditions + index * sizeof(ConditionPlan));
    const float* const data = params_.conditions + operand.before * params_.images;
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const Site s = advanced(site(view, site_of(tile, n)), lead);
      const bool inside = in_grid(s.row, s.column);
      int64_t at = inside ? s.image : 0;
      if (operand.varies_over_pixels && inside) at = (at * layout_.height + s.row) * layout_.width + s.column;
#pragma unroll
      for (int c = 0; c < 2; c++)
        x[n + 2 * c] = channel + c < operand.channels ? arrived(data[at * operand.channels + channel + c]) : 0.f;
    }
  }

  __device__ __forceinline__ void apply(float (&x)[4], const StepPlan& step, int lead, int channel, int tile,
                                        uint32_t view) const {
    float operand[4] = {}, shift[4] = {};
    switch (step.reads) {
      case Operand::none: break;
      case Operand::value:
        step.all_channels ? load_moments(operand, shift, step, tile, view)
                          : load(operand, step.place, channel, tile, view);
        break;
      case Operand::condition: load_condition(operand, step.condition, lead, channel, tile, view); break;
      case Operand::constants:
#pragma unroll
        for (int c = 0; c < 4; c++)
          operand[c] = constant(step.scale + channel + c / 2), shift[c] = constant(step.shift + channel + c / 2);
        break;
    }
    apply_formula(step.kind, step.alpha, x, operand, shift, kMath);
  }

  // -- draws

  // Where a warp draws; lane d looks after the d-th distribution.
  struct Pixel {
    Site site;
    bool inside;
    int64_t at;

    __device__ Pixel(const Walk& walk, const Record::Draw& draws, int index, uint32_t view)
        : site(walk.site(view, index)), inside(walk.in_grid(site.row, site.column)) {
      const Layout& l = walk.layout_;
      const int channel = draws.first + min(walk.lane_, draws.distributions - 1);
      at = ((int64_t{site.image} * l.image_channels + channel) * l.height + site.row) * l.width + site.column;
    }
  };

  // Each warp draws at some sites.
  __device__ void draw_sites(const Record::Draw& draws, const Pixel& first, uint32_t view) {
    const int levels = layout_.head.parameters, lane = min(lane_, draws.distributions - 1);
    const bool in_registers = draws_in_registers(levels, params_.options);
#pragma unroll 1
    for (int index = warp_; index < kSites; index += kWarps) {
      const Pixel pixel = index == warp_ ? first : Pixel(*this, draws, index, view);
      if (!pixel.inside) continue;
      const Site& s = pixel.site;
      const int64_t at = pixel.at;
      const double noise_there = params_.noise[at];
      const auto noise = [&](int d) { return shuffle(arrived(noise_there), d); };
      const auto logits = [&](int d) { return Logits{draws.logits + (index * draws.logits_stride + d * levels) * 4}; };
      if (params_.logits && rank_ == 0)
        for (int d = 0; d < draws.distributions; d++) {
          float* const wanted = params_.logits + shuffle(at, d) * levels;
          for (int k = lane_; k < levels; k += 32) wanted[k] = logits(d)[k];
        }
      int drawn = 0;
      if (!in_registers)
        for (int d = 0; d < draws.distributions; d++) {
          const int found = draw(logits(d), levels, params_.options, noise(d), lane_);
          if (lane_ == d) drawn = found;
        }
      else if (!kFewTiles || draws.distributions == 1)
        for (int d = 0; d < draws.distributions; d++) {
          const DrawInRegisters<1, 8> found(
              {logits(d)}, levels, params_.options.inverse_temperature, [&](int) { return noise(d); }, lane_);
          if (lane_ == d) drawn = found.drawn[0];
        }
      else
        for (int d = 0; d < draws.distributions; d += 3) {
          const int last = draws.distributions - 1, e = min(d + 1, last), f = min(d + 2, last);
          const DrawInRegisters<3, 8> found(
              {logits(d), logits(e), logits(f)}, levels, params_.options.inverse_temperature,
              [&](int m) { return noise(d + m); }, lane_);
          if (lane_ == d) drawn = found.drawn[0];
          if (lane_ == d + 1) drawn = found.drawn[1];
          if (lane_ == d + 2) drawn = found.drawn[2];
        }
      if (arrived(noise_there) < 0) drawn = -1;  // there is no such noise; but on any way here it has arrived
      const bool known = params_.known && params_.known[at];
      int level = max(drawn, 0);
      if (known) {
        level = max(params_.levels[at], 0);
      } else if (lane == lane_ && rank_ == 0) {
        params_.levels[at] = level;
        if (drawn < 0)
          atomic_min(params_.error, error_code(s.row * layout_.width + s.column, s.image, draws.first + lane));
      }
      if (params_.log_probability && rank_ == 0)
        for (int d = 0; d < draws.distributions; d++) {
          const double log_probability = log_probability_of(shuffle(level, d), logits(d), levels, lane_);
          if (lane_ == d && !known && drawn >= 0) params_.log_probability[at] = log_probability;
        }
      for (int i = 0; i < draws.n_inputs; i++) {
        const InputPlan input = in_shared<const InputPlan>(draws.inputs + i * sizeof(InputPlan));
        read_levels(input, ring_of(view, input.to), level, draws.first, index);
      }
    }
  }

  // Turns a site's levels, of which lane c has the c-th from channel `first` on, into a value that the network reads.
  __device__ void read_levels(const InputPlan& input, char* ring, int level, int first, int site) {
    if (input.width == 1) {  // each lane has a channel
      const int c = lane_ < input.count ? lane_ : 0, mine = shuffle(level, input.first - first + c);
      const int pads = input.pad_to - input.pad_from;
      for (int k = lane_; k < input.count + pads; k += 32) {
        const bool is_pad = k >= input.count;
        const float x = is_pad ? 0.f : level_value(input, c * input.floats + mine);
        store_one(input.to, ring, x, is_pad ? input.pad_from + k - input.count : input.before + k, site);
      }
      return;
    }
    for (int c = 0; c < input.count; c++) {
      const int mine = shuffle(level, input.first - first + c);
      for (int k = lane_; k < input.width; k += 32)
        store_one(input.to, ring, level_value(input, c * input.floats + mine * input.width + k),
                  input.before + c * input.width + k, site);
    }
    for (int channel = input.pad_from + lane_; channel < input.pad_to; channel += 32)
      store_one(input.to, ring, 0, channel, site);
  }

  __device__ __forceinline__ float level_value(const InputPlan& input, int index) const {
    return input.near == kNowhere ? constant(input.table + index) : in_shared<const float>(input.near + index * 4);
  }

  template <bool kInRing = true>
  __device__ void store_one(const Target& to, char* ring, float x, int channel, int site) {
    using Stored = decltype(stored<kMath>(x));
    const uint32_t offset = offset_at(channel, site);
    if (to.shared != kNowhere) in_shared<Stored>(to.shared + offset) = stored<kMath>(x);
    if (kInRing && to.ring != kNowhere) *reinterpret_cast<Stored*>(ring + offset) = stored<kMath>(x);
  }

  static constexpr int kNoRow = -(1 << 20);

  const KernelParams& params_;
  const Layout& layout_;
  const int warp_, lane_;
  const unsigned rank_;           // in the cluster
  int copies_at_, copies_shift_;  // where a lane's site lies in what it copies, and what a place's shift does to it
  unsigned meetings_ = 0;
  WeightStream<kAhead> weights_;
  int weight_turn_ = 0;
  bool turn_is_one_ = false;  // by itself, so that the compiler makes no table of turns, which would be slower
  Sums sums_ = {};            // zero between records, unless a sum goes on
};

template <Math kMath, int kTiles, int kBlocks>
__global__ void __launch_bounds__(kThreads, 1) walk(__grid_constant__ const KernelParams params) {
  if constexpr (kBlocks == 1 || kHasClusters)
    Walk<kMath, kTiles, kBlocks>(params).run();
  else
    stop();  // most_clusters() has said that there are none
}

}  // namespace pcf::cuda

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

template <Math kMath, int kTiles>
class Walk {
 public:
  __device__ explicit Walk(const KernelParams& params)
      : params_(params), layout_(params.layout), thread_(thread_index()), warp_(thread_ / 32), lane_(thread_ % 32),
        workspace_(params.workspace + block_index() * params.layout.workspace_bytes),
        weights_(params.constants + params.layout.weights[warp_], params.layout.batches[warp_], lane_) {}

  __device__ void run() {
    for (uint32_t at = thread_ * 16; at < layout_.table_bytes; at += kThreads * 16)
      in_shared<uint4>(layout_.tables + at) = *reinterpret_cast<const uint4*>(params_.constants + at);
    if (thread_ < kSiteBytes / 16) in_shared<uint4>(layout_.zeros + thread_ * 16) = uint4{0, 0, 0, 0};
    int now = 0;
    place_sites(now);
    sync_block();
    if (thread_ < layout_.slots)
      ring_length_ = in_shared<const Slot>(layout_.slot_table + thread_ * sizeof(Slot)).length;
    look(now, now, 0);
    sync_block();
    for (int i = 0; i < layout_.copies_ahead; i++) Copying(*this, i).start(*this, now);
    meet();
    for (int t = layout_.first_step; t < layout_.end_step; t++) {
      for (int i = 0; i < layout_.records; i++) run_record(i, now);
      now = !now;
      ring_step_ = ring_step_ + 1 == ring_length_ ? 0 : ring_step_ + 1;
    }
    wait_copies<0>();
  }

 private:
  static constexpr int kSites = kTiles * kTileSites;
  static constexpr int kAhead = batches_ahead(kMath, kTiles);
  // What is read early, where there are registers to spare, and else when it is needed.
  static constexpr bool kFewTiles = kDepth<kMath> == 32 && kTiles <= 4;
  template <class T>
  using Held = std::conditional_t<kFewTiles, const T, const T&>;
  static constexpr uint32_t kColumnBytes = kTiles * kFragmentBytes;

  __device__ const float* constants(int index) const {
    return reinterpret_cast<const float*>(params_.constants + layout_.floats) + index;
  }
  __device__ float constant(int index) const { return arrived(*constants(index)); }
  __device__ const Record& record(int index) const {
    return in_shared<const Record>(layout_.record_table + index * sizeof(Record));
  }
  __device__ Place place(int index) const { return in_shared<const Place>(layout_.places + index * sizeof(Place)); }
  // What a lane multiplies lies there, from the beginning of a fragment on.
  __device__ uint32_t lane_offset() const { return group() * kSiteBytes; }
  __device__ int group() const { return lane_ / 4; }
  __device__ int member() const { return lane_ % 4; }

  // -- sites

  __device__ Site& site(int turn, int index) const {
    return in_shared<Site>(layout_.sites_at + (turn * kSites + index) * sizeof(Site));
  }

  // Where the sites are in the first column step.
  __device__ void place_sites(int turn) {
    if (thread_ >= kSites) return;
    const int row = thread_ / layout_.images, behind = layout_.first_step - layout_.lag * row;
    const int turns = behind >= 0 ? behind / layout_.period : -((-behind + layout_.period - 1) / layout_.period);
    const int image = block_index() * layout_.images + thread_ % layout_.images;
    const bool used = thread_ < layout_.sites && image < params_.images;
    site(turn, thread_) = Site{image, used ? row + layout_.rows * turns : kNoRow, behind - layout_.period * turns, 0};
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

  // Writes what the column step in `steps` steps reads: where its sites and slots are, and which sites its edges have.
  __device__ void look(int now, int then, int steps) {
    if (steps > 0 && thread_ < kSites) site(then, thread_) = advanced(site(now, thread_), steps);
    if (thread_ < layout_.slots) {
      const Slot slot = in_shared<const Slot>(layout_.slot_table + thread_ * sizeof(Slot));
      int index = ring_step_ + steps - slot.age;
      index += index < 0 ? slot.length : index >= slot.length ? -slot.length : 0;
      in_shared<int64_t>(slots(then) + thread_ * 8) = slot.ring + index * slot.bytes;
    }
    for (int e = warp_; e < layout_.edges; e += kWarps) {
      const Edge edge = in_shared<const Edge>(layout_.edge_table + e * sizeof(Edge));
      for (int first = 0; first < kSites; first += 32) {
        const int index = first + lane_;
        const Site s = advanced(site(now, min(index, kSites - 1)), edge.lead + steps);
        const bool inside = in_grid(s.row, s.column) && in_grid(s.row + edge.dy, s.column + edge.dx);
        const uint32_t sites = e == kEverySite ? ~0u : ballot(inside);
        if (lane_ == 0) in_shared<uint32_t>(masks(then) + e * 8 + first / 8) = sites;
      }
    }
  }
  __device__ uint32_t slots(int turn) const { return layout_.slots_at + turn * layout_.slots * 8; }
  __device__ uint32_t masks(int turn) const { return layout_.masks_at + turn * layout_.edges * 8; }
  __device__ bool is_at(int turn, int edge, int site) const {
    return in_shared<const uint32_t>(masks(turn) + edge * 8 + site / 32 * 4) >> site % 32 & 1;
  }
  __device__ char* slot_of(int turn, int slot) const {
    return workspace_ + in_shared<const int64_t>(slots(turn) + slot * 8);
  }
  __device__ int shifted(int site, int shift) const {
    site -= shift;
    return site < 0 ? site + layout_.sites : site;
  }

  // -- products

  // Copies what a record knows of earlier column steps, and its biases. A warp copies every eighth fragment; where the
  // first two come from is read before other work, which hides the time that it takes.
  class Copying {
   public:
    __device__ Copying(const Walk& walk, int index) : copies_(walk.record(index).copies) {
      const int last = copies_.count - 1;
#pragma unroll
      for (int n = 0; n < kEarly; n++)
        if (last >= 0) places_[n] = walk.place(copies_.places + min(walk.warp_ + n * kWarps, last));
    }

    __device__ __forceinline__ void start(const Walk& walk, int turn) const {
#pragma unroll
      for (int n = 0; n < kEarly; n++)
        if (const int f = walk.warp_ + n * kWarps; f < copies_.count) copy(walk, places_[n], f, turn);
      for (int f = walk.warp_ + kEarly * kWarps; f < copies_.count; f += kWarps)
        copy(walk, walk.place(copies_.places + f), f, turn);
      if (walk.warp_ == kWarps - 1)
        for (int at = walk.lane_ * 16; at < copies_.bias_bytes; at += 32 * 16)
          copy_async(shared_memory() + copies_.bias + at, walk.constants(copies_.floats) + at / 4, true);
      commit_copies();
    }

   private:
    static constexpr int kEarly = kFewTiles ? 2 : 0;

    __device__ __forceinline__ void copy(const Walk& walk, const Place& p, int fragment, int turn) const {
      const char* const from = walk.slot_of(turn, p.slot) + p.at + walk.member() * 16;
      const uint32_t to = copies_.staged + fragment * kColumnBytes + walk.lane_ * 16;
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++) {
        const int site = tile * kTileSites + walk.group();
        copy_async(shared_memory() + to + tile * kFragmentBytes, from + walk.shifted(site, p.shift) * kSiteBytes,
                   walk.is_at(turn, p.edge, site));
      }
    }

    Held<Record::Copies> copies_;
    Place places_[kEarly + 1];
  };

  // The order in which a sum is made up must not depend on the number of tiles: images would depend on the batch.
  using Sums = float[kTiles][2][4];

  __device__ __forceinline__ void clear_sums() {
#pragma unroll
    for (int s = 0; s < kTiles * 8; s++) sums_[s / 8][s / 4 % 2][s % 4] = 0;
  }

  __device__ __forceinline__ void multiply(Sums& sums, const uint4 (&weights)[2], const uint32_t (&at)[kTiles]) const {
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) Fragment<kMath>::multiply(sums[tile], weights, at[tile], lane_);
  }

  // The next batch of fragments that follow each other.
  template <int kTurn>
  __device__ __forceinline__ void multiply_row(Sums& sums, uint32_t& at) {
    weights_.template next<kTurn>([&](const auto& weights) {
#pragma unroll
      for (int f = 0; f < kBatch; f++) {
        uint32_t of_tiles[kTiles];
#pragma unroll
        for (int tile = 0; tile < kTiles; tile++) of_tiles[tile] = at + f * kColumnBytes + tile * kFragmentBytes;
        multiply(sums, weights[f], of_tiles);
      }
    });
    at += kBatch * kColumnBytes;
  }

  // The next batch of fragments that lie anywhere.
  template <int kTurn>
  __device__ __forceinline__ void multiply_places(Sums& sums, int& next, int turn) {
    weights_.template next<kTurn>([&](const auto& weights) {
#pragma unroll
      for (int f = 0; f < kBatch; f++) {
        const Place p = place(next + f);
        uint32_t of_tiles[kTiles];
#pragma unroll
        for (int tile = 0; tile < kTiles; tile++) {
          const int site = tile * kTileSites + group();
          of_tiles[tile] = is_at(turn, p.edge, site) ? p.at + shifted(site, p.shift) * kSiteBytes : layout_.zeros;
        }
        multiply(sums, weights[f], of_tiles);
      }
    });
    next += kBatch;
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

  // meeting() comes before what this column step has made.
  template <int kTurn, class Meeting>
  __device__ __forceinline__ void multiply_all(Sums& sums, const Record::Product& p, int turn, const Meeting& meeting) {
    uint32_t at = p.staged + lane_offset();
#pragma unroll 1
    for (int n = p.known_turns; n > 0; n--) {
      multiply_row<kTurn>(sums, at);
      multiply_row<kTurn + 1>(sums, at);
      if constexpr (kAhead == 3) multiply_row<kTurn + 2>(sums, at);
    }
    meeting();
    if (p.late_known >= 0) {
      int known = p.late_known;
      in_turn<kTurn>(p.late_batches, [&](auto turn_of) {
        if (known-- == 0) at = p.late + lane_offset();
        multiply_row<decltype(turn_of)::value>(sums, at);
      });
    } else {
      int next = p.late_places;
      in_turn<kTurn>(p.late_batches,
                     [&](auto turn_of) { multiply_places<decltype(turn_of)::value>(sums, next, turn); });
    }
  }

  // Behind it, what was copied for the next record is there, and what all threads have made.
  __device__ __forceinline__ void meet() {
    layout_.copies_ahead == 1 ? wait_copies<0>() : wait_copies<1>();
    sync_block();
  }

  __device__ void run_record(int index, int now) {
    const Record& r = record(index);
    Held<Record::Product> product = r.product;
    const int next = index + layout_.copies_ahead, records = layout_.records;
    const Copying copying(*this, next < records ? next : next - records);
    const auto copy_ahead = [&] { copying.start(*this, next < records ? now : !now); };
    if (warp_ >= product.tiles) {
      copy_ahead();
      meet();
      if (product.special == Special::draw) draw_sites(r.draw, r.result, now);
      if (product.special == Special::look) look(now, !now, 1);
      clear_sums();  // so that they take no registers meanwhile
      return;
    }
    Held<Record::Result> result = r.result;
    const auto ring_of = [&] { return result.ring == kNowhere ? nullptr : slot_of(now, result.slot) + result.ring; };
    char* ring = kFewTiles ? ring_of() : nullptr;
    for (int tile = warp_; tile < product.tiles; tile += kWarps) {
      const int of_record = tile * kTileChannels + group() * 2;  // the lane's first channel, the other is the next one
      float2 bias;
      const auto meeting = [&] {
        if (tile == warp_) {  // the first one
          copy_ahead();
          meet();
        }
        bias = in_shared<const float2>(result.bias + of_record * 4);
      };
      if (product.begins) clear_sums();
      if (product.late_batches == 0)
        meeting();
      else if (weight_turn_ == 0)
        multiply_all<0>(sums_, product, now, meeting);
      else if (weight_turn_ == 1)
        multiply_all<1>(sums_, product, now, meeting);
      else if constexpr (kAhead == 3)
        multiply_all<2>(sums_, product, now, meeting);
      weight_turn_ = (weight_turn_ + product.late_batches) % kAhead;
      if (result.ending == Ending::none) continue;
      float x[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; t++) {
        Fragment<kMath>::finish(x[t], sums_[t], lane_);
#pragma unroll
        for (int c = 0; c < 4; c++) x[t][c] += c < 2 ? bias.x : bias.y;
      }
      const Record::Result to = result;
      if (!kFewTiles) ring = ring_of();
      const int channel = to.first_channel + of_record;
      to.ending == Ending::sum ? add_and_store(x, to, ring, channel)
                               : step_and_store(x, r.steps, to, ring, channel, now);
    }
  }

  // -- what follows a product. Of a tile, a lane has x[0], x[1]: its first channel at sites 2 * member and the next,
  // x[2], x[3]: its second channel there.

  __device__ int site_of(int tile, int n) const { return tile * kTileSites + member() * 2 + n; }
  __device__ uint32_t offset_at(int channel, int site) const {
    return offset_of<kMath>(channel, kTiles) + site * kSiteBytes;
  }

  // The usual end of a product.
  __device__ __forceinline__ void add_and_store(float (&x)[kTiles][4], const Record::Result& r, char* ring,
                                                int channel) {
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) {
      if (r.added != kNowhere)
#pragma unroll
        for (int n = 0; n < 2; n++) {
          const float2 pair = in_shared<const Pair<kMath>>(r.added + offset_at(channel, site_of(tile, n))).values();
          x[tile][n] += pair.x, x[tile][n + 2] += pair.y;
        }
      if (r.relu)
#pragma unroll
        for (int c = 0; c < 4; c++) x[tile][c] = x[tile][c] < 0 ? 0.f : x[tile][c];  // keeps NaN
      store(x[tile], r, ring, tile, channel);
    }
  }

  // Any steps. A tile at a time comes to x[0], so that the code of all kinds of steps is there once.
  __device__ __forceinline__ void step_and_store(float (&x)[kTiles][4], const Record::Steps& steps,
                                                 const Record::Result& r, char* ring, int channel, int turn) {
#pragma unroll 1
    for (int tile = 0; tile < kTiles; tile++) {
      if (steps.starts >= 0) load(x[0], place(steps.starts), channel, tile, turn);
#pragma unroll 1
      for (int s = 0; s < steps.count; s++) apply(x[0], step(steps.first + s), steps.lead, channel, tile, turn);
      // Channels that fill up a fragment must be zero: a step may have made them infinite, and 0 times infinity is NaN.
#pragma unroll
      for (int c = 0; c < 4; c++) x[0][c] = channel + c / 2 < steps.channels ? x[0][c] : 0.f;
      store(x[0], r, ring, tile, channel);
#pragma unroll
      for (int t = 0; t + 1 < kTiles; t++)
#pragma unroll
        for (int c = 0; c < 4; c++) x[t][c] = x[t + 1][c];
    }
  }

  __device__ const StepPlan& step(int index) const {
    return in_shared<const StepPlan>(layout_.steps + index * sizeof(StepPlan));
  }

  __device__ __forceinline__ void store(const float (&x)[4], const Record::Result& r, char* ring, int tile,
                                        int channel) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const int site = site_of(tile, n);
      if (r.logits != kNowhere) {
        in_shared<float2>(r.logits + (site * r.logits_stride + channel) * 4) = float2{x[n], x[n + 2]};
        continue;
      }
      const Pair<kMath> pair(x[n], x[n + 2]);
      const uint32_t offset = offset_at(channel, site);
      if (r.shared != kNowhere) in_shared<Pair<kMath>>(r.shared + offset) = pair;
      if (r.ring != kNowhere) *reinterpret_cast<Pair<kMath>*>(ring + offset) = pair;
    }
  }

  __device__ float2 pair_at(const Place& p, int channel, int site, int turn) const {
    if (!is_at(turn, p.edge, site)) return {0, 0};
    const uint32_t at = p.at + offset_at(channel, shifted(site, p.shift));
    if (p.slot == kInShared) return in_shared<const Pair<kMath>>(at).values();
    const float2 pair = reinterpret_cast<const Pair<kMath>*>(slot_of(turn, p.slot) + at)->values();
    return {arrived(pair.x), arrived(pair.y)};
  }

  __device__ __forceinline__ void load(float (&x)[4], const Place& p, int channel, int tile, int turn) const {
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const float2 pair = pair_at(p, channel, site_of(tile, n), turn);
      x[n] = pair.x, x[n + 2] = pair.y;
    }
  }

  // Mean and 1 / sqrt(variance + epsilon) over all channels of a value.
  __device__ void load_moments(float (&scale)[4], float (&mean)[4], const StepPlan& step, int tile, int turn) const {
    for (int n = 0; n < 2; n++) {
      const auto sum = [&](float mean, bool squares) {
        float total = 0;
        for (int c = 0; c < step.all_channels; c += 2) {
          const float2 pair = pair_at(step.place, c, site_of(tile, n), turn);
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

  __device__ void load_condition(float (&x)[4], int index, int lead, int channel, int tile, int turn) const {
    const ConditionPlan& operand = in_shared<const ConditionPlan>(layout_.conditions + index * sizeof(ConditionPlan));
    const float* const data = params_.conditions + operand.before * params_.images;
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const Site s = advanced(site(turn, site_of(tile, n)), lead);
      const bool inside = in_grid(s.row, s.column);
      int64_t at = inside ? s.image : 0;
      if (operand.varies_over_pixels && inside) at = (at * layout_.height + s.row) * layout_.width + s.column;
#pragma unroll
      for (int c = 0; c < 2; c++)
        x[n + 2 * c] = channel + c < operand.channels ? arrived(data[at * operand.channels + channel + c]) : 0.f;
    }
  }

  __device__ __forceinline__ void apply(float (&x)[4], const StepPlan& step, int lead, int channel, int tile,
                                        int turn) const {
    float operand[4] = {}, shift[4] = {};
    switch (step.reads) {
      case Operand::none: break;
      case Operand::value:
        step.all_channels ? load_moments(operand, shift, step, tile, turn)
                          : load(operand, step.place, channel, tile, turn);
        break;
      case Operand::condition: load_condition(operand, step.condition, lead, channel, tile, turn); break;
      case Operand::constants:
#pragma unroll
        for (int c = 0; c < 4; c++)
          operand[c] = constant(step.scale + channel + c / 2), shift[c] = constant(step.shift + channel + c / 2);
        break;
    }
    apply_formula(step.kind, step.alpha, x, operand, shift);
  }

  // -- draws

  // Each warp draws at some sites; lane d looks after the d-th distribution.
  __device__ void draw_sites(const Record::Draw& draws, const Record::Result& r, int turn) {
    const int levels = layout_.head.parameters, lane = min(lane_, draws.distributions - 1);
    const bool is_mine = lane == lane_, in_registers = draws_in_registers(levels, params_.options);
    for (int index = warp_; index < kSites; index += kWarps) {
      const Site s = site(turn, index);
      if (!in_grid(s.row, s.column)) continue;
      const int64_t at =
          ((int64_t{s.image} * layout_.image_channels + draws.first + lane) * layout_.height + s.row) * layout_.width +
          s.column;
      const bool known = params_.known && params_.known[at];
      const double noise = arrived(params_.noise[at]);
      int level = known ? max(params_.levels[at], 0) : 0;
      const auto logits = [&](int d) { return Logits{r.logits + (index * r.logits_stride + d * levels) * 4}; };
      if (params_.logits)
        for (int d = 0; d < draws.distributions; d++) {
          float* const wanted = params_.logits + shuffle(at, d) * levels;
          for (int k = lane_; k < levels; k += 32) wanted[k] = logits(d)[k];
        }
      int drawn = 0;
      if (!in_registers)
        for (int d = 0; d < draws.distributions; d++) {
          const int found = draw(logits(d), levels, params_.options, shuffle(noise, d), lane_);
          if (lane_ == d) drawn = found;
        }
      else if (!kFewTiles || draws.distributions == 1)
        for (int d = 0; d < draws.distributions; d++) {
          const DrawInRegisters<1, 8> found({logits(d)}, levels, params_.options.inverse_temperature,
                                            {shuffle(noise, d)}, lane_);
          if (lane_ == d) drawn = found.drawn[0];
        }
      else
        for (int d = 0; d < draws.distributions; d += 3) {
          const int last = draws.distributions - 1, e = min(d + 1, last), f = min(d + 2, last);
          const DrawInRegisters<3, 8> found({logits(d), logits(e), logits(f)}, levels,
                                            params_.options.inverse_temperature,
                                            {shuffle(noise, d), shuffle(noise, e), shuffle(noise, f)}, lane_);
          if (lane_ == d) drawn = found.drawn[0];
          if (lane_ == d + 1) drawn = found.drawn[1];
          if (lane_ == d + 2) drawn = found.drawn[2];
        }
      if (is_mine && !known) {
        params_.levels[at] = level = max(drawn, 0);
        if (drawn < 0)
          atomic_min(params_.error, error_code(s.row * layout_.width + s.column, s.image, draws.first + lane));
      }
      if (params_.log_probability)
        for (int d = 0; d < draws.distributions; d++) {
          const double log_probability = log_probability_of(shuffle(level, d), logits(d), levels, lane_);
          if (lane_ == d && !known && drawn >= 0) params_.log_probability[at] = log_probability;
        }
      for (int i = 0; i < draws.n_inputs; i++)
        read_levels(in_shared<const InputPlan>(layout_.inputs + (draws.inputs + i) * sizeof(InputPlan)), level,
                    draws.first, index, turn);
    }
  }

  // Turns a site's levels, of which lane c has the c-th from channel `first` on, into a value that the network reads.
  __device__ void read_levels(const InputPlan& input, int level, int first, int site, int turn) {
    const bool numbers = input.width == 1;  // then each lane has a channel, else all have the same one in turn
    for (int c = 0; c < (numbers ? 1 : input.count); c++) {
      const int mine = shuffle(level, input.first - first + (numbers ? lane_ : c));
      for (int k = lane_; k < (numbers ? input.count : input.width); k += 32) {
        const int channel = input.before + c * input.width + k;
        float x[4] = {input.table < 0 ? static_cast<float>(mine)
                                      : constant(input.table + mine * input.width + (numbers ? 0 : k))};
        for (int s = 0; s < input.n_steps; s++) {  // they read constants, or nothing; only x[0] counts
          const StepPlan& step = this->step(input.steps + s);
          float scale[4] = {}, shift[4] = {};
          if (step.reads == Operand::constants)
            scale[0] = constant(step.scale + channel), shift[0] = constant(step.shift + channel);
          apply_formula(step.kind, step.alpha, x, scale, shift);
        }
        store_one(input, x[0], channel, site, turn);
      }
    }
    for (int channel = input.pad_from + lane_; channel < input.pad_to; channel += 32)
      store_one(input, 0, channel, site, turn);
  }

  __device__ void store_one(const InputPlan& input, float x, int channel, int site, int turn) {
    using Stored = decltype(stored<kMath>(x));
    const uint32_t offset = offset_at(channel, site);
    if (input.shared != kNowhere) in_shared<Stored>(input.shared + offset) = stored<kMath>(x);
    if (input.ring != kNowhere)
      *reinterpret_cast<Stored*>(slot_of(turn, input.slot) + input.ring + offset) = stored<kMath>(x);
  }

  static constexpr int kNoRow = -(1 << 20);

  const KernelParams& params_;
  const Layout& layout_;
  const int thread_, warp_, lane_;
  char* const workspace_;
  WeightStream<kAhead> weights_;
  int weight_turn_ = 0;
  Sums sums_;
  int ring_step_ = 0, ring_length_ = 1;  // of the slot that this thread looks after
};

template <Math kMath, int kTiles>
__global__ void __launch_bounds__(kThreads, 1) walk(__grid_constant__ const KernelParams params) {
  Walk<kMath, kTiles>(params).run();
}

}  // namespace pcf::cuda

// A phased causal program laid out for the GPU: what the kernel reads, and where everything lies.
//
// A block of threads samples its images from the first pixel to the last, all layers in every column step. In column
// step t, a value whose lead is l is computed at the sites (y, t + l - lag * y) of all rows in flight and all images of
// the block; sites fill the n side of tensor-core products, in tiles of 8. Whatever a product multiplies lies in
// fragments, each of which a warp reads at once:
//   values   512 bytes, 8 sites x 32 channels (16 of 4 bytes): [site][channel]
//   weights  1024 bytes, 16 output channels x 32 input channels (16), each lane's operands side by side
//
// A column step goes through a list of records. Each is a product, in which a warp computes up to four tiles of 16
// channels at once, its members, and the steps that follow. Between two records all threads meet at a barrier. A record
// multiplies what it reads of earlier column steps before its barrier, from where it was copied one or two records
// ahead, and what this column step has just made after it. Every offset, of shared memory or of the ring, is resolved
// here and not on the device.
#pragma once

#include "cuda/standard.h"
#include "tables.h"

namespace pcf::cuda {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kTileChannels = 16;             // m of a product, whose n is kTileSites
constexpr int kChunkBytes = 16, kChunks = 4;  // of a site in a fragment
constexpr int kSiteBytes = kChunks * kChunkBytes, kFragmentBytes = kTileSites * kSiteBytes;
constexpr int kWeightBytes = 1024;
constexpr int kBatch = 4;                            // fragments that a warp takes from its stream of weights at once
constexpr int kLateBytes = kTileSites * kBatch * 4;  // of a list in a view: [site][fragment]
constexpr int kMostMembers = kBatch;
constexpr uint32_t kNowhere = ~uint32_t{0};  // in place of an offset
constexpr uint32_t kEverySite = 0;           // the edge of what is read at the reader's own site
constexpr uint32_t kInShared = kNowhere;     // in place of a slot
constexpr uint32_t kBarriers = 0;            // in shared memory: two, for barriers in turn (barriers.h),
constexpr uint32_t kUnused = 64;             // where nobody writes,
constexpr uint32_t kBarrierBytes = 128;      // and then all else

// Input channels of a fragment.
constexpr int depth_of(Math math) { return math == Math::fp32 ? 16 : 32; }

// Tiles of sites that a warp has registers for; there is a kernel for each number of them.
constexpr int most_tiles(Math math) { return math == Math::fp32 ? 2 : 8; }

// Of them, tiles that a block may have where rows are sampled one at a time: what that takes, the largest kernels have
// no registers for.
constexpr int kMostRowTiles = 4;

// Batches of weights that a warp has in its registers, or on their way to them.
constexpr int kBatchesAhead = 2;

// Tiles of channels that a warp may compute at once: 1, 2 or 4, as it has registers for the sums.
constexpr int most_members(Math math, int tiles) {
  const int sums = depth_of(math) == 16 ? most_tiles(math) : tiles <= 2 ? 4 : 6;
  return 4 * tiles <= sums ? 4 : 2 * tiles <= sums ? 2 : 1;
}

// Whether a record copies before its barrier, or behind it, which takes longer, but needs less memory at once: with 8
// tiles, more than a block of an H100 has would be needed otherwise, and with 5, copying early was the faster of the
// two.
constexpr bool copies_before_barrier(int tiles) { return tiles <= 5; }

// Where a value is read, seen from the site that reads it. Sites where it would lie outside the grid read zeros.
struct alignas(16) Location {
  uint32_t at = 0;             // in shared memory, or from its slot on
  int shift = 0;               // it lies so many sites before the reader's, cyclically; or, where a sweep computes
                               // several columns at once, so many bytes from one column to the next
  uint32_t edge = kEverySite;  // in a view: the sites where it is in the grid
  uint32_t slot = kInShared;   // in a view: where its ring stands
};

// Of a late batch, for each fragment: where it lies in shared memory, the shift of its place, and its edge, in one
// word.
struct alignas(16) LateBatch {
  uint32_t words[kBatch] = {};

  static constexpr uint32_t kShift = kTileSites - 1, kAt = (1 << 18) - kFragmentBytes / 4, kEdge = ~0u << 18;
  static constexpr int kEdgeBits = 15;  // that an edge is shifted by
  static constexpr uint32_t word(uint32_t at, int shift, uint32_t edge) {
    return at | static_cast<uint32_t>(shift) | edge << kEdgeBits;
  }
};

// Where a site is: the pixel that is drawn in a column step.
struct alignas(16) Site {
  int image, row, column;
  int ahead;  // columns from the first of those that a sweep computes at once
};

// At which sites a read is in the grid: those where both the reader and (row + dy, column + dx) are.
struct alignas(8) Edge {
  int16_t lead, dy, dx, unused;
};

// Where values that something reads lie in the workspace. Those that are kept for equally long share a ring: of so many
// column steps, or, where rows are sampled one at a time, of so many rows, each with all columns.
struct alignas(16) Ring {
  int64_t ring;        // where it begins
  int64_t bytes;       // what one column step leaves there
  int length;          // column steps, or rows
  int age = 0;         // how many column steps ago it was computed,
  int dy = 0, dx = 0;  // or at which pixel, from the reader's
  int stands = 0;      // the device's: at which column step the ring stands, or at which row
  int common = 0;      // whether all blocks of a cluster have the first one's ring; or else each its own
  int unused[2] = {};
};

// A warp's batches of weights in the constants, in the order in which it takes them.
struct alignas(16) Weights {
  int64_t at;
  int bytes;
};

// A sweep over the image or over a row (timeline.h).
struct alignas(16) SweepPlan {
  uint32_t weights;          // a table, of all warps
  uint32_t records;          // a table; a list for all warps,
  int list_bytes;            // or, if this is not 0, one for each warp after the other
  uint32_t first_copies[2];  // records that copy for the first column step, or kNowhere
  uint32_t edge_table, slot_table, late_table;
  int edges, slots, late_batches;
  int first_step, steps;  // in which column step it begins, or in which column; and column steps
  int at_once;            // so many columns at once: the sites of one, then those of the next
  int columns;            // to the next column step
};
constexpr int kMostSweeps = 12;

struct alignas(16) StepPlan {
  StepKind kind;
  Operand reads;
  float alpha;
  int all_channels;  // of the operand, where the step reads all of them; else 0
  Location place;
  int scale, shift;  // where they lie in the constants' floats
  int condition;
  float inverse_channels;
};

// What comes after a record: the next one; before it, what the next column step needs to know is prepared, and, when
// all threads have passed a barrier since then, the lists of what has followed from it; or that step.
enum class AfterRecord : int { next, prepare_next_step, list_late, step };
constexpr int kListLate = 2;  // so many barriers later

constexpr int kBefore = 1, kAfter = 2, kAllCopy = 4;  // bits of `barriers`

// One product of a column step, or something else. Each part is what a thread reads at once.
struct Record {
  // What it copies ahead for a later record, from the workspace: fragments, and the biases.
  struct alignas(16) Copies {
    uint32_t places;
    int count;
    uint32_t staged, bias;   // where to, in shared memory
    int floats, bias_bytes;  // the biases, in the constants' floats
    int next_step;           // whether the later record is one of the next column step
    int chunked;             // whether there is a place for each of the four chunks of a fragment
    int first_warp, warps;   // that copy: those without a tile, if they are as many as the others
  } copies;
  struct alignas(16) Product {
    uint32_t warps;         // bit w: warp w computes a tile, with all members
    int members = 1;        // 1, 2 or 4; a batch has weights of all of them for 4, 2 or 1 fragments of values
    int early_batches;      // before the barrier: one, or an even number
    int late_batches;       // after it; 0: nothing is multiplied at all
    uint32_t staged, late;  // where early fragments, and late ones, begin
    // With one tile of sites, lists in the view say where those of late batches lie. With more, so many are early ones,
    // which go on where those before the barrier end, and the others follow each other; or `late` is the first place.
    int late_staged;
    int at_places;
    uint32_t results;
    int n_results;   // what is made of the sums; none: they go on in the next record
    int draws;       // whether it draws, and does nothing else
    int barriers;    // whether all threads meet, kBefore it (or else it goes on with the record before it), kAfter it;
                     // and whether warps copy that have a tile, too
    int first_tile;  // warp 0's, if it had one
    AfterRecord after;
  } product;
  struct alignas(16) Draw {
    int first, distributions;
    uint32_t inputs;
    int n_inputs;  // what it turns into values
    uint32_t logits;
    int logits_stride;
  } draw;
  // In a cluster: how many bytes the other blocks send of what this record makes; and which values of the record before
  // the barrier it writes to their rings: places that say where they lie, `at`, and where from their slot on, `shift`.
  struct alignas(16) Exchange {
    int bytes;
    int count;
    uint32_t places;
  } exchange;
};

// What is made of a member's sums, or of a value:
//   sum        max(sums + added, least), of all members if they are tiles of one layer
//   gate       tanh(a) * sigmoid(b), in the same way, where the channels of a and b take turns; and a and b themselves,
//              if something else reads them
//   activated  activation(x) * factor + term, where x is the sums or a value
//   steps      what any steps make of x
//   sums       the sums, as float32, of several columns: what products of the next sweep go on with
// or of four members together:
//   lstm       the cell, sigmoid(sums 2) * factor + sigmoid(sums 1) * tanh(sums 0), and with it
//              tanh(cell) * sigmoid(sums 3)
// In a gate and an LSTM, what is stored for no other reader is rounded as if it had been.
enum class Ending : int { sum, activated, steps, sums, gate, lstm };

// Where a value goes: in shared memory, and in its ring, or kNowhere.
struct Target {
  uint32_t shared, ring;
  uint32_t slot;  // of the ring, in a view
};

// Values in shared memory were computed in this column step, or copied ahead, and lie at the result's own site.
struct alignas(16) Result {
  Ending ending;
  int first_channel;                           // of the first tile,
  int tile_channels;                           // and so many between two of them
  uint32_t bias;                               // in shared memory, of the first tile: 16 floats,
  uint32_t bias_tile, bias_site, bias_member;  // and so many bytes on to the next warp's tile, site, member
  Target to;
  uint32_t logits;  // where an output goes; float32 [site][logits_stride]; else kNowhere
  union {
    struct {
      uint32_t added;  // in shared memory, or kNowhere
      float least;
    } sum;
    struct {
      uint32_t from, factor, term;  // in shared memory, or kNowhere; no `from`: the sums
    } activated;
    struct {
      uint32_t column_bytes;  // from one column to the next
    } sums;
    struct {
      int rounds_tanh;  // or else the other factor
      int keeps_sums;
      Target sums[2];
    } gate;
    struct {
      uint32_t factor;  // in shared memory
      Target cell;
    } lstm;
    struct {
      uint32_t starts;  // the place of the value that the steps start from, or kNowhere: the sums
      uint32_t first;
      int count, channels;  // of the instruction
    } steps;
  };
  StepKind activation;  // relu, sigmoid or tanh; any other: none
  int logits_stride;
  int lead;        // of the instruction
  int takes_sums;  // whether a member's sums are done with
};

// An instruction that reads levels, and the image channels that a draw gives it.
struct alignas(16) InputPlan {
  int first, count;   // image channels
  int before;         // channels of the value that belong to image channels before the first
  int width;          // channels that a level becomes: row `level` of a table, for each image channel the next `floats`
  int table, floats;  // in the constants' floats
  uint32_t near;      // the tables in shared memory, if they are small; else kNowhere
  int pad_from, pad_to;  // channels that fill up its fragments, if this draw is to write them
  Target to;
};

// Conditions lie one after the other, each [images, channels] or [images, H, W, channels].
struct ConditionPlan {
  int channels, varies_over_pixels;
  int64_t before;  // numbers in the operands before it, for one image
};

// The part of a plan that the kernel takes by value. Offsets are in bytes.
struct Layout {
  int image_channels, height, width;
  int levels;              // of a distribution
  int images;              // of a block
  int most_images;         // for which it has sites
  int rows, lag, period;   // rows in flight; a row's place is free for another after `period` column steps
  int sites, tiles;        // rows * images, and tiles of 8 for them
  int cluster;             // so many blocks share the images, and each computes some of the channels; 1: no cluster
  int by_rows;             // whether rows are sampled one at a time
  int first_row, end_row;  // in which order the sweeps are done; only one "row" if there is a wavefront
  int n_sweeps;
  SweepPlan sweeps[kMostSweeps];
  // Tables: they lie at the beginning of the constants, those of a cluster's blocks one after the other, and are copied
  // to shared memory, `tables`. What is said to be in a table lies in shared memory, too.
  uint32_t tables, table_bytes, conditions;
  // In shared memory, of this column step and the next in turn: a view, which says where its sites are, then where its
  // slots are, then which sites each edge has, and then, with one tile of sites, the lists of late batches.
  uint32_t first_view, both_views;  // the sum of both, so that each tells the other
  uint32_t view_of_slots, view_of_edges, view_of_late;
  uint32_t zeros;           // a site of zeros
  int64_t floats;           // in the constants
  int64_t workspace_bytes;  // of a block: its rings
};

// How levels are drawn. A warp need not divide.
struct DrawOptions : SamplingOptions {
  float inverse_temperature;  // 0: the most likely level
};

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

}  // namespace pcf::cuda

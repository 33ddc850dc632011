// The instructions of a packed program, and the order in which they have their turns.
#pragma once

#include <vector>

#include "cpu/sampler/filter.h"
#include "cpu/sampler/grids.h"
#include "cpu/simd/kernels.h"
#include "program.h"

namespace pcf::cpu {

struct PackedRun : Run {
  Packed packed;
  bool is_ahead = false;    // whether all that it reads is there a pixel before, so that it is summed for two at once
  int points = 1;           // of its instruction's filter, at each of which it has weights; 1: it is not filtered
  int64_t point_bytes = 0;  // from one point's weights to the next one's

  bool is_filtered() const { return points > 1; }
  Packed at(int point) const {
    Packed weights = packed;
    weights.data = static_cast<const char*>(packed.data) + point * point_bytes;
    return weights;
  }
};

template <class T>
struct PackedStep : Step {
  std::vector<T> scales, shifts;

  bool is_sum() const { return kind == StepKind::add && static_cast<T>(alpha) == 1; }
};

// What an instruction finds at the pixels of a lattice: the runs and operands that are not there are zero.
struct Part {
  Lattice where;
  std::vector<const PackedRun*> row_runs = {}, ahead_runs = {}, pixel_runs = {}, runs = {};  // runs: all, in order
  bool has_value = true;                // what a pointwise instruction starts from
  std::vector<bool> has_operands = {};  // by step
};

// An instruction whose runs and steps have their own copies of what the program only borrows.
template <class T>
struct PackedInstruction : Instruction {
  std::vector<PackedRun> row_runs = {}, pixel_runs = {};  // in place of the instruction's
  std::vector<PackedStep<T>> steps = {};
  std::vector<T> table = {}, biases = {};               // biases: padded to whole blocks
  std::vector<T> scale = {}, added = {}, factors = {};  // of an attention
  int padded = 0;
  bool is_output = false;
  bool ends_in_products = false;  // whether the last product can apply the steps
  Lattice grid = {};
  std::vector<Part> parts = {};       // of its grid
  const Filter<T>* filter = nullptr;  // of some of its row runs, or null

  // Whether it is computed for a whole row at once.
  bool by_rows() const { return !in_scan(*this) && ((phase == Phase::row && !is_output) || phase == Phase::finished); }
  // Whether it is computed pixel by pixel, scans apart.
  bool is_at_pixels() const {
    return !reads_image(*this) && (phase != Phase::row || is_output) && phase != Phase::finished;
  }
  // Whether its sum over row runs is kept until its pixel's turn comes.
  bool keeps_partial() const { return !row_runs.empty() && !by_rows(); }
};

// What is computed for a whole row, and does not need each other: instructions, and scans, each of which one thread
// goes through. Scans are numbered by the instruction that they begin with.
struct Stage {
  std::vector<int> by_rows, scans;
};

// Instructions begin ... end - 1, of which nothing needs drawing in a row that is known: one, or a loop, in which they
// read what later ones computed at pixels before, so that it goes through the row pixel by pixel.
struct KnownStage {
  int begin, end;
  bool is_loop;
  int rows;  // how many of the rows before the first that is drawn are needed of them
};

// What is computed of an instruction where its turn has come: for a whole row, or at a pixel.
template <class T>
struct Visit {
  const PackedInstruction<T>* instruction;
  const Part* part;             // of the pixel; a row has all of them
  bool barrier;                 // whether another thread may still be writing what is read
  const Visit* next = nullptr;  // at the same pixel, the next one that begins with sums over row runs
};

}  // namespace pcf::cpu

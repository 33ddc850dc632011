// The order in which a column step computes a program's values, and when what it reads was computed.
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <vector>

#include "cuda/plan.h"

namespace pcf::cuda {

using Instructions = std::vector<const Instruction*>;

// Reads nearer than this are of shared memory, as other threads may still be writing what would be copied (in a
// cluster, one record later than else; but the order of a sum must not depend on that). And a column step has as many
// records, since the last ones copy for the next step by what the first has found out.
constexpr int kVisible = 5;

// A value that something reads at (row + dy, column + dx), and how many column steps ago that was computed; kLongAgo:
// in another sweep.
constexpr int kLongAgo = 1 << 16;
struct Read {
  int value, dy, dx, age;
};

struct Tap {
  Read read;
  const float* weight;  // [channels of the value, channels of the instruction]
};

// What a column step does at one place of its order: a group of instructions that one record can compute, or a draw.
// A group has up to kMostMembers convolutions that multiply the same values, such as the gates of an LSTM, and what is
// computed from their results, channel by channel.
struct Entry {
  Instructions group;  // empty: a draw
  int draw = -1;       // the draw, or the one that the instruction is the output of
  int depth = 0;       // entries of the same depth read nothing of each other in a column step
};

// A block goes over its pixels in sweeps. A program with a wavefront has one, for the whole image; else rows are
// sampled one at a time, and each sweep goes over a row, from the left or from the right. In each column step it goes
// through its entries.
struct Sweep {
  int first, end;  // entries, in the order of their depths
  int depths;
  int direction = 1;  // -1: from the right
  bool sums = false;  // whether all entries sum up, of several columns at once, what the next sweep's are to go on with
};

inline bool is_product(const Instruction* i) { return traits(i->kind).sums; }

struct Timeline {
  // lag: how many columns behind the row above a row starts, at least the program's, if it has a wavefront. The program
  // is borrowed.
  Timeline(const Program&, int lag);

  // Values are the program's and, behind them, sums over what was computed before a sweep, which are float32.
  int values() const { return static_cast<int>(program.storage.size() + sums_by_value.size()); }
  bool is_sums(int value) const { return value >= static_cast<int>(program.storage.size()); }
  int channels(int value) const {
    return is_sums(value) ? instruction(value).channels : program.storage[value].channels;
  }
  int sums_of(int value) const { return sums_by_value.count(value) ? sums_by_value.at(value) : -1; }  // or -1
  const Instruction& instruction(int value) const { return *by_value.at(value); }

  bool by_rows() const { return program.lag == 0; }
  int draws() const { return static_cast<int>(program.outputs.size()); }
  int distributions_per_draw() const { return program.head.distributions / draws(); }
  int draw_of(int value) const;  // that draws from it, or -1

  std::vector<Tap> taps(const Instruction&) const;
  Read read(const Instruction&, int value, int dy, int dx) const;
  const Sweep& sweep_of(int entry) const;
  int depth(int value) const { return entries[order.at(value).first].depth; }

  // How many records at least an entry comes after what computes the value that it reads: a depth is one record or
  // more. So this does not depend on how many records there are in the end.
  int distance(int entry, const Read& read) const {
    if (read.age == kLongAgo) return kLongAgo;
    return read.age * std::max(sweep_of(entry).depths, kVisible) + entries[entry].depth - depth(read.value);
  }

  const Program& program;
  const int lag;
  std::vector<Entry> entries;
  std::vector<Sweep> sweeps;
  std::vector<int> readers;                  // of each value: how many taps, steps and instructions read it
  std::map<int, std::pair<int, int>> order;  // of a value: the last entry that computes it, and the place in it
  std::map<int, const Instruction*> by_value;
  std::deque<Instruction> added;  // sums, and in place of the program's what goes on with them
  std::map<int, int> sums_by_value;
};

}  // namespace pcf::cuda

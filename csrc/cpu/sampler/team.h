// The threads that sample some images together, and what each of them has for itself.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/sampler/head.h"
#include "cpu/sampler/packed_program.h"
#include "cpu/sampler/schedule.h"
#include "cpu/threads/barrier.h"

namespace pcf::cpu {

// Threads that share the channels of everything that they compute.
struct Team {
  explicit Team(int size) : size(size), staying(size), barrier(size), progress(size) {}

  const int size;
  std::atomic<int> staying;  // so many of its members, the first ones, go on after the present column step
  SpinBarrier barrier;
  Progress progress;  // column steps done, if there are two teams
};

// Where the sites of a span lie: a site is one pixel of one image. A table has a row per site, pixel by pixel, and of
// each pixel image by image.
template <class T>
using Table = std::vector<T*>;

constexpr int kPairsTogether = 48;  // of columns: so many that what a filter has at its points stays in L2

template <class T>
struct Member {
  // sites: how many sites one column step works on at most.
  Member(Team& team, int index, const PackedProgram<T>& p, int chunk, const Span& span, int sites, const Head& head,
         const Job& job)
      : team(team), index(index), size(team.size), span(span),
        memory((sums(p, chunk, sites) + head.parameters) * static_cast<int64_t>(sizeof(T))),
        at_points(filtered(p) * static_cast<int64_t>(sizeof(T))),
        drawer(head, job, p.kernels, static_cast<T*>(memory.data()) + sums(p, chunk, sites)), operands(p.most_steps),
        most_keys(p.most_keys) {
    pixel_sums = rows_from(static_cast<T*>(memory.data()), sites, p.widest);
    row_sums = rows_from(static_cast<T*>(memory.data()), sites * chunk, p.widest_row);
    for (auto* table : {&x, &from, &out, &next}) table->resize(sites * chunk);
    weights.resize(p.most_keys + p.widest_head);
    for (auto* table : {&rounded, &rounded_out}) table->resize(sites * chunk);
    for (auto& table : operands) table.resize(sites * chunk);
  }

  // Elements of the largest table of sums.
  static int64_t sums(const PackedProgram<T>& p, int chunk, int sites) {
    return std::max(p.widest, p.widest_row * chunk) * int64_t{sites};
  }

  // Elements of what a filter has at its points, before and after products.
  static int64_t filtered(const PackedProgram<T>& p) {
    return int64_t{2} * p.most_points * kPairsTogether * p.widest_filtered;
  }

  void wait_for_team() { waited += team.barrier.wait(index, size); }

  // The member's blocks of so many: first...last-1.
  std::pair<int, int> share(int blocks) const {
    if (alone) return {0, blocks};
    return {blocks * index / size, blocks * (index + 1) / size};
  }

  Team& team;
  const int index;
  int size;       // of the team that is left
  Waited waited;  // since the last look at how long it worked
  Clock::time_point since = Clock::now();
  Clock::duration run_before = time_run();
  bool alone = false;  // whether it computes all channels
  Span span;
  const Block memory;
  const Block at_points;  // of a filter: columns, then sums
  HeadDrawer<T> drawer;
  Table<T> pixel_sums, row_sums;  // of one instruction, at the pixels of a column step and of a chunk
  Table<T> x, from, out;
  Table<T> next;  // what the next instruction begins with, in this column step
  const PackedInstruction<T>* prefetched_for = nullptr;
  int next_step = 0;
  Table<Bfloat16> rounded, rounded_out;  // x and out, where they are kept in bf16
  std::vector<Table<T>> operands;
  std::vector<BoundStep<T>> steps;
  std::vector<T> weights;  // of an attention: of each key; then the channels of one head
  T* of_head() { return weights.data() + most_keys; }
  const int most_keys;
};

}  // namespace pcf::cpu

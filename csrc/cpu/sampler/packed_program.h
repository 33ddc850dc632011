// A program packed for the CPU: its weights, padded to whole blocks, and barriers where threads must wait for each
// other.
#pragma once

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "cpu/memory/pool.h"
#include "cpu/sampler/packed_instruction.h"
#include "cpu/sampler/schedule.h"
#include "cpu/simd/kernels.h"
#include "program.h"

namespace pcf::cpu {

template <class T>
class PackedProgram {
 public:
  PackedProgram(const Program& program, WeightFormat format, const Kernels<T>& kernels)
      : kernels(kernels), narrow(format == WeightFormat::bf16) {
    for (const auto& s : program.storage) depth = std::max(depth, s.rows - 1);
    set_rounded(program, format);
    pack(program, format);
    set_known_stages(program);
    set_filters(program);
    pack_weights();
    const auto scans_before = [](const auto& i) { return in_scan(i) && i.phase == Phase::row; };
    if (std::any_of(instructions.begin(), instructions.end(), scans_before)) before_row = stages_of(Phase::row);
    after_row = stages_of(Phase::finished);
    set_visits(program);
    count_work(program);
  }

  const Kernels<T>& kernels;
  std::vector<PackedInstruction<T>> instructions;
  std::vector<const PackedInstruction<T>*> inputs, outputs;
  std::vector<Stage> before_row, after_row;       // before_row: empty if there are no scans, when no stages are needed
  std::vector<KnownStage> known_stages;           // of a row that is known
  bool is_recurrent = false;                      // whether one reads what is computed after it, at pixels before
  Lattice cell;                                   // tells which pixels exist in all values
  std::vector<std::vector<Visit<T>>> row_visits;  // by row of the cell
  std::vector<std::vector<std::vector<Visit<T>>>> pixel_visits;  // by place in the cell, and by draws that come before
  std::optional<ZeroedBlock> weights;
  int64_t weight_bytes = 0;
  std::vector<bool> rounded;  // which values are kept in bf16, too, for the products that read them
  int depth = 0;              // the furthest row above that anything reads
  int widest = 0;             // channels of the widest instruction, padded
  int widest_row = 0;         // of the widest in the row phase
  int most_points = 0;        // of a filter
  int widest_filtered = 0;    // channels that one reads or writes
  int most_steps = 0;         // of an instruction
  const bool narrow;          // whether what attention reads is kept in bf16
  int most_keys = 0;          // of an attention, in whole blocks
  int widest_head = 0;        // channels of a head's values
  int widest_absent = 0;      // channels of what is read where it does not exist
  ProgramWork work;

  const std::vector<Visit<T>>& visits_in_row(int y) const { return row_visits[y % cell.every_y]; }
  // At a pixel; where rows are in flight, all values exist at all of them.
  const std::vector<Visit<T>>& visits_at(int y, int x, int after) const {
    return pixel_visits[y % cell.every_y * cell.every_x + x % cell.every_x][after];
  }

 private:
  int blocks(int channels) const { return (channels + kernels.block - 1) / kernels.block; }

  // The row phase reads its weights once per row, where widening narrow ones would only cost time.
  WeightFormat of_rows(WeightFormat format) const { return kernels.multiplies_bf16() ? format : WeightFormat::same; }

  void set_rounded(const Program& program, WeightFormat format) {
    rounded.resize(program.storage.size());
    if (format != WeightFormat::bf16 || !kernels.multiplies_bf16()) return;
    for (const auto& i : program.instructions)
      for (const auto* runs : {&i.row_runs, &i.pixel_runs})
        for (const auto& run : *runs)
          rounded[run.source] = program.storage[run.source].channels % kernels.depths_of_rounded == 0;
  }

  // The pixel phase streams its weights once per pixel, so they lie together, in the order of use, and are narrow if
  // the user asks for that.
  void pack(const Program& program, WeightFormat format) {
    const int64_t pixels = int64_t{program.height} * program.width;
    const auto copy = [](const void* from, int64_t n) {
      const T* values = static_cast<const T*>(from);
      return from ? std::vector<T>(values, values + n) : std::vector<T>();
    };
    constexpr int64_t kHeld = 2 << 20;  // bytes, by the cores' own caches
    int64_t bytes = 0;
    for (const auto& i : program.instructions)
      for (const auto& run : i.pixel_runs) bytes += layout(program, run, format).block_bytes * blocks(i.channels);
    streams_ = bytes > kHeld;
    instructions.reserve(program.instructions.size());  // parts point to them
    for (const auto& i : program.instructions) {
      PackedInstruction<T>& p = instructions.emplace_back(PackedInstruction<T>{i});
      p.grid = grid(program.storage[i.out]);
      p.is_output = std::count(program.outputs.begin(), program.outputs.end(), i.out) > 0;
      p.table = copy(i.input.table, i.input.levels * i.input.width);
      p.padded = blocks(i.channels) * kernels.block;
      p.biases = copy(i.bias, i.channels);
      p.biases.resize(p.padded);
      const int64_t pairs = pixels * i.attention.keys * i.attention.tables;
      p.scale = copy(i.attention.scale, pairs), p.added = copy(i.attention.added, pairs);
      p.factors = copy(i.attention.factors, pairs);
      if (i.kind == InstructionKind::attention) {
        most_keys = std::max(most_keys, divided_up(i.attention.keys, kKeysTogether) * kKeysTogether);
        widest_head = std::max(widest_head, values_channels(program, i.attention) / i.attention.heads);
      }
      p.attention.scale = p.attention.added = p.attention.factors = nullptr;
      for (const auto& run : i.row_runs) p.row_runs.push_back({run, layout(program, run, of_rows(format))});
      for (const auto& run : i.pixel_runs)
        for (const auto& [part, is_ahead] : parted(program, p, run))
          p.pixel_runs.push_back({part, layout(program, part, format), is_ahead});
      for (const auto& s : i.steps) p.steps.push_back({s, copy(s.scale, i.channels), copy(s.shift, i.channels)});
      p.ends_in_products = in_products(p);
      set_parts(program, p);
      Instruction& borrowing = p;  // from the program, which may be gone later
      borrowing.row_runs.clear(), borrowing.pixel_runs.clear(), borrowing.steps.clear();
      borrowing.bias = borrowing.input.table = nullptr;
      for (auto& s : p.steps) s.scale = s.shift = nullptr;
    }
    for (const auto& p : instructions) {
      if (reads_image(p)) inputs.push_back(&p);
      widest = std::max(widest, p.padded);
      if (p.by_rows()) widest_row = std::max(widest_row, p.padded);
      most_steps = std::max<int>(most_steps, p.steps.size());
    }
    for (int output : program.outputs)
      for (const auto& p : instructions)
        if (p.out == output) outputs.push_back(&p);
  }

  // Row runs of several taps are summed at the points of a filter if columns can be paired, in all schedules alike,
  // since that rounds otherwise; and if they have many weights: else products of half the rows take as long.
  void set_filters(const Program& program) {
    constexpr int64_t kLeastWeights = 1 << 19;
    std::vector<bool> in_loop(instructions.size());
    for (const auto& stage : known_stages)
      if (stage.is_loop) std::fill(in_loop.begin() + stage.begin, in_loop.begin() + stage.end, true);
    for (auto& p : instructions) {
      const bool in_pairs = program.width % Filter<T>::kColumns == 0 && p.lead % Filter<T>::kColumns == 0 &&
                            p.parts.size() == 1 && p.parts[0].where == Lattice{} && !in_scan(p) &&
                            !in_loop[&p - instructions.data()];
      if (!in_pairs) continue;
      std::map<int, int64_t> weights;  // by taps, of the runs that a filter can sum
      const auto can = [&](const PackedRun& run) {
        const Storage& source = program.storage[run.source];
        return run.width >= Filter<T>::kLeastTaps && run.width <= Filter<T>::kMostTaps &&
               source.channels % kernels.block == 0 && run.packed.format == WeightFormat::same;
      };
      for (const auto& run : p.row_runs)
        if (can(run)) weights[run.width] += int64_t{run.packed.depth} * p.channels;
      const auto most = std::ranges::max_element(weights, {}, [](const auto& entry) { return entry.second; });
      if (most == weights.end() || most->second < kLeastWeights) continue;
      p.filter = &filters_.try_emplace(most->first, most->first).first->second;
      most_points = std::max(most_points, p.filter->points);
      for (auto& run : p.row_runs) {
        if (!can(run) || run.width != p.filter->taps) continue;
        const int channels = program.storage[run.source].channels;
        run.points = p.filter->points, run.packed = packed(channels, run.packed.format);
        run.point_bytes = run.packed.block_bytes * blocks(p.channels);
        widest_filtered = std::max({widest_filtered, channels, p.padded});
      }
    }
  }

  void pack_weights() {
    const auto bytes = [&](const PackedInstruction<T>& i, const PackedRun& run) {
      return run.points * run.packed.block_bytes * blocks(i.channels);
    };
    each_run([&](const PackedInstruction<T>& i, PackedRun& run) { weight_bytes += bytes(i, run); });
    char* next = weights.emplace(weight_bytes, false).get();
    each_run([&](const PackedInstruction<T>& i, PackedRun& run) {
      const T* const weight = static_cast<const T*>(run.weight);
      const auto pack = [&](const T* matrix, char* to) {
        kernels.pack(matrix, run.packed.depth, i.channels, run.packed.format, to);
      };
      if (!run.is_filtered()) pack(weight, next);
      for (int point = 0; run.is_filtered() && point < run.points; point++) {
        const int n = run.packed.depth * i.channels;
        std::vector<T> at_point(n);
        T* const out = at_point.data();
        kernels.mix({weight, n, run.width}, i.filter->of_weights.data() + point * run.width, 1, nullptr, &out, n);
        pack(out, next + point * run.point_bytes);
      }
      run.packed.data = next, run.weight = nullptr;
      next += bytes(i, run);
    });
  }

  // A run of a pixel phase: in two where its first taps read what is there a pixel before, if streaming the weights of
  // pixels takes longer than more calls, since caches do not hold them.
  std::vector<std::pair<Run, bool>> parted(const Program& program, const PackedInstruction<T>& p,
                                           const Run& run) const {
    const int first = -1 - run.dx;  // how many taps are left of the pixel before
    const bool is_whole = p.grid == Lattice{} && grid(program.storage[run.source]) == Lattice{};
    const bool can = p.keeps_partial() && !in_scan(p) && is_whole && first > 0 && first < run.width;
    if (!can || !streams_) return {{run, false}};
    Run ahead = run, rest = run;
    ahead.width = first, rest.width -= first, rest.dx = -1;
    rest.weight =
        static_cast<const T*>(run.weight) + int64_t{first} * program.storage[run.source].channels * p.channels;
    return {{ahead, true}, {rest, false}};
  }

  Packed layout(const Program& program, const Run& run, WeightFormat format) const {
    return packed(run.width * program.storage[run.source].channels, format);
  }
  Packed packed(int depth, WeightFormat format) const {
    return {nullptr, depth, kernels.block_bytes(depth, format), format};
  }

  // In the order in which weights are packed: first those of all pixel phases.
  void each_run(const auto& f) {
    for (auto runs : {&PackedInstruction<T>::pixel_runs, &PackedInstruction<T>::row_runs})
      for (auto& i : instructions)
        for (PackedRun& run : i.*runs) f(i, run);
  }

  // Whether its steps are a sum, then relu, or fewer; products read and write whole blocks, and an output has room.
  static bool in_products(const PackedInstruction<T>& p) {
    const auto first = p.steps.begin() + (!p.steps.empty() && p.steps[0].is_sum());
    const bool ends = first == p.steps.end() || (first->kind == StepKind::relu && first + 1 == p.steps.end());
    return ends && (p.channels == p.padded || (p.is_output && p.steps.empty()));
  }

  // Its pixels, by what they find.
  void set_parts(const Program& program, PackedInstruction<T>& p) {
    Lattice all = p.grid;
    for_each_read(p, [&](int value, int, int) { all = common(all, grid(program.storage[value])); });
    const auto finds = [&](const Lattice& where, int value, int dy, int dx) {
      return cpu::finds(where, grid(program.storage[value]), dy, dx);
    };
    for_each_place(all, p.grid, [&](const Lattice& where) {
      Part& part = p.parts.emplace_back(where);
      for (const auto& run : p.row_runs)
        if (finds(where, run.source, run.dy, run.dx)) part.row_runs.push_back(&run);
      for (const auto& run : p.pixel_runs)
        if (finds(where, run.source, run.dy, run.dx))
          (run.is_ahead ? part.ahead_runs : part.pixel_runs).push_back(&run);
      for (const auto* runs : {&part.row_runs, &part.ahead_runs, &part.pixel_runs})
        part.runs.insert(part.runs.end(), runs->begin(), runs->end());
      part.has_value = p.value < 0 || finds(where, p.value, p.dy, p.dx);
      for (const auto& s : p.steps) {
        part.has_operands.push_back(!reads_value(s) || finds(where, s.operand, s.dy, s.dx));
        if (!part.has_operands.back()) widest_absent = std::max(widest_absent, program.storage[s.operand].channels);
      }
      if (!part.has_value) widest_absent = std::max(widest_absent, p.channels);
    });
  }

  // What is computed for a whole row in this phase: an instruction, or a scan, is in the stage after those that it
  // reads in the present row.
  std::vector<Stage> stages_of(Phase phase) const {
    std::vector<Stage> stages;
    std::map<int, int> stage;  // by value; the others are known before the first
    for (size_t begin = 0, end; begin < instructions.size(); begin = end) {
      end = begin + 1;
      if (instructions[begin].phase != phase || instructions[begin].is_output) continue;
      if (in_scan(instructions[begin]))
        while (end < instructions.size() && instructions[end].scan == instructions[begin].scan) end++;
      int needed = 0;
      for (size_t k = begin; k < end; k++)
        for_each_read(instructions[k], [&](int value, int dy, int) {
          if (const auto found = stage.find(value); dy == 0 && found != stage.end())
            needed = std::max(needed, found->second + 1);
        });
      for (size_t k = begin; k < end; k++) stage[instructions[k].out] = needed;
      stages.resize(std::max<size_t>(stages.size(), needed + 1));
      (in_scan(instructions[begin]) ? stages[needed].scans : stages[needed].by_rows).push_back(begin);
    }
    return stages;
  }

  void set_known_stages(const Program& program) {
    constexpr int kAll = 1 << 30;
    std::vector<int> producer(program.storage.size(), -1), needed(program.storage.size());
    for (size_t k = 0; k < instructions.size(); k++)
      if (!reads_image(instructions[k])) producer[instructions[k].out] = k;  // else it is there
    for (int begin = 0, end; begin < static_cast<int>(instructions.size()); begin = end) {
      KnownStage stage{begin, begin + 1, false, 0};
      for (int k = begin; k < stage.end; k++)
        for_each_read(instructions[k], [&](int value, int dy, int) {
          if (dy == 0 && producer[value] >= k)
            stage.is_loop = true, stage.end = std::max(stage.end, producer[value] + 1);
        });
      end = stage.end;
      if (!reads_image(instructions[begin])) known_stages.push_back(stage);
    }
    const auto set_rows = [&](KnownStage& stage) {
      const auto each_read = [&](const auto& f) {
        for (int k = stage.begin; k < stage.end; k++) for_each_read(instructions[k], f);
      };
      for (int k = stage.begin; k < stage.end; k++) stage.rows = std::max(stage.rows, needed[instructions[k].out]);
      each_read([&](int value, int dy, int) {
        if (producer[value] >= stage.begin) is_recurrent = true;
        if (producer[value] >= stage.begin && dy != 0) stage.rows = kAll;  // the rows above, and so on
      });
      each_read(
          [&](int value, int dy, int) { needed[value] = std::max(needed[value], std::min(stage.rows - dy, kAll)); });
    };
    for (int times = 0; times < 2; times++)  // a recurrence needs what comes after it
      std::for_each(known_stages.rbegin(), known_stages.rend(), set_rows);
    std::erase_if(known_stages, [&](const KnownStage& s) { return instructions[s.begin].is_output; });
  }

  // Each thread owns some channels, the same ones in all values of equal width. So what a pointwise instruction starts
  // from, and a step's operand, is the thread's own. But whatever reads all channels of a value also reads those of
  // other threads: if the value was written since the last barrier, there is a barrier before the read, which serves
  // all writes before it. There is also one between the sums over row runs and the pixels, and two at each draw.
  //
  // That is found for each row and place of the cell, as not all instructions have their turn there.
  void set_visits(const Program& program) {
    const int draws = program.outputs.size();
    cell = cpu::cell(program);
    std::set<int> written;
    const auto visit = [&](const PackedInstruction<T>& i, const Part* part, const auto& runs, const auto& steps) {
      bool reads = false;
      for (const PackedRun* run : runs) reads |= written.count(run->source) > 0;
      for (const auto& step : steps) reads |= traits(step.kind).reads_all_channels && written.count(step.operand);
      for_each_attended(i.attention, [&](int value, int) { reads |= written.count(value) > 0; });
      if (reads) written.clear();
      return Visit<T>{&i, part, reads};
    };
    const auto pixels_after = [&](const Lattice& place, int after) {
      std::vector<Visit<T>> visits;
      for (const auto& i : instructions)
        if (i.after == after && i.is_at_pixels())
          for (const Part& part : i.parts)
            if (part.where.has(place.y0, place.x0)) {
              visits.push_back(visit(i, &part, part.pixel_runs, i.steps));
              written.insert(i.out);
            }
      return visits;
    };
    // What is computed after a pixel's last draw is read by the next sums over row runs, or, if there are none in
    // between, by the next pixel.
    std::vector<std::set<int>> last_written;  // by place
    for_each_place(cell, {}, [&](const Lattice& place) {
      auto& visits = pixel_visits.emplace_back(draws + 1);
      written.clear();
      visits[draws] = pixels_after(place, draws);
      last_written.push_back(written);
    });
    for (int y = 0; y < cell.every_y; y++) {
      written.clear();
      const int above = floor_mod(y - 1, cell.every_y) * cell.every_x;
      for (int x = 0; x < cell.every_x; x++)
        written.insert(last_written[above + x].begin(), last_written[above + x].end());
      auto& visits = row_visits.emplace_back();
      for (const auto& i : instructions) {
        const bool in_row_phase = i.phase == Phase::row && (before_row.empty() || i.is_output);
        const bool for_pixels = (i.phase == Phase::pixel || i.phase == Phase::drawn) && i.keeps_partial();
        if ((!in_row_phase && !for_pixels) || y % i.grid.every_y) continue;
        std::vector<const PackedRun*> runs;
        for (const Part& part : i.parts)
          if (part.where.has_row(y)) runs.insert(runs.end(), part.row_runs.begin(), part.row_runs.end());
        visits.push_back(visit(i, nullptr, runs, i.keeps_partial() ? std::vector<PackedStep<T>>() : i.steps));
        if (!i.keeps_partial()) written.insert(i.out);
      }
    }
    size_t number = 0;
    for_each_place(cell, {}, [&](const Lattice& place) {
      const int before = place.y0 * cell.every_x + floor_mod(place.x0 - 1, cell.every_x);
      written = last_written[before];
      auto& visits = pixel_visits[number++];
      for (int draw = 0; draw < draws; draw++) {
        visits[draw] = pixels_after(place, draw);
        written.clear();
      }
      const Visit<T>* next = nullptr;
      for (int after = draws; after >= 0; after--)
        for (auto v = visits[after].rbegin(); v != visits[after].rend(); v++) {
          v->next = next;
          if (v->instruction->keeps_partial()) next = &*v;
        }
    });
  }

  // What takes this of float32 takes so many times as much of T.
  static constexpr double kOfElement = double{sizeof(T)} / sizeof(float);

  // Adds what runs take of a thread, whose result has so many channels. rows, pixels: the share of these that have
  // them.
  void count_runs(Work& work, const Program& program, const std::vector<const PackedRun*>& runs, int channels,
                  double rows, double pixels) const {
    for (const PackedRun* run : runs) {
      const bool is_bf16 = run->packed.format == WeightFormat::bf16 && kernels.multiplies_bf16();
      // At its points, a filter has one product for each pair of columns.
      const double products = run->is_filtered() ? double(run->points) / Filter<T>::kColumns : 1;
      work.products += pixels * (is_bf16 ? 0.5 : kOfElement) * products * run->packed.depth * channels;
      work.bytes += rows * run->points * run->packed.block_bytes * blocks(channels);
      work.reads += pixels * kOfElement * program.storage[run->source].channels;  // it has read the other pixels before
    }
  }

  void count_attention(Work& work, const Program& program, const Attention& a) const {
    constexpr int kOfKey = 40;  // the cost of a score and of its exp, besides the products
    int64_t keys = 0;
    for (const KeyRange& range : a.ranges) keys += range.end - range.first;
    const double mean = double(keys) / a.tables / (double{1} * program.height * program.width);
    const int depth = a.query < 0 ? 0 : program.storage[a.query].channels;
    const int channels = depth + values_channels(program, a);
    work.products += kOfElement * mean * channels;
    work.attended += mean * channels * (narrow && !a.of_condition ? sizeof(Bfloat16) : sizeof(T));
    work.elements += kOfElement * mean * a.heads * kOfKey;
    work.reads += kOfElement * depth;
  }

  void count_work(const Program& program) {
    for (const auto& i : instructions) {
      Work& sums = work.partial_sums.emplace_back();
      Work& rest = i.by_rows() ? work.row_phase : work.pixels;
      Work& above = i.keeps_partial() ? sums : rest;
      for (const Part& part : i.parts) {
        const double rows = 1.0 / part.where.every_y, pixels = rows / part.where.every_x;
        count_runs(above, program, part.row_runs, i.padded, rows, pixels);
        count_runs(rest, program, part.ahead_runs, i.padded, pixels / 2, pixels);
        count_runs(rest, program, part.pixel_runs, i.padded, i.by_rows() ? rows : pixels, pixels);
      }
      const double rows = 1.0 / i.grid.every_y, pixels = rows / i.grid.every_x, kept = pixels * i.padded * sizeof(T);
      rest.calls += i.by_rows() ? rows : pixels, rest.values += kept;
      if (i.keeps_partial()) sums.calls += rows, sums.values += kept;
      if (i.kind == InstructionKind::attention) {
        count_attention(rest, program, i.attention);
        work.attends_in_rows |= i.by_rows();
      }
      for (const auto& step : i.steps) rest.elements += pixels * kOfElement * i.channels * traits(step.kind).cost;
      work.longest_lead = std::max(work.longest_lead, i.lead);
    }
    if (most_points > 0) work.columns_together = Filter<T>::kColumns;
    for (const auto& s : program.storage)
      work.cached += double(narrow ? sizeof(Bfloat16) : sizeof(T)) * (s.keys + s.values) * s.channels * program.height *
                     program.width;
    for (const auto& visits : row_visits)
      for (const auto& v : visits) {
        const auto number = v.instruction - instructions.data();
        (v.instruction->keeps_partial() ? work.partial_sums[number] : work.row_phase).barriers +=
            v.barrier / (double{1} * row_visits.size());
      }
    for (const auto& place : pixel_visits)
      for (const auto& visits : place)
        for (const auto& v : visits) work.pixels.barriers += v.barrier / (double{1} * pixel_visits.size());
    constexpr int kOfParameter = 60;  // the cost of drawing from it
    work.pixels.elements += double{kOfParameter} * program.head.parameters * program.head.distributions;
    work.pixels.barriers += 2 * outputs.size();
    work.row_phase.barriers++;
    work.most_threads = widest / kernels.block;
  }

  std::map<int, Filter<T>> filters_;  // by taps
  bool streams_ = false;              // whether caches do not hold the weights of pixel phases
};

}  // namespace pcf::cpu

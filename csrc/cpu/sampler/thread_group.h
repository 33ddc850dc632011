// A group of threads that samples some images together.
#pragma once

#include <algorithm>
#include <cstring>
#include <exception>
#include <functional>
#include <limits>
#include <mutex>
#include <optional>
#include <tuple>

#include "cpu/sampler/head.h"
#include "cpu/sampler/prepared.h"
#include "cpu/sampler/sampler.h"
#include "cpu/sampler/schedule.h"
#include "cpu/sampler/workspace.h"
#include "cpu/threads/barrier.h"

namespace pcf::cpu {

// What the groups of a run share: how the run ends early.
class Ending {
 public:
  // The caller's exception: all groups stop at their next row.
  void stop(std::exception_ptr error) {
    error_ = error;
    stopped_.store(true, std::memory_order_release);
  }
  bool stopped() const { return stopped_.load(std::memory_order_acquire); }

  // Keeps the first one in the order of drawing, whichever thread reports first. The other groups go on, since one of
  // theirs may be the first.
  void report(const NonFiniteLogits& found, int draw) {
    const std::lock_guard lock(mutex_);
    const Order order(found.row, found.column, draw, found.image, found.channel);
    if (!non_finite_ || order < order_) non_finite_.emplace(found), order_ = order;
  }

  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
    if (non_finite_) throw *non_finite_;
  }

 private:
  using Order = std::tuple<int, int, int, int, int>;

  std::atomic<bool> stopped_{false};
  std::exception_ptr error_;
  std::mutex mutex_;
  std::optional<NonFiniteLogits> non_finite_;
  Order order_;  // its place in the order of drawing
};

template <class T>
class ThreadGroup {
  using Instruction = PreparedInstruction<T>;
  static constexpr int kNever = std::numeric_limits<int>::max();
  // A group leaves threads behind if it has waited for longer than kPatience, far above the odd interruption, and has
  // worked for less than one kIdleFactor-th of the time. Halving the threads at most doubles the work.
  static constexpr std::chrono::milliseconds kPatience{8};
  static constexpr int kIdleFactor = 3;

 public:
  // job: of this group's images, the first of which is number first_image of the run. on_row: called by thread 0, or
  // null.
  ThreadGroup(const Program& program, const PreparedProgram<T>& prepared, const Schedule& schedule, const Job& job,
              int first_image, const std::function<void(int)>* on_row, Ending& ending)
      : program_(program), p_(prepared), schedule_(schedule), job_(job), n_(job.images), first_image_(first_image),
        on_row_(on_row), ending_(ending), workspace_(program, prepared, schedule, n_),
        pixel_team_(schedule.two_teams() ? schedule.pixel_threads : schedule.threads),
        row_team_(schedule.threads - pixel_team_.size), cleared_(schedule.threads),
        row_team_until_(schedule.two_teams() ? kNever : schedule.first_step()) {}

  // Called by each of the group's threads, numbered from 0.
  void work(int thread) {
    workspace_.clear(thread, schedule_.threads);
    cleared_.wait(thread, schedule_.threads);
    const bool for_pixels = thread < pixel_team_.size;
    Member member(for_pixels ? pixel_team_ : row_team_, for_pixels ? thread : thread - pixel_team_.size, p_, schedule_,
                  span(0, 0), schedule_.rows_in_flight * n_, program_.head, job_);
    const int first = schedule_.first_step(), end = schedule_.steps(program_), chunk = schedule_.chunk;
    if (for_pixels) {
      for (int t = first; t < end; t += chunk) {
        if (t < row_team_until_.load(std::memory_order_relaxed)) {
          member.waited += row_team_.progress.await(t + chunk - first, row_team_.size);
          make_sums(member, t, [&](const Instruction& i) { return by_pixel_team(i); });
        } else {
          make_sums(member, t, [](const Instruction&) { return true; });
          member.wait_for_team();
        }
        const bool going = draw_pixels(member, t);
        pixel_team_.progress.announce(member.index, going ? t + chunk - first : kNever);
        if (!going) return;
        compute_row(member, t, p_.after_row);
      }
    } else {
      for (int t = first; t < end; t += chunk) {
        // A chunk ahead, this team reads what was drawn up to the chunk before; what it overwrites was read by then.
        pixel_team_.progress.await(t - first - chunk, pixel_team_.size);
        if (t - chunk > stopped_at_.load(std::memory_order_relaxed)) return;  // all of the team returns, or none
        if (t >= row_team_until_.load(std::memory_order_relaxed)) return;
        make_sums(member, t, [&](const Instruction& i) { return !by_pixel_team(i); });
        row_team_.progress.announce(member.index, t + chunk - first);
      }
    }
  }

  // How many of them have not left before the end.
  int threads_left() const { return pixel_team_.staying + (row_team_until_ == kNever ? row_team_.size : 0); }

 private:
  // Threads that share the channels of everything that they compute.
  struct Team {
    explicit Team(int size) : size(size), staying(size), barrier(size), progress(size) {}

    const int size;
    std::atomic<int> staying;  // so many of its members, the first ones, go on after the present column step
    SpinBarrier barrier;
    Progress progress;  // column steps done, if there are two teams
  };

  // A table of rows: where each pixel of a span lies, image by image.
  using Table = std::vector<T*>;

  struct Member {
    // sites: how many sites one column step works on at most.
    Member(Team& team, int index, const PreparedProgram<T>& p, const Schedule& schedule, const Span& span, int sites,
           const Head& head, const Job& job)
        : team(team), index(index), size(team.size), span(span),
          memory((std::max(p.widest, p.widest_row * schedule.chunk) * int64_t{sites} + head.parameters) * sizeof(T)),
          drawer(head, job, p.kernels,
                 reinterpret_cast<T*>(memory.get()) + memory.bytes() / sizeof(T) - head.parameters),
          operands(p.most_steps) {
      T* const sums = reinterpret_cast<T*>(memory.get());
      for (int i = 0; i < sites; i++) pixel_sums.push_back(sums + int64_t{i} * p.widest);
      for (int i = 0; i < sites * schedule.chunk; i++) row_sums.push_back(sums + int64_t{i} * p.widest_row);
      for (auto* table : {&x, &from, &out, &next}) table->resize(sites * schedule.chunk);
      for (auto* table : {&rounded, &rounded_out}) table->resize(sites * schedule.chunk);
      for (auto& table : operands) table.resize(sites * schedule.chunk);
    }

    void wait_for_team() { waited += team.barrier.wait(index, size); }

    Team& team;
    const int index;
    int size;       // of the team that is left
    Waited waited;  // since the last look at how long it worked
    Clock::time_point since = Clock::now();
    Clock::duration run_before = time_run();
    bool alone = false;  // whether it computes all channels
    Span span;
    const Buffer memory;
    HeadDrawer<T> drawer;
    Table pixel_sums, row_sums;  // of one instruction, at the pixels of a column step and of a chunk
    Table x, from, out;
    Table next;  // what the next instruction begins with, in this column step
    const Instruction* next_begins = nullptr;
    int next_step = 0;
    std::vector<Bfloat16*> rounded, rounded_out;  // x and out, where they are kept in bf16
    std::vector<Table> operands;
    std::vector<BoundStep<T>> steps;
  };

  int draws() const { return p_.outputs.size(); }
  int distributions_per_draw() const { return program_.head.distributions / draws(); }
  int channels_per_distribution() const { return program_.image_channels / program_.head.distributions; }
  int number(const Instruction& i) const { return &i - p_.instructions.data(); }
  bool by_pixel_team(const Instruction& i) const { return schedule_.by_pixel_team[number(i)]; }

  Span span(int t, int columns) const { return Span(program_, schedule_.lag, t, columns); }

  // Kept for the next call, since most instructions of a column step work on the same pixels.
  const Span& span(Member& member, int t, int columns) const {
    if (!member.span.is(t, columns)) member.span = span(t, columns);
    return member.span;
  }
  int lead(const Instruction& i) const { return schedule_.lead ? i.lead : 0; }

  // Computes the sums that the rows above contribute to the chunk that begins at column step t, for the instructions
  // with mine(instruction).
  template <class Mine>
  void make_sums(Member& member, int t, const Mine& mine) {
    compute_row(member, t, p_.before_row);
    for (const auto& i : p_.instructions) {
      const bool in_row_phase = i.phase == Phase::row && (p_.before_row.empty() || i.is_output);
      const bool at_pixels = (i.phase == Phase::pixel || i.phase == Phase::drawn) && i.keeps_partial();
      if ((in_row_phase || at_pixels) && mine(i)) sum_rows_above(member, i, t);
    }
  }

  // Draws the chunk's pixels, one column step after the other. False if the run stops here, or the member leaves.
  bool draw_pixels(Member& member, int first) {
    for (int t = first; t < first + schedule_.chunk; t++) {
      const int row = t / schedule_.lag;
      if (t >= 0 && t == row * schedule_.lag && row < program_.height && !begin_row(member, row)) return false;
      for (int after = 0; after <= draws(); after++) {
        for (const auto& i : p_.instructions)
          if (i.after == after && i.kind != InstructionKind::from_levels && (i.phase != Phase::row || i.is_output) &&
              i.phase != Phase::finished)
            at_pixels(member, i, t);
        if (after < draws() && !settle(member, t, after)) return false;
      }
    }
    return true;
  }

  // Computes the whole row that begins at column step t, if there are stages; rows are then sampled one at a time. The
  // threads share the channels of what is computed by rows. A scan has a thread to itself, so that its weights stay in
  // that thread's cache, and nobody waits within it.
  void compute_row(Member& member, int t, const std::vector<Stage>& stages) {
    for (const Stage& stage : stages) {
      member.wait_for_team();
      for (int k : stage.by_rows) sum_rows_above(member, p_.instructions[k], t);
      for (int scan : stage.scans)
        for (const Instruction* i = &p_.instructions[scan]; is_in(*i, scan); i++)
          if (i->keeps_partial()) sum_rows_above(member, *i, t);
      member.wait_for_team();
      member.alone = true;
      for (size_t s = member.index; s < stage.scans.size(); s += member.size)
        for (int k = 0; k < program_.width; k++) {
          const Instruction* i = &p_.instructions[stage.scans[s]];
          const int x = i->from_the_right ? program_.width - 1 - k : k;
          for (; is_in(*i, stage.scans[s]); i++) at_pixels(member, *i, t + x);
        }
      member.alone = false;
    }
    if (!stages.empty()) member.wait_for_team();
  }

  bool is_in(const Instruction& i, int scan) const {
    return &i != p_.instructions.data() + p_.instructions.size() && i.scan == p_.instructions[scan].scan;
  }

  // False if the run stops here: where the caller stops it, or logits were not finite and all rows above them are done,
  // one of which might have had others.
  bool begin_row(Member& member, int y) {
    if (member.index == 0) {
      const int failed = failed_row_.load(std::memory_order_relaxed);
      if (on_row_ && !ending_.stopped() && failed == kNever) try {
          (*on_row_)(y);
        } catch (...) {
          ending_.stop(std::current_exception());
        }
      if (ending_.stopped() || (y >= failed && (y - failed + 1) * schedule_.lag >= program_.width))
        stopped_at_.store(y * schedule_.lag, std::memory_order_relaxed);
    }
    member.wait_for_team();
    return stopped_at_.load(std::memory_order_relaxed) == kNever;
  }

  // The member's blocks of an instruction's channels: first...last-1.
  std::pair<int, int> share(const Member& member, const Instruction& i) const {
    const int blocks = i.padded / p_.kernels.block;
    if (member.alone) return {0, blocks};
    return {blocks * member.index / member.size, blocks * (member.index + 1) / member.size};
  }

  // -- fewer threads, where other processes keep the cores busy

  // A thread that isn't running holds up the others at every barrier, so one thread may be faster than two. Nothing in
  // the workspace depends on which thread has computed it, and at a barrier all have finished: there, any may leave.

  // Whether this thread works so little of the time that half of the threads must be faster. Time that it is not
  // running counts, too: where it waits, it yields, and gets its core back only when another process has had its turn.
  bool waits_too_long(Member& member, int t) const {
    if (std::count(schedule_.fewer_at.begin(), schedule_.fewer_at.end(), t) > 0) return true;
    if (member.waited.time < kPatience) return false;
    const auto now = Clock::now();
    const auto run = time_run();
    const auto worked = run - member.run_before - member.waited.running;
    const bool too_long = worked < (now - member.since) / kIdleFactor;
    member.since = now, member.run_before = run, member.waited = {};
    return too_long;
  }

  // The row team leaves first, once it has done what it may have begun; then half of the other team, now.
  void go_on_with_fewer(const Member& member, int t) {
    if (row_team_until_ == kNever)
      row_team_until_ = (floor_div(t, schedule_.chunk) + 2) * schedule_.chunk;
    else
      member.team.staying = (member.size + 1) / 2;
  }

  // -- locations in memory

  // Image m of the span's pixel i is row i * images + m. first(y, x): where the pixel lies in image 0; each next pixel
  // of its row lies `step` elements further on.
  template <class E, class First>
  void tabulate(std::vector<E*>& table, const Span& span, int64_t image_stride, int64_t step,
                const First& first) const {
    E** next = table.data();
    span.each_row([&](int y, int begin, int end) {
      E* at = first(y, begin);
      for (int x = begin; x < end; x++, at += step)
        for (int m = 0; m < n_; m++) *next++ = at + m * image_stride;
    });
  }

  void tabulate_value(Table& table, int value, const Span& span, int dy = 0, int dx = 0) const {
    tabulate(table, span, workspace_.image_stride(value), workspace_.channels(value),
             [&](int y, int x) { return workspace_.pixel(value, y + dy, x + dx); });
  }

  // From column step t on, which is the chunk's first if the span has all of the chunk's columns.
  void tabulate_partial(Table& table, const Instruction& i, const Span& span, int t) const {
    T* const begin = workspace_.partials(number(i), i.padded, t);
    tabulate(table, span, int64_t{schedule_.chunk} * i.padded, i.padded, [&](int y, int x) {
      return begin + workspace_.to_partial(i.padded, y) + int64_t{x - span.start(y)} * i.padded;
    });
  }

  void tabulate_rows(Table& table, const Span& span, T* data, int64_t stride) const {
    for (int r = 0; r < span.count() * n_; r++) table[r] = data + r * stride;
  }

  // -- instructions

  // What an instruction's runs are added to or, if it has none, what its steps start from.
  void tabulate_start(Table& table, const Instruction& i, const Span& span) const {
    switch (i.kind) {
      case InstructionKind::convolution: return tabulate_rows(table, span, const_cast<T*>(i.bias.data()), 0);
      case InstructionKind::pointwise: return tabulate_value(table, i.value, span, i.dy, i.dx);
      case InstructionKind::from_levels: break;  // it is computed as its values are drawn
    }
    __builtin_unreachable();
  }

  // Computes an instruction's sum over the rows above, at the pixels of the chunk that begins at column step t: in the
  // row phase this gives its whole value, else the partial sum that the pixel phase begins with.
  void sum_rows_above(Member& member, const Instruction& i, int t) {
    if (i.barrier_in_row) member.wait_for_team();
    const Span& chunk = span(member, t + lead(i), schedule_.chunk);
    if (chunk.count() == 0) return;
    tabulate_start(member.from, i, chunk);
    if (i.keeps_partial()) {
      tabulate_partial(member.out, i, chunk, t);
      sum(member, i, i.row_runs, chunk, member.out);
      return;
    }
    tabulate_value(member.out, i.out, chunk);
    finish(member, i, i.row_runs, chunk, member.row_sums);
  }

  void at_pixels(Member& member, const Instruction& i, int t) {
    if (i.barrier_at_pixel) member.wait_for_team();
    const Span& pixels = span(member, t + lead(i), 1);
    if (pixels.count() == 0 || (i.is_output && !job_.parameters && all_known(pixels, i.after))) return;
    if (!i.keeps_partial())
      tabulate_start(member.from, i, pixels);
    else if (member.next_begins == &i && member.next_step == t)
      std::swap(member.from, member.next), member.next_begins = nullptr;
    else
      tabulate_partial(member.from, i, pixels, t);
    prefetch_partial(member, i, t);
    if (i.is_output)
      tabulate_rows(member.out, pixels, workspace_.parameters(), i.padded);
    else
      tabulate_value(member.out, i.out, pixels);
    finish(member, i, i.pixel_runs, pixels, member.pixel_sums);
  }

  // Fetches the partial sums that the next instruction begins with: another core has written them, or this one long
  // ago.
  void prefetch_partial(Member& member, const Instruction& i, int t) {
    const Instruction *next = &i + 1, *const end = p_.instructions.data() + p_.instructions.size();
    while (next < end && !next->keeps_partial()) next++;
    if (next >= end) return;
    const Span pixels = span(t + lead(*next), 1);
    tabulate_partial(member.next, *next, pixels, t);
    member.next_begins = next, member.next_step = t;
    const auto [first, last] = share(member, *next);
    for (int r = 0; r < pixels.count() * n_; r++)
      for (int c = first * p_.kernels.block; c < last * p_.kernels.block; c += 64 / sizeof(T))
        __builtin_prefetch(member.next[r] + c);
  }

  // member.out = steps(member.from + the runs); sums: a buffer.
  void finish(Member& member, const Instruction& i, const std::vector<PreparedRun>& runs, const Span& span,
              const Table& sums) {
    bind(member, i, span);
    if (!i.ends_in_products || runs.empty()) {
      const bool summed = sum(member, i, runs, span, sums);
      return apply_steps(member, i, span, summed ? sums : member.from);
    }
    Result<T> end{nullptr, member.out.data()};
    for (const auto& step : member.steps)
      if (step.kind == StepKind::relu)
        end.relu = true;
      else
        end.added = step.operand;
    if (is_rounded(i)) {
      tabulate_rounded(member.rounded_out, i.out, member.out, span.count() * n_);
      end.rounded = member.rounded_out.data();
    }
    sum(member, i, runs, span, sums, &end);
  }

  // to = member.from + the runs; the last one's result is `end`, if there is one. Does nothing and returns false if
  // there are no runs.
  bool sum(Member& member, const Instruction& i, const std::vector<PreparedRun>& runs, const Span& span,
           const Table& to, const Result<T>* end = nullptr) {
    const auto [first, last] = share(member, i);
    const Table* from = &member.from;
    for (const auto& run : runs) {
      const int rows = span.count() * n_;
      Result<T> result{from->data(), to.data()};
      if (end && &run == &runs.back()) result = *end, result.from = from->data();
      if (p_.rounded[run.source]) {
        tabulate(member.rounded, span, workspace_.image_stride(run.source), workspace_.channels(run.source),
                 [&](int y, int x) {
                   return workspace_.rounded(run.source, workspace_.pixel(run.source, y + run.dy, x + run.dx));
                 });
        p_.kernels.matmul_rounded(member.rounded.data(), rows, run.weights, first, last, result);
      } else {
        tabulate_value(member.x, run.source, span, run.dy, run.dx);
        p_.kernels.matmul(member.x.data(), rows, run.weights, first, last, result);
      }
      from = &to;
    }
    return from == &to;
  }

  // member.out = the member's steps (from) on its channels.
  void apply_steps(Member& member, const Instruction& i, const Span& span, const Table& from) {
    const auto [first, last] = share(member, i);
    write(member, i, from, span.count() * n_, first * p_.kernels.block, std::min(last * p_.kernels.block, i.channels));
  }

  // member.out = the member's steps (from) on the channels first...last-1.
  void write(Member& member, const Instruction& i, const Table& from, int rows, int first, int last) const {
    p_.kernels.epilogue(member.steps.data(), member.steps.size(), rows, first, last, from.data(), member.out.data());
    if (!is_rounded(i)) return;
    tabulate_rounded(member.rounded_out, i.out, member.out, rows);
    p_.kernels.round(member.out.data(), rows, first, last, member.rounded_out.data());
  }

  bool is_rounded(const Instruction& i) const { return !i.is_output && p_.rounded[i.out]; }

  // Where the first rows of a table of a value are kept in bf16.
  void tabulate_rounded(std::vector<Bfloat16*>& rounded, int value, const Table& table, int rows) const {
    for (int r = 0; r < rows; r++) rounded[r] = workspace_.rounded(value, table[r]);
  }

  // Resolves the operands of an instruction's steps.
  void bind(Member& member, const Instruction& i, const Span& span) const {
    member.steps.clear();
    for (size_t s = 0; s < i.steps.size(); s++) {
      const auto& step = i.steps[s];
      auto& table = member.operands[s];
      if (step.reads_value()) tabulate_value(table, step.operand, span, step.dy, step.dx);
      if (step.reads_condition()) {
        T* data = const_cast<T*>(static_cast<const T*>(job_.conditions[step.operand]));
        const ConditionOperand& operand = program_.conditions[step.operand];
        if (operand.varies_over_pixels)
          tabulate(table, span, int64_t{program_.height} * program_.width * operand.channels, operand.channels,
                   [&](int y, int x) { return data + (int64_t{y} * program_.width + x) * operand.channels; });
        else
          tabulate(table, span, operand.channels, 0, [&](int, int) { return data; });
      }
      const bool reads = step.reads_value() || step.reads_condition();
      const int channels = step.reads_value() ? workspace_.channels(step.operand) : 0;
      member.steps.push_back(
          {step.kind, step.alpha, reads ? table.data() : nullptr, step.scale.data(), step.shift.data(), channels});
    }
  }

  // -- values of the image

  // The index of an element of an array [images, channels, H, W].
  int64_t element(int image, int channels, int channel, int y, int x) const {
    return ((int64_t{image} * channels + channel) * program_.height + y) * program_.width + x;
  }
  int64_t sub_pixel(int image, int channel, int y, int x) const {
    return element(image, program_.image_channels, channel, y, x);
  }

  bool known(int image, int distribution, int y, int x) const {
    if (!job_.known) return false;
    const int channels = channels_per_distribution();
    for (int c = distribution * channels; c < (distribution + 1) * channels; c++)
      if (!job_.known[sub_pixel(image, c, y, x)]) return false;
    return true;
  }

  bool all_known(const Span& span, int draw) const {
    if (!job_.known) return false;
    const int count = distributions_per_draw();
    for (int i = 0; i < span.count(); i++)
      for (int q = 0; q < n_ * count; q++)
        if (!known(q / count, draw * count + q % count, span.row(i), span.column(i))) return false;
    return true;
  }

  // Draws the values of column step t, or takes the known ones, between two barriers. False if the member leaves.
  bool settle(Member& member, int t, int draw) {
    if (member.index == 0 && waits_too_long(member, t)) go_on_with_fewer(member, t);
    member.wait_for_team();
    // Nobody changes this before all who stay have been at the second barrier.
    member.size = member.team.staying.load(std::memory_order_relaxed);
    if (member.index >= member.size) return false;
    const Span span = this->span(t, 1);
    const int of_draw = distributions_per_draw(), count = span.count() * n_ * of_draw;
    const int padded = p_.outputs[draw]->padded;
    for (int q = count * member.index / member.size; q < count * (member.index + 1) / member.size; q++) {
      const int i = q / (n_ * of_draw), image = q / of_draw % n_, distribution = q % of_draw;
      settle_one(member,
                 workspace_.parameters() + int64_t{q / of_draw} * padded + distribution * program_.head.parameters,
                 image, draw * of_draw + distribution, span.row(i), span.column(i));
    }
    member.wait_for_team();
    return true;
  }

  void settle_one(Member& member, const T* parameters, int image, int distribution, int y, int x) {
    const Head& head = program_.head;
    const int channels = channels_per_distribution(), first = distribution * channels;
    if (job_.parameters)
      std::copy_n(
          parameters, head.parameters,
          static_cast<T*>(job_.parameters) + element(image, head.distributions, distribution, y, x) * head.parameters);
    if (!known(image, distribution, y, x)) {
      const int64_t noise = element(image, head.distributions * head.uniforms, distribution * head.uniforms, y, x);
      const int64_t stride = int64_t{program_.height} * program_.width;
      if (!member.drawer.draw({parameters, noise, sub_pixel(image, first, y, x), stride}))
        report(image, distribution, y, x);
    }
    for (int channel = first; channel < first + channels; channel++)
      for (const auto* i : p_.inputs)
        read_value(member, *i, value_at<T>(head.kind, job_.values, sub_pixel(image, channel, y, x)), image, channel, y,
                   x);
  }

  void read_value(Member& member, const Instruction& i, T value, int image, int channel, int y, int x) {
    if (channel < i.input.first || channel >= i.input.first + i.input.count) return;
    T* out = workspace_.pixel(i.out, y, x) + image * workspace_.image_stride(i.out);
    const int width = i.input.width, first = (channel - i.input.first) * width;
    if (i.table.empty())
      out[first] = value;
    else
      std::copy_n(i.table.data() + static_cast<int64_t>(value) * width, width, out + first);
    bind(member, i, span(0, 0));  // the steps on levels have no operands
    member.out[0] = out;
    write(member, i, member.out, 1, first, first + width);
  }

  void report(int image, int distribution, int y, int x) {
    for (int row = failed_row_; y < row && !failed_row_.compare_exchange_weak(row, y);) continue;
    const int channel = distribution * channels_per_distribution();
    ending_.report(NonFiniteLogits(first_image_ + image, channel, y, x), distribution / distributions_per_draw());
  }

  const Program& program_;
  const PreparedProgram<T>& p_;
  const Schedule& schedule_;
  const Job job_;
  const int n_, first_image_;
  const std::function<void(int)>* const on_row_;
  Ending& ending_;
  const Workspace<T> workspace_;
  Team pixel_team_, row_team_;           // the latter is empty where one team does all
  SpinBarrier cleared_;                  // all of the group, before they begin
  std::atomic<int> row_team_until_;      // the column step before which there is a row team
  std::atomic<int> failed_row_{kNever};  // the first whose logits were not finite
  std::atomic<int> stopped_at_{kNever};  // the column step
};

}  // namespace pcf::cpu

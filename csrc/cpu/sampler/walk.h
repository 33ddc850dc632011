// A group of threads walks over some images together: in which order it evaluates instructions and draws values, who
// does which of it, and where threads wait for each other.
#pragma once

#include <exception>
#include <functional>
#include <limits>
#include <mutex>
#include <numeric>
#include <optional>
#include <tuple>

#include "cpu/sampler/evaluation.h"
#include "cpu/sampler/sampler.h"

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
class Walk {
  using Instruction = PackedInstruction<T>;
  static constexpr int kNever = std::numeric_limits<int>::max();
  // A group leaves threads behind if it has waited for longer than kPatience, far above the odd interruption, and has
  // worked for less than one kIdleFactor-th of the time. Halving the threads at most doubles the work.
  static constexpr std::chrono::milliseconds kPatience{8};
  static constexpr int kIdleFactor = 3;

 public:
  // job: of this group's images, the first of which is number first_image of the run. on_row: called by thread 0, or
  // null.
  Walk(const Program& program, const PackedProgram<T>& packed, const Schedule& schedule, const Job& job,
       int first_image, const std::function<void(int)>* on_row, Ending& ending)
      : program_(program), p_(packed), schedule_(schedule), job_(job), n_(job.images), first_image_(first_image),
        on_row_(on_row), ending_(ending), workspace_(program, packed, schedule, n_), values_(program, job_),
        evaluation_(program, packed, schedule, job_, workspace_, values_.known_rows(), numbers(n_)),
        alike_(evaluation_.first_row > 0 ? values_.template alike<T>(evaluation_.first_row) : std::vector<int>()),
        distinct_(firsts(alike_)), known_(program, packed, schedule, job_, workspace_, 0, distinct_),
        pixel_team_(schedule.two_teams() ? schedule.pixel_threads : schedule.threads),
        row_team_(schedule.threads - pixel_team_.size), all_(schedule.threads),
        row_team_until_(schedule.two_teams() ? kNever : schedule.first_step()) {}

  // Called by each of the group's threads, numbered from 0.
  void work(int thread) {
    workspace_.clear(thread, schedule_.threads);
    all_.barrier.wait(thread, schedule_.threads);
    if (evaluation_.first_row > 0 && !fill_known_rows(thread)) return;
    const bool for_pixels = thread < pixel_team_.size;
    const int first = schedule_.first_step(evaluation_.first_row), end = schedule_.steps(program_),
              chunk = schedule_.chunk;
    Member<T> member(for_pixels ? pixel_team_ : row_team_, for_pixels ? thread : thread - pixel_team_.size, p_, chunk,
                     evaluation_.span(0, 0), schedule_.rows_in_flight * n_, program_.head, job_);
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

  // How many threads of the group worked to the end.
  int threads_at_end() const { return pixel_team_.staying + (row_team_until_ == kNever ? row_team_.size : 0); }

 private:
  bool by_pixel_team(const Instruction& i) const { return schedule_.by_pixel_team[&i - p_.instructions.data()]; }

  // Computes the sums over row runs for the chunk that begins at column step t, for the instructions with
  // mine(instruction).
  template <class Mine>
  void make_sums(Member<T>& member, int t, const Mine& mine) {
    compute_row(member, t, p_.before_row);
    for (const auto& visit : p_.visits_in_row(std::max(t, 0) / schedule_.lag)) {
      if (!mine(*visit.instruction)) continue;
      if (visit.barrier) member.wait_for_team();
      evaluation_.sum_row_runs(member, *visit.instruction, t);
    }
  }

  // Draws the chunk's pixels, one column step after the other. False if the run stops here, or the member leaves.
  bool draw_pixels(Member<T>& member, int first) {
    for (int t = first; t < first + schedule_.chunk; t++) {
      const int row = t / schedule_.lag;
      const int ahead = (t - first) % 2 == 0 ? std::min(2, first + schedule_.chunk - t) : 0;
      const bool begins = row >= evaluation_.first_row && row < program_.height && t == row * schedule_.lag;
      if (begins && !begin_row(member, row)) return false;
      for (int after = 0; after <= values_.draws(); after++) {
        for (const auto& visit : p_.visits_at(std::max(row, 0), floor_mod(t, schedule_.lag), after)) {
          if (visit.barrier) member.wait_for_team();
          evaluation_.evaluate_at_pixel(member, *visit.instruction, *visit.part, t, ahead,
                                        visit.next ? visit.next->instruction : nullptr);
        }
        if (after < values_.draws() && !draw_values(member, t, after)) return false;
      }
    }
    return true;
  }

  // Computes the whole row that begins at column step t, if there are stages; rows are then sampled one at a time. The
  // threads share the channels of what is computed by rows. A scan has a thread to itself, so that its weights stay in
  // that thread's cache, and nobody waits within it.
  void compute_row(Member<T>& member, int t, const std::vector<Stage>& stages) {
    for (const Stage& stage : stages) {
      member.wait_for_team();
      for (int k : stage.by_rows) evaluation_.sum_row_runs(member, p_.instructions[k], t);
      for (int scan : stage.scans)
        for (const Instruction* i = &p_.instructions[scan]; is_in(*i, scan); i++)
          if (i->keeps_partial()) evaluation_.sum_row_runs(member, *i, t);
      member.wait_for_team();
      member.alone = true;
      for (size_t s = member.index; s < stage.scans.size(); s += member.size)
        for (int k = 0; k < program_.width; k++) {
          const Instruction* i = &p_.instructions[stage.scans[s]];
          const int x = i->from_the_right ? program_.width - 1 - k : k;
          for (; is_in(*i, stage.scans[s]); i++)
            for (const Part& part : i->parts)
              if (part.where.has(t / schedule_.lag, x))
                evaluation_.evaluate_at_pixel(member, *i, part, t + x, 0, nullptr);
        }
      member.alone = false;
    }
    if (!stages.empty()) member.wait_for_team();
  }

  // Computes what the rows below read of those that are known in all images: a row at a time, as matrix products, and
  // once for images that are alike there. False if the run stops there.
  bool fill_known_rows(int thread) {
    const int width = program_.width, rows = evaluation_.first_row, count = distinct_.size() * width;
    Member<T> member(all_, thread, p_, 1, known_.span(0, 0), count, program_.head, job_);
    // As many rows are kept as are in flight, besides those that are read above them.
    const int together = p_.is_recurrent ? 1 : schedule_.rows_in_flight;
    for (int begin = 0; begin < rows; begin += together) {
      const int end = std::min(begin + together, rows);
      for (int y = begin; y < end; y++) {
        if (!begin_row(member, y)) return false;
        for (int q = count * thread / member.size; q < count * (thread + 1) / member.size; q++)
          put_values(member, distinct_[q / width], 0, program_.image_channels, y, q % width);
      }
      for (const KnownStage& stage : p_.known_stages) {
        member.wait_for_team();
        for (int y = std::max(begin, rows - stage.rows); y < end && rows < program_.height; y++)
          fill_row(member, stage, y);
      }
      member.wait_for_team();
      for (int m = n_ * thread / member.size; m < n_ * (thread + 1) / member.size; m++)
        for (int y = begin; y < end && alike_[m] != m; y++) workspace_.copy_row(y, alike_[m], m);
    }
    member.wait_for_team();
    return true;
  }

  void fill_row(Member<T>& member, const KnownStage& stage, int y) {
    const Instruction* const begin = p_.instructions.data() + stage.begin;
    if (!stage.is_loop) return known_.evaluate_in_row(member, *begin, y, 0, program_.width);
    if (member.index > 0) return;
    member.alone = true;
    for (int k = 0; k < program_.width; k++)
      for (const Instruction* i = begin; i != p_.instructions.data() + stage.end; i++)
        known_.evaluate_in_row(member, *i, y, begin->from_the_right ? program_.width - 1 - k : k, 1);
    member.alone = false;
  }

  static std::vector<int> numbers(int n) {
    std::vector<int> all(n);
    std::iota(all.begin(), all.end(), 0);
    return all;
  }

  static std::vector<int> firsts(const std::vector<int>& alike) {
    std::vector<int> found;
    for (size_t m = 0; m < alike.size(); m++)
      if (alike[m] == static_cast<int>(m)) found.push_back(m);
    return found;
  }

  bool is_in(const Instruction& i, int scan) const {
    return &i != p_.instructions.data() + p_.instructions.size() && i.scan == p_.instructions[scan].scan;
  }

  // False if the run stops here: where the caller stops it, or logits were not finite and all rows above them are done.
  // Until then, one of those may still fail, and earlier in the order of drawing.
  bool begin_row(Member<T>& member, int y) {
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

  // -- fewer threads, where other processes keep the cores busy

  // A thread that isn't running holds up the others at every barrier, so one thread may be faster than two. Nothing in
  // the workspace depends on which thread has computed it, and at a barrier all have finished: there, any may leave.

  // Whether this thread works so little of the time that half of the threads must be faster. Time that it is not
  // running counts, too: where it waits, it yields, and gets its core back only when another process has had its turn.
  bool waits_too_long(Member<T>& member, int t) const {
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
  void go_on_with_fewer(const Member<T>& member, int t) {
    if (row_team_until_ == kNever)
      row_team_until_ = (floor_div(t, schedule_.chunk) + 2) * schedule_.chunk;
    else
      member.team.staying = (member.size + 1) / 2;
  }

  // -- values of the image

  // Draws the values of column step t, or takes the known ones, between two barriers. This is also where threads leave:
  // false if the member does.
  bool draw_values(Member<T>& member, int t, int draw) {
    if (member.index == 0 && waits_too_long(member, t)) go_on_with_fewer(member, t);
    member.wait_for_team();
    // Nobody changes this before all who stay have been at the second barrier.
    member.size = member.team.staying.load(std::memory_order_relaxed);
    if (member.index >= member.size) return false;
    const Span span = evaluation_.span(t, 1);
    const int of_draw = values_.distributions_per_draw(), count = span.count() * n_ * of_draw;
    const int padded = p_.outputs[draw]->padded;
    const T* const parameters = workspace_.parameters();
    for (int q = count * member.index / member.size; q < count * (member.index + 1) / member.size; q++) {
      const int i = q / (n_ * of_draw), image = q / of_draw % n_, distribution = q % of_draw;
      draw_one(member, parameters + int64_t{q / of_draw} * padded + distribution * program_.head.parameters, image,
               draw * of_draw + distribution, span.row(i), span.column(i));
    }
    member.wait_for_team();
    return true;
  }

  void draw_one(Member<T>& member, const T* parameters, int image, int distribution, int y, int x) {
    const Head& head = program_.head;
    const int channels = values_.channels_per_distribution(), first = distribution * channels;
    if (job_.parameters)
      std::copy_n(parameters, head.parameters,
                  static_cast<T*>(job_.parameters) +
                      values_.element(image, head.distributions, distribution, y, x) * head.parameters);
    if (!values_.known(image, distribution, y, x)) {
      const int64_t noise =
          values_.element(image, head.distributions * head.uniforms, distribution * head.uniforms, y, x);
      if (!member.drawer.draw({parameters, noise, values_.sub_pixel(image, first, y, x), channels, values_.pixels()}))
        report(image, distribution, y, x);
    }
    put_values(member, image, first, channels, y, x);
  }

  void put_values(Member<T>& member, int image, int first, int channels, int y, int x) {
    for (int channel = first; channel < first + channels; channel++)
      for (const auto* i : p_.inputs)
        evaluation_.put_value(member, *i,
                              value_at<T>(program_.head, job_.values, values_.sub_pixel(image, channel, y, x)), image,
                              channel, y, x);
  }

  void report(int image, int distribution, int y, int x) {
    for (int row = failed_row_; y < row && !failed_row_.compare_exchange_weak(row, y);) continue;
    const int channel = distribution * values_.channels_per_distribution();
    ending_.report(NonFiniteLogits(first_image_ + image, channel, y, x),
                   distribution / values_.distributions_per_draw());
  }

  const Program& program_;
  const PackedProgram<T>& p_;
  const Schedule& schedule_;
  const Job job_;
  const int n_, first_image_;
  const std::function<void(int)>* const on_row_;
  Ending& ending_;
  const Workspace<T> workspace_;
  const ImageValues values_;
  Evaluation<T> evaluation_;
  const std::vector<int> alike_, distinct_;  // by image, the first that is alike where rows are known; these
  Evaluation<T> known_;                      // of the rows that are known
  Team pixel_team_, row_team_;               // the latter is empty where one team does all
  Team all_;                                 // of the group, before they begin
  std::atomic<int> row_team_until_;          // the column step before which there is a row team; kNever: for good
  std::atomic<int> failed_row_{kNever};      // the first whose logits were not finite
  std::atomic<int> stopped_at_{kNever};      // the column step
};

}  // namespace pcf::cpu

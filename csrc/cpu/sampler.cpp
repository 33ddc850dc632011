#include "sampler.h"

#include <cstring>
#include <exception>
#include <mutex>
#include <optional>
#include <tuple>

#include "likeliest.h"
#include "prepared.h"
#include "thread_team.h"

namespace pcf {
namespace {

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }
int floor_div(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// A few images leave a matrix product too few rows to be fast, and pay for a meeting at every layer of every pixel.
// Then rows are sampled at once, as many as keep this many pixels in flight; with more images, one row at a time,
// its rows-above taps summed beforehand, is as fast and takes less memory.
constexpr int kPixelsInFlight = 24, kImagesForRows = 12;

// How a batch is walked: in steps of a wavefront of rows that start `lag` columns apart, or (lag 0) row by row.
struct Schedule {
  int lag = 0;
  int rows_in_flight = 1;

  Schedule(const Program& program, int longest_lead, int images) {
    if (program.lag == 0 || images >= kImagesForRows) return;
    const int rows = (kPixelsInFlight + images - 1) / std::max(images, 1);
    const int slower = std::max(program.lag, (program.width + rows - 1) / rows);
    const int in_flight = std::min((program.width + longest_lead + slower - 1) / slower, program.height);
    if (in_flight < 2) return;
    lag = slower;
    rows_in_flight = in_flight;
  }
};

// Pixels that are worked on together, in every image: (y + i * dy, x + i * dx) for i < count.
struct Span {
  int y, x, count, dy = 0, dx = 0;
};

template <class T>
class Sampler final : public CpuSampler {
 public:
  Sampler(const Program& program, Weights weights, const Kernels<T>& kernels)
      : program_(program), prepared_(program, weights, kernels) {
    program_.instructions.clear();  // they borrow weights that may be gone
  }

  void run(const Job& job, int threads, const std::function<void(int)>& on_row) const override;

  int64_t weight_bytes() const override { return prepared_.packed.bytes(); }

  int64_t workspace_bytes(int images) const override {
    const Schedule schedule(program_, prepared_.longest, images);
    int64_t bytes = 0;
    for (const auto& s : program_.storage) bytes += value_bytes(s, schedule, images);
    for (const auto& i : prepared_.instructions) bytes += partial_bytes(i, schedule, images);
    return bytes + logits_bytes(schedule, images);
  }

 private:
  class Batch;

  int64_t row_stride(const Storage& s) const { return int64_t{s.pad_left + program_.width + s.pad_right} * s.channels; }
  // Rows that are kept of a value: those in flight, and those above that somebody still reads.
  static int rows_kept(const Storage& s, const Schedule& schedule) { return s.rows + schedule.rows_in_flight - 1; }
  int64_t value_bytes(const Storage& s, const Schedule& schedule, int images) const {
    return aligned(row_stride(s) * rows_kept(s, schedule) * images * sizeof(T));
  }
  int64_t partial_bytes(const PreparedInstruction<T>& i, const Schedule& schedule, int images) const {
    return schedule.lag || i.row_runs.empty() ? 0 : aligned(int64_t{i.padded} * program_.width * images * sizeof(T));
  }
  int64_t logits_bytes(const Schedule& schedule, int images) const {
    int widest = 0;
    for (const auto* output : prepared_.outputs) widest = std::max(widest, output->padded);
    return aligned(int64_t{widest} * schedule.rows_in_flight * images * sizeof(T));
  }

  Program program_;
  const PreparedProgram<T> prepared_;
};

// One run over one batch: the workspace, and what each thread does.
template <class T>
class Sampler<T>::Batch {
  using Instruction = PreparedInstruction<T>;

 public:
  Batch(const Sampler& sampler, const Job& job, int threads, const std::function<void(int)>& on_row)
      : s_(sampler), p_(sampler.prepared_), program_(sampler.program_), job_(job), n_(job.images), threads_(threads),
        schedule_(program_, p_.longest, n_), on_row_(on_row), barrier_(threads),
        workspace_(sampler.workspace_bytes(n_)) {
    char* next = workspace_.get();
    for (const auto& storage : program_.storage) {
      values_.push_back(reinterpret_cast<T*>(next));
      next += s_.value_bytes(storage, schedule_, n_);
    }
    for (const auto& i : p_.instructions) {
      partials_.push_back(reinterpret_cast<T*>(next));
      next += s_.partial_bytes(i, schedule_, n_);
    }
    logits_ = reinterpret_cast<T*>(next);
  }

  void work(int thread) {
    Member member(thread, p_.widest, schedule_.rows_in_flight * n_, program_.levels);
    if (schedule_.lag)
      in_waves(member);
    else
      row_by_row(member);
  }

  void finish() const {
    if (error_) std::rethrow_exception(error_);
    if (non_finite_) throw *non_finite_;
  }

 private:
  struct Member {
    Member(int thread, int widest, int sites, int levels)
        : thread(thread), memory((int64_t{widest} * sites + levels) * sizeof(T)),
          sums(reinterpret_cast<T*>(memory.get())), weights(sums + int64_t{widest} * sites) {}

    const int thread;
    const Buffer memory;
    T* const sums;          // [sites][widest instruction]
    T* const weights;       // [levels], of one draw
    std::vector<int> order;
    std::vector<T*> x, from, out, sum_rows;
    std::vector<std::vector<T*>> operands;
    std::vector<BoundStep<T>> steps;
  };

  void row_by_row(Member& member) {
    for (int y = 0; y < program_.height; y++) {
      if (!begin_row(member, y)) return;
      for (const auto& i : p_.instructions)
        if (!i.row_runs.empty() || i.phase == Phase::row) row_phase(member, i, y);
      barrier_.wait(member.thread);
      for (int x = 0; x < program_.width; x++) {
        const Span pixel{y, x, 1};
        for (int after = 0; after <= draws(); after++) {
          for (const auto& i : p_.instructions)
            if (i.after == after && !i.is_input && (i.phase != Phase::row || i.is_output))
              at_pixels(member, i, pixel, i.meet_at_pixel, false);
          if (after < draws()) settle(member, pixel, after);
        }
      }
    }
  }

  void in_waves(Member& member) {
    const int steps = program_.width + schedule_.lag * (program_.height - 1);
    for (int t = -p_.longest; t < steps; t++) {
      if (t >= 0 && t % schedule_.lag == 0 && t / schedule_.lag < program_.height)
        if (!begin_row(member, t / schedule_.lag)) return;
      for (int after = 0; after <= draws(); after++) {
        for (const auto& i : p_.instructions)
          if (i.after == after && !i.is_input) at_pixels(member, i, wave(t + i.lead), i.meet_in_wave, true);
        if (after < draws()) settle(member, wave(t), after);
      }
    }
  }

  int draws() const { return p_.outputs.size(); }
  int channels_per_draw() const { return program_.image_channels / draws(); }

  // The pixels (y, t - lag * y) that lie in the grid.
  Span wave(int t) const {
    const int first = std::max(0, floor_div(t - program_.width, schedule_.lag) + 1);
    const int last = std::min(program_.height - 1, floor_div(t, schedule_.lag));
    return {first, t - schedule_.lag * first, std::max(0, last - first + 1), 1, -schedule_.lag};
  }

  // False if the run stops here.
  bool begin_row(const Member& member, int y) {
    if (member.thread == 0) {
      try {
        if (non_finite_)
          stop_.store(true, std::memory_order_relaxed);
        else
          on_row_(y);
      } catch (...) {
        error_ = std::current_exception();
        stop_.store(true, std::memory_order_relaxed);
      }
    }
    barrier_.wait(member.thread);
    return !stop_.load(std::memory_order_relaxed);
  }

  // The thread's blocks of an instruction's channels: first...last-1.
  std::pair<int, int> share(const Instruction& i, int thread) const {
    const int blocks = i.padded / p_.kernels.block;
    return {blocks * thread / threads_, blocks * (thread + 1) / threads_};
  }

  // -- where things lie

  // Image 0 of a value's pixel. Rows above the first hold zeros: nothing has been written there yet.
  T* pixel(int value, int y, int x) const {
    const Storage& storage = program_.storage[value];
    const int slot = (y + p_.depth) % Sampler::rows_kept(storage, schedule_);
    return values_[value] + int64_t{slot} * n_ * s_.row_stride(storage) + int64_t{storage.pad_left + x} * storage.channels;
  }

  // A table of rows, span by images: image m of pixel i is row i * images + m.
  template <class First>
  void tabulate(std::vector<T*>& table, const Span& span, int64_t image_stride, const First& first) const {
    table.resize(span.count * n_);
    for (int i = 0; i < span.count; i++) {
      T* at = first(span.y + i * span.dy, span.x + i * span.dx);
      for (int m = 0; m < n_; m++) table[i * n_ + m] = at + m * image_stride;
    }
  }

  void tabulate_value(std::vector<T*>& table, int value, const Span& span, int dy = 0, int dx = 0) const {
    tabulate(table, span, s_.row_stride(program_.storage[value]),
             [&](int y, int x) { return pixel(value, y + dy, x + dx); });
  }

  void tabulate_partial(std::vector<T*>& table, const Instruction& i, const Span& span) const {
    T* data = partials_[&i - p_.instructions.data()];
    tabulate(table, span, int64_t{program_.width} * i.padded, [&](int, int x) { return data + int64_t{x} * i.padded; });
  }

  void tabulate_rows(std::vector<T*>& table, int rows, T* data, int64_t stride) const {
    table.resize(rows);
    for (int r = 0; r < rows; r++) table[r] = data + r * stride;
  }

  // -- instructions

  void row_phase(Member& member, const Instruction& i, int y) {
    if (i.meet_in_row) barrier_.wait(member.thread);
    const Span row{y, 0, program_.width, 0, 1};
    tabulate_rows(member.from, row.count * n_, const_cast<T*>(i.bias.data()), 0);
    tabulate_partial(member.out, i, row);
    sum(member, i, i.row_runs, row, member.out);
    if (i.phase != Phase::row || i.is_output) return;
    if (i.base >= 0) tabulate_value(member.from, i.base, row);
    tabulate_value(member.out, i.out, row);
    apply_steps(member, i, row);
  }

  // everything: the row runs too, which were not summed beforehand.
  void at_pixels(Member& member, const Instruction& i, const Span& span, bool meet, bool everything) {
    if (meet) barrier_.wait(member.thread);
    if (span.count == 0 || (i.is_output && !job_.logits && all_known(span, i.after))) return;
    const int rows = span.count * n_;
    if (everything || i.row_runs.empty())
      tabulate_rows(member.from, rows, const_cast<T*>(i.bias.data()), 0);
    else
      tabulate_partial(member.from, i, span);
    tabulate_rows(member.sum_rows, rows, member.sums, p_.widest);
    if (everything) sum(member, i, i.row_runs, span, member.sum_rows);
    sum(member, i, i.pixel_runs, span, member.sum_rows);
    if (i.base >= 0) tabulate_value(member.from, i.base, span);
    if (i.is_output)
      tabulate_rows(member.out, rows, logits_, i.padded);
    else
      tabulate_value(member.out, i.out, span);
    apply_steps(member, i, span);
  }

  // Adds runs to member.from, into `to`, which becomes member.from; without runs nothing changes.
  void sum(Member& member, const Instruction& i, const std::vector<PreparedRun>& runs, const Span& span,
           const std::vector<T*>& to) {
    const auto [first, last] = share(i, member.thread);
    for (const auto& run : runs) {
      tabulate_value(member.x, run.source, span, run.dy, run.dx);
      p_.kernels.matmul(member.x.data(), span.count * n_, run.weights, first, last, member.from.data(), to.data());
      member.from = to;
    }
  }

  // member.out = steps(member.from) on the thread's channels.
  void apply_steps(Member& member, const Instruction& i, const Span& span) {
    bind(member, i, span);
    const auto [first, last] = share(i, member.thread);
    p_.kernels.epilogue(member.steps.data(), member.steps.size(), span.count * n_, first * p_.kernels.block,
                        std::min(last * p_.kernels.block, i.channels), member.from.data(), member.out.data());
  }

  // Resolves the operands of an instruction's steps.
  void bind(Member& member, const Instruction& i, const Span& span) const {
    member.steps.clear();
    if (member.operands.size() < i.steps.size()) member.operands.resize(i.steps.size());
    for (size_t s = 0; s < i.steps.size(); s++) {
      const auto& step = i.steps[s];
      auto& table = member.operands[s];
      if (step.reads_value()) tabulate_value(table, step.operand, span);
      if (step.reads_condition()) {
        T* data = const_cast<T*>(static_cast<const T*>(job_.conditions[step.operand]));
        const Slot& slot = program_.conditions[step.operand];
        if (slot.varies_over_pixels)
          tabulate(table, span, int64_t{program_.height} * program_.width * slot.channels,
                   [&](int y, int x) { return data + (int64_t{y} * program_.width + x) * slot.channels; });
        else
          tabulate(table, span, slot.channels, [&](int, int) { return data; });
      }
      const bool reads = step.reads_value() || step.reads_condition();
      const int channels = step.reads_value() ? program_.storage[step.operand].channels : 0;
      member.steps.push_back(
          {step.kind, step.alpha, reads ? table.data() : nullptr, step.scale.data(), step.shift.data(), channels});
    }
  }

  // -- levels

  int64_t sub_pixel(int image, int channel, int y, int x) const {
    return ((int64_t{image} * program_.image_channels + channel) * program_.height + y) * program_.width + x;
  }

  bool all_known(const Span& span, int draw) const {
    if (!job_.known) return false;
    const int channels = channels_per_draw();
    for (int i = 0; i < span.count; i++)
      for (int q = 0; q < n_ * channels; q++)
        if (!job_.known[sub_pixel(q / channels, draw * channels + q % channels, span.y + i * span.dy, span.x + i * span.dx)])
          return false;
    return true;
  }

  // Draws levels of the span, or takes the known ones, between two meetings.
  void settle(Member& member, const Span& span, int draw) {
    barrier_.wait(member.thread);
    const int channels = channels_per_draw(), count = span.count * n_ * channels;
    const int padded = p_.outputs[draw]->padded;
    for (int q = count * member.thread / threads_; q < count * (member.thread + 1) / threads_; q++) {
      const int i = q / (n_ * channels), image = q / channels % n_, channel = q % channels;
      settle_one(member, logits_ + int64_t{q / channels} * padded + channel * program_.levels, image,
                 draw * channels + channel, span.y + i * span.dy, span.x + i * span.dx);
    }
    barrier_.wait(member.thread);
  }

  void settle_one(Member& member, const T* logits, int image, int channel, int y, int x) {
    const int64_t at = sub_pixel(image, channel, y, x);
    const int levels = program_.levels;
    if (job_.logits) std::copy_n(logits, levels, static_cast<T*>(job_.logits) + at * levels);
    if (!job_.known || !job_.known[at]) {
      job_.levels[at] = draw(member, logits, job_.noise[at]);
      if (job_.levels[at] < 0) {
        report(image, channel, y, x);
        job_.levels[at] = 0;
      } else if (job_.log_probability) {
        job_.log_probability[at] = p_.kernels.log_probability(logits, levels, job_.levels[at], member.weights);
      }
    }
    for (const auto* i : p_.inputs) read_level(member, *i, job_.levels[at], image, channel, y, x);
  }

  void read_level(Member& member, const Instruction& i, int level, int image, int channel, int y, int x) {
    if (channel < i.input.first || channel >= i.input.first + i.input.count) return;
    T* out = pixel(i.out, y, x) + image * s_.row_stride(program_.storage[i.out]);
    const int width = i.input.width, first = (channel - i.input.first) * width;
    if (i.table.empty())
      out[first] = static_cast<T>(level);
    else
      std::copy_n(i.table.data() + int64_t{level} * width, width, out + first);
    bind(member, i, {0, 0, 0});
    p_.kernels.epilogue(member.steps.data(), member.steps.size(), 1, first, first + width, &out, &out);
  }

  // -1 if a logit is not finite.
  int draw(Member& member, const T* logits, double u) const {
    const int levels = program_.levels;
    if (!p_.kernels.weigh(logits, levels, job_.temperature, member.weights)) return -1;
    if (job_.temperature > 0 && (job_.top_k > 0 || job_.top_p < 1))
      keep_likeliest(logits, member.weights, levels, job_.top_k, job_.top_p, member.order);
    return p_.kernels.pick(member.weights, levels, u);
  }

  // Keeps the first in the order of drawing, whichever thread comes first.
  void report(int image, int channel, int y, int x) {
    const std::lock_guard lock(mutex_);
    const auto order = [](const NonFiniteLogits& e) { return std::tuple(e.row, e.column, e.image, e.channel); };
    const NonFiniteLogits found(image, channel, y, x);
    if (!non_finite_ || order(found) < order(*non_finite_)) non_finite_.emplace(found);
  }

  const Sampler& s_;
  const PreparedProgram<T>& p_;
  const Program& program_;
  const Job& job_;
  const int n_, threads_;
  const Schedule schedule_;
  const std::function<void(int)>& on_row_;
  SpinBarrier barrier_;
  const Buffer workspace_;
  std::vector<T*> values_, partials_;
  T* logits_ = nullptr;
  std::atomic<bool> stop_{false};
  std::exception_ptr error_;
  std::mutex mutex_;
  std::optional<NonFiniteLogits> non_finite_;
};

template <class T>
void Sampler<T>::run(const Job& job, int threads, const std::function<void(int)>& on_row) const {
  const int members = std::clamp(threads, 1, prepared_.widest / prepared_.kernels.block);  // more would own no channels
  Batch batch(*this, job, members, on_row);
  run_team(members, [&batch](int thread) { batch.work(thread); });
  batch.finish();
}

}  // namespace

std::unique_ptr<CpuSampler> make_cpu_sampler(const Program& program, Dtype dtype, Weights weights, const char* isa) {
  if (dtype == Dtype::float32) return std::make_unique<Sampler<float>>(program, weights, kernels<float>(isa));
  if (weights != Weights::same) throw std::invalid_argument("bf16 weights go with float32 sums, not with float64");
  return std::make_unique<Sampler<double>>(program, weights, kernels<double>(isa));
}

}  // namespace pcf

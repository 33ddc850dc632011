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

int floor_div(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
int floor_mod(int a, int b) { return a - b * floor_div(a, b); }

// How a batch is walked. At step t, pixel (y, t - lag * y) of every row y is worked on, if it lies in the grid; every
// `chunk` steps, and before them, so is what rows above give to the pixels of the next `chunk` steps.
//
// A matrix product needs some tens of rows to be fast, and the threads meet at every layer. So with few images, rows
// are sampled at once, as close behind each other as the model's view allows; a chunk makes the products over rows
// above larger, but rows start that much later. With many images, one row at a time is as fast and takes less memory:
// a chunk is then the whole row.
struct Schedule {
  int lag, chunk;
  int rows_in_flight = 1;
  int lead = 0;  // of the value computed furthest ahead; 0 where a row is one chunk

  template <class T>
  Schedule(const PreparedProgram<T>& p, const Program& program, int images)
      : lag(program.width), chunk(program.width) {
    if (program.lag == 0 || images >= kImagesForRows) return;
    const int rows = (kPixelsInFlight + images - 1) / std::max(images, 1);
    const auto cost = [&](const Schedule& s) {
      const double steps = program.width + double{1} * s.lag * (program.height - 1);
      const double at_once = images * program.width * program.height / steps;
      const double products = p.row_work * (1 + kLoading / (at_once * s.chunk)) + p.pixel_work * (1 + kLoading / at_once);
      return products + kMeeting * (p.row_meetings / at_once / s.chunk + p.pixel_meetings / at_once);
    };
    Schedule best = *this;
    for (int chunk = 1; chunk < program.width; chunk *= 2) {
      Schedule s = *this;
      s.chunk = chunk, s.lead = p.longest;
      s.lag = std::max(program.lag + chunk - 1, (program.width + rows - 1) / rows);
      // One step more than a row is worked on: no row's memory is taken while a slower thread still reads it.
      s.rows_in_flight = std::min((program.width + s.lead + chunk + s.lag - 1) / s.lag, program.height);
      if (cost(s) < cost(best)) best = s;
    }
    *this = best;
  }

 private:
  static constexpr int kPixelsInFlight = 24, kImagesForRows = 12;
  // Measured on two cores: loading a weight takes as long as this many multiply-adds, a meeting as long as that many.
  static constexpr double kLoading = 1.5, kMeeting = 1e4;
};

// Pixels that are worked on together, in every image: for some rows y, `columns` from t - lag * y on, as far as they
// lie in the grid.
class Span {
 public:
  Span(const Program& program, int lag, int t, int columns)
      : t_(t), lag_(lag), columns_(columns), width_(program.width),
        first_(std::max(0, floor_div(t - program.width, lag) + 1)),
        last_(std::min(program.height - 1, floor_div(t + columns - 1, lag))) {
    each_row([&](int, int begin, int end) { count_ += end - begin; });
  }

  bool is(int t, int columns) const { return t == t_ && columns == columns_; }
  int count() const { return count_; }

  // f(y, begin, end) for each row's columns begin ... end - 1.
  template <class F>
  void each_row(const F& f) const {
    for (int y = first_; y <= last_; y++) f(y, std::max(0, start(y)), std::min(width_, start(y) + columns_));
  }

  int start(int y) const { return t_ - lag_ * y; }
  // Of a span of one column: row and column of its i-th pixel.
  int row(int i) const { return first_ + i; }
  int column(int i) const { return start(row(i)); }

 private:
  int t_, lag_, columns_, width_, first_, last_, count_ = 0;
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
    const Schedule schedule(prepared_, program_, images);
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
    return Buffer::aligned(row_stride(s) * rows_kept(s, schedule) * images * sizeof(T));
  }
  // What rows above give to an instruction at the pixels of a chunk: [rows in flight][images][chunk][padded].
  int64_t partial_bytes(const PreparedInstruction<T>& i, const Schedule& s, int images) const {
    return i.keeps_partial() ? Buffer::aligned(int64_t{i.padded} * s.chunk * s.rows_in_flight * images * sizeof(T)) : 0;
  }
  int64_t logits_bytes(const Schedule& schedule, int images) const {
    int widest = 0;
    for (const auto* output : prepared_.outputs) widest = std::max(widest, output->padded);
    return Buffer::aligned(int64_t{widest} * schedule.rows_in_flight * images * sizeof(T));
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
        schedule_(p_, program_, n_), on_row_(on_row), barrier_(threads),
        workspace_(sampler.workspace_bytes(n_)) {
    char* next = workspace_.get();
    for (const auto& storage : program_.storage) {
      Value value{s_.row_stride(storage), storage.channels, {}};
      const int kept = Sampler::rows_kept(storage, schedule_);
      for (int y = 0; y < p_.depth + program_.height; y++)
        value.rows.push_back(reinterpret_cast<T*>(next) + y % kept * n_ * value.image_stride + storage.pad_left * storage.channels);
      values_.push_back(std::move(value));
      next += s_.value_bytes(storage, schedule_, n_);
    }
    for (const auto& i : p_.instructions) {
      partials_.push_back(reinterpret_cast<T*>(next));
      next += s_.partial_bytes(i, schedule_, n_);
    }
    logits_ = reinterpret_cast<T*>(next);
  }

  void work(int thread) {
    const int sites = schedule_.rows_in_flight * n_;
    Member member(thread, span(0, 0), std::max(p_.widest, p_.widest_row * schedule_.chunk) * sites, program_.levels);
    const int steps = program_.width + schedule_.lag * (program_.height - 1);
    for (int t = -(schedule_.lead + schedule_.chunk - 1) / schedule_.chunk * schedule_.chunk; t < steps; t++) {
      const int row = t / schedule_.lag;
      if (t >= 0 && t == row * schedule_.lag && row < program_.height && !begin_row(member, row)) return;
      if (t % schedule_.chunk == 0) {
        for (const auto& i : p_.instructions)
          if (i.phase == Phase::row || i.keeps_partial()) from_rows_above(member, i, t);
        barrier_.wait(member.thread);
      }
      for (int after = 0; after <= draws(); after++) {
        for (const auto& i : p_.instructions)
          if (i.after == after && !i.is_input && (i.phase != Phase::row || i.is_output)) at_pixels(member, i, t);
        if (after < draws()) settle(member, span(t, 1), after);
      }
    }
  }

  void finish() const {
    if (error_) std::rethrow_exception(error_);
    if (non_finite_) throw *non_finite_;
  }

 private:
  struct Value {
    int64_t image_stride;
    int channels;
    std::vector<T*> rows;  // from the row `depth` above the grid on: image 0 of the row's first pixel
  };

  struct Member {
    Member(int thread, const Span& span, int64_t sums, int levels)
        : thread(thread), span(span), memory((sums + levels) * sizeof(T)), sums(reinterpret_cast<T*>(memory.get())),
          weights(this->sums + sums) {}

    const int thread;
    Span span;
    const Buffer memory;
    T* const sums;          // [pixels][channels] of one instruction
    T* const weights;       // [levels], of one draw
    std::vector<int> order;
    std::vector<T*> x, from, out, sum_rows;
    std::vector<std::vector<T*>> operands;
    std::vector<BoundStep<T>> steps;
  };

  int draws() const { return p_.outputs.size(); }
  int channels_per_draw() const { return program_.image_channels / draws(); }

  Span span(int t, int columns) const { return Span(program_, schedule_.lag, t, columns); }

  // Most instructions of a step work on the same pixels.
  const Span& span(Member& member, int t, int columns) const {
    if (!member.span.is(t, columns)) member.span = span(t, columns);
    return member.span;
  }
  int lead(const Instruction& i) const { return schedule_.lead ? i.lead : 0; }

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
  T* pixel(const Value& value, int y, int x) const { return value.rows[y + p_.depth] + int64_t{x} * value.channels; }

  // A table of rows, the span's pixels by images: image m of pixel i is row i * images + m. first(y, x): where image 0 of
  // the pixel lies; the next ones of its row are `step` further on each.
  template <class First>
  void tabulate(std::vector<T*>& table, const Span& span, int64_t image_stride, int64_t step, const First& first) const {
    table.resize(span.count() * n_);
    T** next = table.data();
    span.each_row([&](int y, int begin, int end) {
      T* at = first(y, begin);
      for (int x = begin; x < end; x++, at += step)
        for (int m = 0; m < n_; m++) *next++ = at + m * image_stride;
    });
  }

  void tabulate_value(std::vector<T*>& table, int number, const Span& span, int dy = 0, int dx = 0) const {
    const Value& value = values_[number];
    tabulate(table, span, value.image_stride, value.channels, [&](int y, int x) { return pixel(value, y + dy, x + dx); });
  }

  // column: of the chunk, that of the span's first pixel in a row that has all of them.
  void tabulate_partial(std::vector<T*>& table, const Instruction& i, const Span& span, int column) const {
    T* data = partials_[&i - p_.instructions.data()];
    const int64_t image_stride = int64_t{schedule_.chunk} * i.padded;
    tabulate(table, span, image_stride, i.padded, [&](int y, int x) {
      return data + y % schedule_.rows_in_flight * n_ * image_stride + int64_t{column + x - span.start(y)} * i.padded;
    });
  }

  void tabulate_rows(std::vector<T*>& table, const Span& span, T* data, int64_t stride) const {
    table.resize(span.count() * n_);
    for (T*& row : table) row = data, data += stride;
  }

  // -- instructions

  // What rows above give to an instruction at the pixels of the chunk that begins at step t: all of it, or a partial sum.
  void from_rows_above(Member& member, const Instruction& i, int t) {
    if (i.meet_in_row) barrier_.wait(member.thread);
    const Span& chunk = span(member, t + lead(i), schedule_.chunk);
    if (chunk.count() == 0) return;
    tabulate_rows(member.from, chunk, const_cast<T*>(i.bias.data()), 0);
    if (i.keeps_partial())
      tabulate_partial(member.out, i, chunk, 0);
    else
      tabulate_rows(member.out, chunk, member.sums, i.padded);
    sum(member, i, i.row_runs, chunk, member.out);
    if (i.keeps_partial()) return;
    if (i.base >= 0) tabulate_value(member.from, i.base, chunk);
    tabulate_value(member.out, i.out, chunk);
    apply_steps(member, i, chunk);
  }

  void at_pixels(Member& member, const Instruction& i, int t) {
    if (i.meet_at_pixel) barrier_.wait(member.thread);
    const Span& pixels = span(member, t + lead(i), 1);
    if (pixels.count() == 0 || (i.is_output && !job_.logits && all_known(pixels, i.after))) return;
    if (i.keeps_partial())
      tabulate_partial(member.from, i, pixels, floor_mod(t, schedule_.chunk));
    else
      tabulate_rows(member.from, pixels, const_cast<T*>(i.bias.data()), 0);
    tabulate_rows(member.sum_rows, pixels, member.sums, p_.widest);
    sum(member, i, i.pixel_runs, pixels, member.sum_rows);
    if (i.base >= 0) tabulate_value(member.from, i.base, pixels);
    if (i.is_output)
      tabulate_rows(member.out, pixels, logits_, i.padded);
    else
      tabulate_value(member.out, i.out, pixels);
    apply_steps(member, i, pixels);
  }

  // Adds runs to member.from, into `to`, which becomes member.from; without runs nothing changes.
  void sum(Member& member, const Instruction& i, const std::vector<PreparedRun>& runs, const Span& span,
           const std::vector<T*>& to) {
    const auto [first, last] = share(i, member.thread);
    for (const auto& run : runs) {
      tabulate_value(member.x, run.source, span, run.dy, run.dx);
      p_.kernels.matmul(member.x.data(), span.count() * n_, run.weights, first, last, member.from.data(), to.data());
      member.from = to;
    }
  }

  // member.out = steps(member.from) on the thread's channels.
  void apply_steps(Member& member, const Instruction& i, const Span& span) {
    bind(member, i, span);
    const auto [first, last] = share(i, member.thread);
    p_.kernels.epilogue(member.steps.data(), member.steps.size(), span.count() * n_, first * p_.kernels.block,
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
          tabulate(table, span, int64_t{program_.height} * program_.width * slot.channels, slot.channels,
                   [&](int y, int x) { return data + (int64_t{y} * program_.width + x) * slot.channels; });
        else
          tabulate(table, span, slot.channels, 0, [&](int, int) { return data; });
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
    for (int i = 0; i < span.count(); i++)
      for (int q = 0; q < n_ * channels; q++)
        if (!job_.known[sub_pixel(q / channels, draw * channels + q % channels, span.row(i), span.column(i))])
          return false;
    return true;
  }

  // Draws levels of the span, or takes the known ones, between two meetings.
  void settle(Member& member, const Span& span, int draw) {
    barrier_.wait(member.thread);
    const int channels = channels_per_draw(), count = span.count() * n_ * channels;
    const int padded = p_.outputs[draw]->padded;
    for (int q = count * member.thread / threads_; q < count * (member.thread + 1) / threads_; q++) {
      const int i = q / (n_ * channels), image = q / channels % n_, channel = q % channels;
      settle_one(member, logits_ + int64_t{q / channels} * padded + channel * program_.levels, image,
                 draw * channels + channel, span.row(i), span.column(i));
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
    T* out = pixel(values_[i.out], y, x) + image * values_[i.out].image_stride;
    const int width = i.input.width, first = (channel - i.input.first) * width;
    if (i.table.empty())
      out[first] = static_cast<T>(level);
    else
      std::copy_n(i.table.data() + int64_t{level} * width, width, out + first);
    bind(member, i, span(0, 0));  // such steps have no operands
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
  std::vector<Value> values_;
  std::vector<T*> partials_;
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

#include "sampler.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <optional>
#include <set>
#include <tuple>

#include "kernels.h"
#include "thread_team.h"

namespace pcf {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Zeroed memory on cache-line boundaries; pages that are never touched cost nothing.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t bytes) : memory_(std::calloc(bytes + 64, 1)) {
    if (!memory_) throw std::bad_alloc();
  }
  char* get() const { return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory_.get()) + 63) & ~uintptr_t{63}); }

 private:
  std::unique_ptr<void, Free> memory_;
};

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

struct PreparedRun {
  int source, dy, dx;
  Packed weights;
};

template <class T>
struct PreparedStep {
  StepKind kind;
  T alpha;
  int operand;
  std::vector<T> scale, shift;

  bool reads_value() const { return kind == StepKind::add || kind == StepKind::multiply; }
  bool reads_condition() const {
    return kind == StepKind::add_condition || kind == StepKind::multiply_condition;
  }
};

template <class T>
struct Prepared {
  int out, channels, blocks, base;
  Phase phase;
  bool is_input, is_output;
  bool meet_in_row = false, meet_at_pixel = false;  // another thread may still be writing what is read there
  std::vector<T> bias;       // padded to whole blocks
  std::vector<PreparedRun> row_runs, pixel_runs;
  std::vector<PreparedStep<T>> steps;
};

template <class T>
class Sampler final : public CpuSampler {
 public:
  Sampler(const Program& program, Weights weights, const Kernels<T>& kernels)
      : kernels_(kernels), weights_(weights), storage_(program.storage), conditions_(program.conditions),
        channels_(program.image_channels), height_(program.height), width_(program.width), levels_(program.levels) {
    prepare(program);
    place_meetings();
  }

  void run(const Job& job, int threads, const std::function<void(int)>& on_row) const override;

  int64_t weight_bytes() const override { return weight_bytes_; }

  int64_t workspace_bytes(int images) const override {
    int64_t bytes = 0;
    for (const auto& s : storage_) bytes += value_bytes(s, images);
    for (const auto& i : instructions_) bytes += partial_bytes(i, images);
    return bytes + logits_bytes(images);
  }

 private:
  class Run;

  void prepare(const Program&);
  void place_meetings();

  int64_t padded(const Prepared<T>& i) const { return int64_t{i.blocks} * kernels_.block; }
  int64_t row_stride(const Storage& s) const { return int64_t{s.pad_left + width_ + s.pad_right} * s.channels; }
  int64_t value_bytes(const Storage& s, int images) const {
    return aligned(row_stride(s) * s.rows * images * sizeof(T));
  }
  int64_t partial_bytes(const Prepared<T>& i, int images) const {
    return i.row_runs.empty() ? 0 : aligned(padded(i) * width_ * images * sizeof(T));
  }
  int64_t logits_bytes(int images) const { return aligned(padded(*output_) * images * sizeof(T)); }

  const Kernels<T>& kernels_;
  const Weights weights_;
  const std::vector<Storage> storage_;
  const std::vector<int> conditions_;
  const int channels_, height_, width_, levels_;
  std::vector<Prepared<T>> instructions_;
  const Prepared<T>* input_ = nullptr;
  const Prepared<T>* output_ = nullptr;
  Buffer packed_;
  int64_t weight_bytes_ = 0;
};

template <class T>
void Sampler<T>::prepare(const Program& program) {
  const auto depth = [&](const pcf::Run& run) { return run.width * storage_[run.source].channels; };
  const auto blocks = [&](int channels) { return (channels + kernels_.block - 1) / kernels_.block; };
  const auto bytes = [&](const std::vector<pcf::Run>& runs, int channels, Weights weights) {
    int64_t sum = 0;
    for (const auto& run : runs) sum += kernels_.block_bytes(depth(run), weights) * blocks(channels);
    return sum;
  };
  for (const auto& i : program.instructions)
    weight_bytes_ += bytes(i.row_runs, i.channels, Weights::same) + bytes(i.pixel_runs, i.channels, weights_);
  packed_ = Buffer(weight_bytes_);
  char* next = packed_.get();

  // The pixel phase streams its weights once per pixel: they lie together, in the order of use, and narrow if asked.
  // The row phase reads its own once per row, so there widening them would only cost time.
  const auto pack = [&](const std::vector<pcf::Run>& runs, int channels, Weights weights) {
    std::vector<PreparedRun> result;
    for (const auto& run : runs) {
      const int64_t block_bytes = kernels_.block_bytes(depth(run), weights);
      kernels_.pack(static_cast<const T*>(run.weight), depth(run), channels, weights, next);
      result.push_back({run.source, run.dy, run.dx, {next, depth(run), block_bytes, weights}});
      next += block_bytes * blocks(channels);
    }
    return result;
  };
  for (const auto& i : program.instructions) {
    Prepared<T> p{i.out, i.channels, blocks(i.channels), i.base, i.phase, i.is_input, i.out == program.output,
                  false, false, {}, {}, {}, {}};
    p.bias.resize(padded(p));
    if (i.bias) std::copy_n(static_cast<const T*>(i.bias), i.channels, p.bias.begin());
    p.pixel_runs = pack(i.pixel_runs, i.channels, weights_);
    for (const auto& s : i.steps) {
      PreparedStep<T> step{s.kind, static_cast<T>(s.alpha), s.operand, {}, {}};
      if (s.scale) step.scale.assign(static_cast<const T*>(s.scale), static_cast<const T*>(s.scale) + i.channels);
      if (s.shift) step.shift.assign(static_cast<const T*>(s.shift), static_cast<const T*>(s.shift) + i.channels);
      p.steps.push_back(std::move(step));
    }
    instructions_.push_back(std::move(p));
  }
  for (size_t i = 0; i < instructions_.size(); i++) {
    auto& p = instructions_[i];
    p.row_runs = pack(program.instructions[i].row_runs, p.channels, Weights::same);
    if (p.is_input) input_ = &p;
    if (p.is_output) output_ = &p;
  }
}

// Threads own channels. Whoever reads a value at the present pixel or row reads channels of other threads, so the
// team meets between the writing and the reading; one meeting serves all writes before it. The phases are walked in
// the order in which work() runs them without a meeting in between: what is drawn is read one pixel later.
template <class T>
void Sampler<T>::place_meetings() {
  std::set<int> written;
  const auto meets = [&](const Prepared<T>& i, const std::vector<PreparedRun>& runs, bool with_operands) {
    bool reads = with_operands && i.base >= 0 && written.count(i.base);
    for (const auto& run : runs) reads |= written.count(run.source) > 0;
    for (const auto& step : i.steps) reads |= with_operands && step.reads_value() && written.count(step.operand);
    if (reads) written.clear();
    return reads;
  };
  for (auto& i : instructions_) {
    i.meet_in_row = meets(i, i.row_runs, i.phase == Phase::row);
    if (i.phase == Phase::row) written.insert(i.out);
  }
  written.clear();
  for (Phase phase : {Phase::drawn, Phase::pixel})
    for (auto& i : instructions_) {
      if (i.phase != phase || i.is_input) continue;
      i.meet_at_pixel = meets(i, i.pixel_runs, true);
      written.insert(i.out);
    }
}

// One run over one batch: the workspace, and what each thread does.
template <class T>
class Sampler<T>::Run {
 public:
  Run(const Sampler& sampler, const Job& job, int threads, const std::function<void(int)>& on_row)
      : s_(sampler), job_(job), n_(job.images), threads_(threads), on_row_(on_row), barrier_(threads),
        workspace_(sampler.workspace_bytes(n_)) {
    char* next = workspace_.get();
    for (const auto& storage : s_.storage_) {
      values_.push_back(reinterpret_cast<T*>(next));
      next += s_.value_bytes(storage, n_);
    }
    for (const auto& i : s_.instructions_) {
      partials_.push_back(reinterpret_cast<T*>(next));
      next += s_.partial_bytes(i, n_);
      widest_ = std::max(widest_, s_.padded(i));
    }
    logits_ = reinterpret_cast<T*>(next);
  }

  void work(int thread) {
    const Buffer memory((widest_ * n_ + s_.levels_) * sizeof(T));
    Member member{thread, reinterpret_cast<T*>(memory.get()), {}};
    for (int y = 0; y < s_.height_; y++) {
      if (thread == 0) announce(y);
      barrier_.wait(thread);
      if (stop_.load(std::memory_order_relaxed)) return;
      row_phase(member, y);
      barrier_.wait(thread);
      for (int x = 0; x < s_.width_; x++) {
        pixel_phase(member, Phase::pixel, y, x);
        barrier_.wait(thread);
        draw_levels(member, y, x);
        barrier_.wait(thread);
        pixel_phase(member, Phase::drawn, y, x);
      }
    }
  }

  void finish() const {
    if (error_) std::rethrow_exception(error_);
    if (non_finite_) throw *non_finite_;
  }

 private:
  struct Member {
    int thread;
    T* scratch;  // [images][widest instruction], then [levels]
    std::vector<BoundStep<T>> steps;
  };

  void announce(int y) {
    try {
      if (non_finite_) stop_.store(true, std::memory_order_relaxed);
      else on_row_(y);
    } catch (...) {
      error_ = std::current_exception();
      stop_.store(true, std::memory_order_relaxed);
    }
  }

  // The thread's blocks of an instruction's channels: first...last-1.
  std::pair<int, int> share(const Prepared<T>& i, int thread) const {
    return {i.blocks * thread / threads_, i.blocks * (thread + 1) / threads_};
  }

  T* pixel(int value, int y, int x) const {
    const Storage& storage = s_.storage_[value];
    const int slot = ((y % storage.rows) + storage.rows) % storage.rows;
    return values_[value] + slot * n_ * s_.row_stride(storage) + int64_t{storage.pad_left + x} * storage.channels;
  }

  // A value's pixels (y, x) as rows: over images and columns in the row phase, over images in the pixel phase.
  Rows<T> rows(int value, int y, int x, bool whole_row) const {
    const int64_t image = s_.row_stride(s_.storage_[value]);
    return whole_row ? Rows<T>{pixel(value, y, x), image, s_.storage_[value].channels}
                     : Rows<T>{pixel(value, y, x), 0, image};
  }

  static Rows<const T> as_const(Rows<T> r) { return {r.data, r.outer_stride, r.inner_stride}; }

  Rows<T> partial(const Prepared<T>& i, int x, bool whole_row) const {
    const int64_t stride = s_.padded(i);
    T* data = partials_[&i - s_.instructions_.data()] + x * stride;
    return whole_row ? Rows<T>{data, s_.width_ * stride, stride} : Rows<T>{data, 0, s_.width_ * stride};
  }

  void row_phase(Member& member, int y) {
    for (const auto& i : s_.instructions_) {
      if (i.row_runs.empty() && i.phase != Phase::row) continue;
      if (i.meet_in_row) barrier_.wait(member.thread);
      const auto [first, last] = share(i, member.thread);
      Rows<const T> from{i.bias.data(), 0, 0};
      for (const auto& run : i.row_runs) {
        s_.kernels_.matmul(as_const(rows(run.source, y + run.dy, run.dx, true)), n_, s_.width_, run.weights,
                           first, last, from, partial(i, 0, true));
        from = as_const(partial(i, 0, true));
      }
      if (i.phase != Phase::row) continue;
      if (i.base >= 0) from = as_const(rows(i.base, y, 0, true));
      const Rows<T> out = i.is_output ? Rows<T>{nullptr, 0, 0} : rows(i.out, y, 0, true);
      if (!i.is_output) steps(member, i, first, last, n_, s_.width_, from, out, y, 0, true);
    }
  }

  void pixel_phase(Member& member, Phase phase, int y, int x) {
    for (const auto& i : s_.instructions_) {
      const bool row_output = i.is_output && i.phase == Phase::row && phase == Phase::pixel;
      if ((i.phase != phase && !row_output) || i.is_input) continue;
      if (i.meet_at_pixel) barrier_.wait(member.thread);
      if (i.is_output && all_known(y, x) && !job_.logits) continue;
      const auto [first, last] = share(i, member.thread);
      Rows<const T> from = i.row_runs.empty() ? Rows<const T>{i.bias.data(), 0, 0} : as_const(partial(i, x, false));
      const Rows<T> sums{member.scratch, 0, widest_};
      for (const auto& run : i.pixel_runs) {
        s_.kernels_.matmul(as_const(rows(run.source, y + run.dy, x + run.dx, false)), 1, n_, run.weights,
                           first, last, from, sums);
        from = as_const(sums);
      }
      if (i.base >= 0) from = as_const(rows(i.base, y, x, false));
      const Rows<T> out = i.is_output ? Rows<T>{logits_, 0, s_.padded(i)} : rows(i.out, y, x, false);
      steps(member, i, first, last, 1, n_, from, out, y, x, false);
    }
  }

  void steps(Member& member, const Prepared<T>& i, int first, int last, int outer, int inner, Rows<const T> in,
             Rows<T> out, int y, int x, bool whole_row) {
    bind(member, i, y, x, whole_row);
    s_.kernels_.epilogue(member.steps.data(), member.steps.size(), outer, inner, first * s_.kernels_.block,
                         std::min(last * s_.kernels_.block, i.channels), in, out);
  }

  // Resolves the operands of an instruction's steps at (y, x).
  void bind(Member& member, const Prepared<T>& i, int y, int x, bool whole_row) const {
    member.steps.clear();
    for (const auto& step : i.steps) {
      Rows<const T> operand{nullptr, 0, 0};
      if (step.reads_value()) operand = as_const(rows(step.operand, y, x, whole_row));
      if (step.reads_condition()) {
        const int64_t channels = s_.conditions_[step.operand];
        operand = {static_cast<const T*>(job_.conditions[step.operand]), whole_row ? channels : 0,
                   whole_row ? 0 : channels};
      }
      member.steps.push_back({step.kind, step.alpha, operand, step.scale.data(), step.shift.data()});
    }
  }

  int64_t sub_pixel(int image, int channel, int y, int x) const {
    return ((int64_t{image} * s_.channels_ + channel) * s_.height_ + y) * s_.width_ + x;
  }

  bool all_known(int y, int x) const {
    if (!job_.known) return false;
    for (int q = 0; q < n_ * s_.channels_; q++)
      if (!job_.known[sub_pixel(0, q, y, x)]) return false;
    return true;
  }

  void draw_levels(Member& member, int y, int x) {
    const int draws = n_ * s_.channels_, levels = s_.levels_;
    T* scratch = member.scratch + widest_ * n_;
    bind(member, *s_.input_, y, x, false);
    for (int q = draws * member.thread / threads_; q < draws * (member.thread + 1) / threads_; q++) {
      const int image = q / s_.channels_, channel = q % s_.channels_;
      const int64_t at = sub_pixel(image, channel, y, x);
      const T* logits = logits_ + image * s_.padded(*s_.output_) + channel * levels;
      if (job_.logits) std::copy_n(logits, levels, static_cast<T*>(job_.logits) + at * levels);
      if (!job_.known || !job_.known[at]) {
        int level = s_.kernels_.draw(logits, levels, job_.temperature, job_.noise[at], scratch);
        if (level < 0) report(image, channel, y, x);
        job_.levels[at] = std::max(level, 0);
      }
      put_level(member, image, channel, y, x, static_cast<T>(job_.levels[at]));
    }
  }

  void put_level(Member& member, int image, int channel, int y, int x, T level) {
    const int value = s_.input_->out;
    T* out = pixel(value, y, x) + image * s_.row_stride(s_.storage_[value]);
    out[channel] = level;
    s_.kernels_.epilogue(member.steps.data(), member.steps.size(), 1, 1, channel, channel + 1, {out, 0, 0}, {out, 0, 0});
  }

  // Keeps the first in the order of drawing, whichever thread comes first.
  void report(int image, int channel, int y, int x) {
    const std::lock_guard lock(mutex_);
    const auto order = [](const NonFiniteLogits& e) { return std::tuple(e.row, e.column, e.image, e.channel); };
    const NonFiniteLogits found(image, channel, y, x);
    if (!non_finite_ || order(found) < order(*non_finite_)) non_finite_.emplace(found);
  }

  const Sampler& s_;
  const Job& job_;
  const int n_, threads_;
  const std::function<void(int)>& on_row_;
  SpinBarrier barrier_;
  const Buffer workspace_;
  std::vector<T*> values_, partials_;
  T* logits_ = nullptr;
  int64_t widest_ = 0;
  std::atomic<bool> stop_{false};
  std::exception_ptr error_;
  std::mutex mutex_;
  std::optional<NonFiniteLogits> non_finite_;
};

template <class T>
void Sampler<T>::run(const Job& job, int threads, const std::function<void(int)>& on_row) const {
  int widest = 1;
  for (const auto& i : instructions_) widest = std::max(widest, i.blocks);
  const int members = std::clamp(threads, 1, widest);  // more would have no channels to own
  Run run(*this, job, members, on_row);
  run_team(members, [&run](int thread) { run.work(thread); });
  run.finish();
}

}  // namespace

std::unique_ptr<CpuSampler> make_cpu_sampler(const Program& program, Dtype dtype, Weights weights, const char* isa) {
  if (dtype == Dtype::float32) return std::make_unique<Sampler<float>>(program, weights, kernels<float>(isa));
  if (weights != Weights::same) throw std::invalid_argument("bf16 weights go with float32 sums, not with float64");
  return std::make_unique<Sampler<double>>(program, weights, kernels<double>(isa));
}

}  // namespace pcf

#include "cpu/sampler/sampler.h"

#include <atomic>
#include <chrono>
#include <deque>
#include <limits>

#include "cpu/sampler/choice.h"
#include "cpu/sampler/walk.h"
#include "cpu/threads/parallel.h"

namespace pcf::cpu {
namespace {

// With how many threads a group did not wait too long, where other processes keep the cores busy. That holds for
// three seconds, so that not every run of many has to find it out, and so that all threads are tried again soon.
class Crowding {
  using Clock = std::chrono::steady_clock;

 public:
  static constexpr int kNoLimit = std::numeric_limits<int>::max();

  void found(int threads) {
    threads_.store(threads, std::memory_order_relaxed);
    until_.store((Clock::now() + std::chrono::seconds(3)).time_since_epoch().count(), std::memory_order_relaxed);
  }
  int most_in_group() const {
    const bool holds = Clock::now().time_since_epoch().count() < until_.load(std::memory_order_relaxed);
    return holds ? threads_.load(std::memory_order_relaxed) : kNoLimit;
  }

 private:
  std::atomic<int> threads_{kNoLimit};
  std::atomic<Clock::rep> until_{std::numeric_limits<Clock::rep>::min()};
};

constexpr double kTuning = 0.2;              // seconds that are spent on trying schedules beforehand
constexpr int64_t kLittleMemory = 32 << 20;  // that several rows in flight may take in any case

template <class T>
class SamplerOf final : public Sampler {
 public:
  SamplerOf(const Program& program, WeightFormat format, const Kernels<T>& kernels)
      : program_(program), packed_(program, format, kernels) {
    program_.instructions.clear();  // they borrow weights that may be gone
  }

  std::vector<Schedule> schedules(int images, int threads, const Machine* machine) const override {
    threads = std::max(threads, 1);
    return possible(images, threads, Crowding::kNoLimit, machine ? *machine : here(threads));
  }

  int run(const Job& job, const Schedule& s, const std::function<void(int)>& on_row) const override {
    Ending ending;
    std::deque<Walk<T>> walks;  // of each group; they can't be moved
    for (int g = 0; g < s.groups; g++)
      walks.emplace_back(program_, packed_, s, part(job, g * s.images, s.images), g * s.images,
                         g == 0 ? &on_row : nullptr, ending);
    run_team(s.groups * s.threads, [&](int thread) { walks[thread / s.threads].work(thread % s.threads); });
    ending.rethrow();
    int at_end = s.threads;
    for (const auto& walk : walks) at_end = std::min(at_end, walk.threads_at_end());
    return at_end;
  }

  int run(const Job& job, int threads, const std::function<void(int)>& on_row) const override {
    Choices::Turn turn = this->turn(job.images, threads);
    return run(job, turn, on_row);
  }

  Schedule chosen(int images, int threads) const override { return turn(images, threads).schedule; }

  int together(int images, int threads) const override {
    if (packed_.work.cached == 0) return images;
    const Machine machine = here(std::max(threads, 1));
    int best = images;
    double least = std::numeric_limits<double>::infinity();
    for (int size = images; size > 0; size = size > 1 ? divided_up(size, 2) : 0) {
      const double cost = schedules(size, threads, &machine)[0].cost * divided_up(images, size);
      if (cost < least) least = cost, best = size;
    }
    return best;
  }

  void tune(int images, int threads) const override {
    const auto start = Clock::now();
    const auto is_worth_it = [&](const Choices::Turn& turn) {
      return turn.is_open && seconds_since(start) + turn.schedule.cost <= kTuning;
    };
    if (!is_worth_it(turn(images, threads))) return;
    const int64_t pixels = int64_t{program_.height} * program_.width, sub_pixels = pixels * program_.image_channels;
    std::vector<char> values(images * sub_pixels * kValueBytes);
    const std::vector<double> noise(images * pixels * program_.head.distributions * program_.head.uniforms);
    int64_t largest = 0;
    for (const auto& c : program_.conditions) largest = std::max(largest, images * elements(program_, c));
    const std::vector<T> zeros(largest);
    const Job job{images, values.data(), nullptr, noise.data(), {program_.conditions.size(), zeros.data()}, {}};
    for (int tries = 0; tries < Choice::kCandidates * Choice::kRuns; tries++) {
      Choices::Turn turn = this->turn(images, threads);
      if (!is_worth_it(turn)) return;
      try {
        run(job, turn, [](int) {});
      } catch (const NonFiniteLogits&) {
        return;  // of conditions that are zero
      }
    }
  }

  int64_t workspace_bytes(const Schedule& s) const override {
    return s.groups * Workspace<T>(program_, packed_, s, s.images, true).bytes();
  }

 private:
  Machine here(int threads) const {
    // Keys and values of many images may be larger than the weights.
    if (packed_.work.cached > 0) {
      const ZeroedBlock memory(int64_t{1} << Machine::kMost);
      return machine(threads, memory.get(), int64_t{1} << Machine::kMost);
    }
    return machine(threads, packed_.weights->get(), packed_.weight_bytes);
  }

  std::vector<Schedule> possible(int images, int threads, int in_group, const Machine& machine) const {
    auto all = possible_schedules(program_, packed_.work, machine, images, threads, in_group);
    // Several rows in flight may take a little memory, a quarter of what weights take, or twice what one row takes.
    int64_t most = std::max(kLittleMemory, packed_.weight_bytes / 4);
    for (const Schedule& s : all)
      if (!s.is_wave()) most = std::max(most, 2 * workspace_bytes(s));
    std::erase_if(all, [&](const Schedule& s) { return s.is_wave() && workspace_bytes(s) > most; });
    return all;
  }

  Choices::Turn turn(int images, int threads) const {
    threads = std::max(threads, 1);
    const int in_group = crowding_.most_in_group();
    return {choices_, {images, threads, in_group}, [&] { return possible(images, threads, in_group, here(threads)); }};
  }

  int run(const Job& job, Choices::Turn& turn, const std::function<void(int)>& on_row) const {
    const auto start = Clock::now();
    const int at_end = run(job, turn.schedule, on_row);
    if (at_end < turn.schedule.threads)
      crowding_.found(at_end);
    else if (!job.known)
      turn.took(seconds_since(start));
    return at_end;
  }

  // The job for images first ... first + count - 1, or for as many of them as there are.
  Job part(const Job& job, int first, int count) const {
    const int64_t pixels = int64_t{program_.height} * program_.width, sub_pixels = pixels * program_.image_channels;
    const Head& head = program_.head;
    const int64_t distributions = pixels * head.distributions;
    const auto moved = [&](auto* array, int64_t elements) { return array ? array + first * elements : nullptr; };
    Job part = job;
    part.images = std::min(count, job.images - first);
    part.values = moved(static_cast<char*>(job.values), sub_pixels * kValueBytes);
    part.known = moved(job.known, sub_pixels);
    part.noise = moved(job.noise, distributions * head.uniforms);
    part.parameters = moved(static_cast<T*>(job.parameters), distributions * head.parameters);
    part.log_probability = moved(job.log_probability, sub_pixels);
    for (size_t c = 0; c < job.conditions.size(); c++)
      part.conditions[c] =
          moved(static_cast<const T*>(job.conditions[c]), image_stride(program_, program_.conditions[c]));
    return part;
  }

  Program program_;
  const PackedProgram<T> packed_;
  mutable Crowding crowding_;
  mutable Choices choices_;
};

}  // namespace

std::unique_ptr<Sampler> make_sampler(const Program& program, bool float64, WeightFormat format, const char* isa) {
  if (!float64) return std::make_unique<SamplerOf<float>>(program, format, kernels<float>(isa));
  if (format != WeightFormat::same) throw std::invalid_argument("bf16 weights go with float32 sums, not with float64");
  return std::make_unique<SamplerOf<double>>(program, format, kernels<double>(isa));
}

}  // namespace pcf::cpu

#include "cpu/sampler/machine.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <map>
#include <mutex>
#include <thread>

#include "cpu/memory/pool.h"
#include "cpu/simd/cpu_features.h"
#include "cpu/simd/kernels.h"
#include "cpu/threads/barrier.h"
#include "cpu/threads/over_forks.h"
#include "cpu/threads/parallel.h"

namespace pcf::cpu {
namespace {

// The least of some times that `threads` threads take for work(thread), each of which begins when all are there. Where
// other processes keep the cores busy, that takes long, so after `until`, one time is enough.
double seconds(int threads, int repeats, Clock::time_point until, const std::function<void(int)>& work) {
  SpinBarrier barrier(threads);
  double least = 1e9;
  std::atomic<int> end{repeats};
  run_team(threads, [&](int thread) {
    for (int repeat = 0;; repeat++) {
      barrier.wait(thread, threads);
      if (repeat >= end) return;
      const auto start = Clock::now();
      work(thread);
      if (thread > 0) continue;
      least = std::min(least, seconds_since(start));
      if (Clock::now() > until) end = repeat + 1;
    }
  });
  return least;
}

// Products of some rows with matrices of weights.
class Products {
 public:
  static constexpr int kDepth = 128, kBlocks = 8;  // of a matrix

  Products(int threads, int rows) : rows_(rows), x_(rows * kDepth), x_rows_(rows_from(x_.data(), rows, kDepth)) {
    for (int thread = 0; thread < threads; thread++) {
      auto& to = to_.emplace_back(aligned(rows * channels() * sizeof(float)));
      to_rows_.push_back(rows_from(reinterpret_cast<float*>(to.get()), rows, channels()));
    }
  }

  int64_t matrix_bytes() const { return kBlocks * block_bytes_; }
  int channels() const { return kBlocks * kernels_.block; }

  // By the matrices that so many bytes hold.
  void multiply(int thread, const char* weights, int64_t bytes) const {
    const auto* to = to_rows_[thread].data();
    for (; bytes >= matrix_bytes(); bytes -= matrix_bytes(), weights += matrix_bytes())
      kernels_.matmul(x_rows_.data(), rows_, {weights, kDepth, block_bytes_, WeightFormat::same}, 0, kBlocks, {to, to});
  }

 private:
  const Kernels<float>& kernels_ = kernels<float>(chosen_isa());
  const int64_t block_bytes_ = kernels_.block_bytes(kDepth, WeightFormat::same);
  const int rows_;
  const std::vector<float> x_;
  const std::vector<const float*> x_rows_;
  std::vector<ZeroedBlock> to_;
  std::vector<std::vector<float*>> to_rows_;
};

// Of threads that wait for each other again and again, and in between read so many elements that another has just
// written.
double meeting_seconds(int threads, int elements, Clock::time_point until) {
  constexpr int kMeetings = 20, kTimes = 50, kLine = 64 / sizeof(float);
  SpinBarrier barrier(threads);
  const ZeroedBlock memory(aligned(2 * threads * elements * sizeof(float) + 1));
  float* const written = reinterpret_cast<float*>(memory.get());
  const auto meet = [&](int thread) {
    for (int i = 0; i < kMeetings; i++) {
      float* const now = written + i % 2 * threads * elements;  // nobody reads what was written before the last meeting
      std::fill_n(now + thread * elements, elements, 1.f);
      barrier.wait(thread, threads);
      for (int k = 0; k < elements; k += kLine)
        static_cast<void>(static_cast<volatile float*>(now)[(thread + 1) % threads * elements + k]);
    }
  };
  return seconds(threads, kTimes, until, meet) / kMeetings;
}

struct Known {
  std::mutex mutex;
  std::map<int, Machine> by_threads;
};

}  // namespace

double Machine::bandwidth(double bytes) const {
  const int last = bandwidths.size() - 1;
  if (last < 0) return std::numeric_limits<double>::infinity();  // nothing that is so small streams
  const double at = std::clamp<double>(std::log2(std::max(bytes, 1.0)) - kLeast, 0, last);
  const int below = at, above = std::min(below + 1, last);
  return bandwidths[below] + (at - below) * (bandwidths[above] - bandwidths[below]);
}

Machine machine(int threads, const void* weights, int64_t bytes) {
  threads = std::clamp<int>(threads, 1, std::max(1u, std::thread::hardware_concurrency()));
  Known& known = over_forks<Known>();
  const std::lock_guard lock(known.mutex);
  Machine& m = known.by_threads[threads];
  const auto until = Clock::now() + std::chrono::milliseconds(20);
  if (m.multiply_add == 0) {
#if defined(_SC_LEVEL2_CACHE_SIZE)  // not on macOS
    if (const long l2 = sysconf(_SC_LEVEL2_CACHE_SIZE); l2 > 0) m.l2 = l2;
#endif
    constexpr int kRows = 24, kTimes = 4;
    const Products products(threads, kRows);
    const ZeroedBlock matrix(products.matrix_bytes());
    const auto multiply = [&](int thread) {
      for (int i = 0; i < kTimes; i++) products.multiply(thread, matrix.get(), products.matrix_bytes());
    };
    m.multiply_add = seconds(threads, 6, until, multiply) / (kTimes * kRows * Products::kDepth * products.channels());
    // Where other processes keep the cores busy, threads wait far longer for each other, but not as a rule.
    if (threads > 1) {
      constexpr int kElements = 512;
      const double barrier = meeting_seconds(threads, 0, until);
      m.barrier = std::min(barrier / (threads - 1), 1e-6);
      m.element = std::clamp((meeting_seconds(threads, kElements, until) - barrier) / kElements, 0.0, 1e-8);
    }
  }
  for (int size = Machine::kLeast + m.bandwidths.size(); size <= Machine::kMost && bytes >> size > 0; size++) {
    const Products products(threads, 1);
    const int64_t part = int64_t{1} << size;
    const auto go_through = [&](int thread) {
      const int64_t first = std::min(thread * part, bytes - part) / 64 * 64;
      products.multiply(thread, static_cast<const char*>(weights) + first, part);
    };
    m.bandwidths.push_back(part / seconds(threads, 3, until, go_through));
  }
  return m;
}

}  // namespace pcf::cpu

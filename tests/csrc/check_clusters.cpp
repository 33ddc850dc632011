// Checks the emulation's clusters (emulation/scheduler.h): blocks of a small kernel tell each other numbers, on many
// schedules. Its results are right; with a synchronisation left out, or a mistake, they are not on some schedule, or
// the emulation says what is wrong. Exits 1 otherwise. Under the sanitizers of addresses and threads only the right
// kernel runs: the others have races, and errors leave stacks behind.
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/kernels/device.h"

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
constexpr bool kOnlyRight = true;
#else
constexpr bool kOnlyRight = false;
#endif

extern "C" const char* __asan_default_options() { return "detect_stack_use_after_return=0"; }

namespace {

using namespace pcf::cuda;

constexpr unsigned kBlockThreads = 64, kBlockWarps = 2, kTold = 32, kPhases = 7;
constexpr uint32_t kBuffers = 16;  // behind two barriers

template <class T>
T& in_shared(uint32_t at) {
  return *reinterpret_cast<T*>(shared_memory() + at);
}

enum class Mistake { none, one_buffer, one_barrier, reads_late, few_bytes, many_bytes, few_arrivals, other_parity };

uint64_t first_number(unsigned block, unsigned thread) { return (block * 1000 + thread + 1) * 0x9E3779B97F4A7C15u; }

// What a thread makes of its block's numbers and those that the others tell: number(rank, thread).
template <class Number>
uint64_t mixed(unsigned size, unsigned rank, unsigned thread, const Number& number) {
  uint64_t sum = thread;
  for (unsigned r = 0; r < size; r++)
    for (unsigned t = 0; t < (r == rank ? kBlockThreads : kTold); t++) sum = sum * 6364136223846793005u + number(r, t);
  return sum;
}

// Phases have two barriers and two buffers in turn. The first warp tells the other blocks its numbers. A warp that
// arrives has written its own and has read those of the phase before, so whoever has seen a phase end may write the
// other buffer, in every block.
void exchange(uint64_t* results, unsigned size, Mistake mistake) {
  const unsigned thread = threadIdx.x, lane = thread % 32, rank = cluster_rank(), block = blockIdx.x;
  const bool one_barrier = mistake == Mistake::one_barrier, reads_late = mistake == Mistake::reads_late;
  const int wrong_bytes = (mistake == Mistake::many_bytes) - (mistake == Mistake::few_bytes);
  if (thread == 0)
    for (const uint32_t barrier : {0, 8})
      init_barrier(barrier, static_cast<int>(size * kBlockWarps) - (mistake == Mistake::few_arrivals));
  sync_cluster();
  uint64_t mine = first_number(block, thread);
  for (unsigned phase = 0; phase < kPhases; phase++) {
    const uint32_t barrier = one_barrier ? 0 : phase % 2 * 8;
    const unsigned parity = (one_barrier ? phase : phase / 2) % 2 ^ (mistake == Mistake::other_parity);
    const uint32_t buffer = kBuffers + (mistake == Mistake::one_buffer ? 0 : phase % 2) * size * kBlockThreads * 8;
    const uint32_t at = buffer + (rank * kBlockThreads + thread) * 8;
    if (thread == 0) expect_bytes(barrier, static_cast<int>((size - 1) * kTold * 8) + 8 * wrong_bytes);
    in_shared<uint64_t>(at) = mine;
    for (unsigned other = 0; other < size; other++) {
      if (other == rank || thread >= kTold) continue;
      if (phase % 2) {
        send(other, at, mine, barrier);
      } else {
        send(other, at, static_cast<uint32_t>(mine), barrier);
        send(other, at + 4, __uint_as_float(static_cast<uint32_t>(mine >> 32)), barrier);
      }
    }
    __shfl_sync(kAllLanes, 0, 0);  // all lanes have come this far
    if (lane == 0) arrive(barrier, rank);
    if (lane < size && lane != rank && (phase == 0 || !reads_late)) arrive(barrier, lane);
    if (phase % 2)
      while (!phase_is_over(barrier, parity)) {
      }
    else
      while (!phase_is_over(barrier, parity)) {
      }
    if (lane < size && lane != rank && phase + 1 < kPhases && reads_late) arrive(8 - barrier, lane);
    mine = mixed(size, rank, thread,
                 [&](unsigned r, unsigned t) { return in_shared<uint64_t>(buffer + (r * kBlockThreads + t) * 8); });
  }
  results[block * kBlockThreads + thread] = mine;
  sync_cluster();
  const uint64_t theirs = results[(block - rank + (rank + 1) % size) * kBlockThreads + thread];
  sync_cluster();
  results[block * kBlockThreads + thread] = mine ^ theirs << 1;
}

// Each block sends its numbers to the next, which waits for nothing but their bytes. What arrives and is not waited for
// comes before sync_cluster() is left, so that blocks may end.
void pass_on(uint64_t* results, unsigned size) {
  const unsigned thread = threadIdx.x, rank = cluster_rank(), next = (rank + 1) % size;
  if (thread == 0) init_barrier(0, 1), init_barrier(8, 1);
  sync_cluster();
  if (thread == 0) expect_bytes(0, kBlockThreads * 8), arrive(0, rank);
  send(next, kBuffers + thread * 8, first_number(blockIdx.x, thread), 0);
  while (!phase_is_over(0, 0)) {
  }
  results[blockIdx.x * kBlockThreads + thread] = in_shared<uint64_t>(kBuffers + (kBlockThreads - 1 - thread) * 8);
  if (thread == 0) arrive(8, next);
  sync_cluster();
}

std::vector<uint64_t> expected(unsigned blocks, unsigned size) {
  const auto index = [](unsigned block, unsigned thread) { return block * kBlockThreads + thread; };
  std::vector<uint64_t> numbers(blocks * kBlockThreads), next = numbers;
  for (unsigned step = 0; step <= kPhases + 1; step++) {
    for (unsigned b = 0; b < blocks; b++)
      for (unsigned t = 0; t < kBlockThreads; t++) {
        const unsigned rank = b % size;
        const auto number = [&](unsigned r, unsigned u) { return numbers[index(b - rank + r, u)]; };
        if (step == 0)
          next[index(b, t)] = first_number(b, t);
        else if (step <= kPhases)
          next[index(b, t)] = mixed(size, rank, t, number);
        else
          next[index(b, t)] = number(rank, t) ^ number((rank + 1) % size, t) << 1;
      }
    numbers = next;
  }
  return numbers;
}

void require(bool ok, const std::string& what) {
  if (ok) return;
  std::printf("FAILED: %s\n", what.c_str());
  std::exit(1);
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const emulation::Launch& how, const Arguments&... arguments) {
  emulation::run(how, [&] { kernel(arguments...); });
}

// What goes wrong first on these schedules; nothing: "".
std::string outcome(unsigned size, Mistake mistake = Mistake::none, unsigned seeds = 100) {
  const emulation::Launch how{3 * size, kBlockThreads, kBuffers + 2 * size * kBlockThreads * 8, size};
  const std::vector<uint64_t> right = expected(how.blocks, size);
  for (unsigned seed = 0; seed < seeds; seed++) {
    emulation::set_seed(seed);
    std::vector<uint64_t> results(right.size());
    try {
      launch(exchange, how, results.data(), size, mistake);
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    if (results != right) return "other results";
  }
  return "";
}

void check_pass_on(unsigned size) {
  for (unsigned seed = 0; seed < 100; seed++) {
    emulation::set_seed(seed);
    std::vector<uint64_t> results(2 * size * kBlockThreads);
    launch(pass_on, {2 * size, kBlockThreads, kBuffers + kBlockThreads * 8, size}, results.data(), size);
    for (unsigned b = 0; b < 2 * size; b++)
      for (unsigned t = 0; t < kBlockThreads; t++) {
        const uint64_t right = first_number(b / size * size + (b + size - 1) % size, kBlockThreads - 1 - t);
        require(results[b * kBlockThreads + t] == right, "numbers that are passed on");
      }
  }
}

// -- mistakes of which the emulation must say what is wrong, in a cluster of two blocks of 32 threads

struct Case {
  const char* error;
  void (*kernel)();
};
bool is_first() { return threadIdx.x == 0; }
void begin_one(int arrivals) {
  if (is_first()) init_barrier(0, arrivals);
  sync_cluster();
}
void wait_for(unsigned parity) {
  while (!phase_is_over(0, parity)) {
  }
}
const Case kCases[] = {
    {"it was never begun", [] { arrive(0, 0); }},
    {"it was never begun", [] { phase_is_over(0, 0); }},
    {"it was never begun", [] { send(1 - cluster_rank(), 8, 1, 0); }},
    {"it was begun already", [] { init_barrier(0, 1); }},
    {"it needs an arrival at least", [] { init_barrier(0, 0); }},
    {"something else was written there",
     [] {
       begin_one(1);
       in_shared<int>(4) = 0;
       wait_for(0);
     }},
    {"more arrivals come than the phase expects",
     [] {
       begin_one(31);
       if (is_first()) expect_bytes(0, 4);
       __syncthreads();
       arrive(0, cluster_rank());
     }},
    {"bytes are expected after all have arrived",
     [] {
       begin_one(1);
       if (!is_first()) return;
       expect_bytes(0, 4);
       arrive(0, cluster_rank());
       expect_bytes(0, 4);
     }},
    {"more bytes come than the phase expects",
     [] {
       begin_one(1);
       if (is_first()) send(1 - cluster_rank(), 8, 1.0f, 0);
       sync_cluster();
       if (is_first()) arrive(0, cluster_rank());
     }},
    {"more arrivals come than the phase expects",
     [] {
       begin_one(1);
       if (is_first()) arrive(0, 1 - cluster_rank()), arrive(0, cluster_rank());
       if (is_first()) arrive(0, cluster_rank()), expect_bytes(0, 4), arrive(0, cluster_rank());
     }},
    {"a parity of 2",
     [] {
       begin_one(1);
       phase_is_over(0, 2);
     }},
    {"two phases ended while this thread waited for the first",
     [] {
       begin_one(1);
       if (!is_first()) wait_for(0);
       for (int phase = 0; is_first() && phase < 2; phase++) {
         arrive(0, cluster_rank());
         wait_for(phase);
       }
     }},
    {"of the cluster has ended",
     [] {
       begin_one(1);
       if (cluster_rank() == 0 && is_first()) arrive(0, 1);
     }},
    {"a block ended before all that was sent to it had come",
     [] {
       begin_one(1);
       if (is_first()) send(1 - cluster_rank(), 8, uint64_t{1}, 0);
       sync_cluster();
     }},
    {"block 2 of a cluster of 2",
     [] {
       begin_one(1);
       arrive(0, 2);
     }},
    {"4 bytes at 64 of 64 of shared memory",
     [] {
       begin_one(1);
       send(1 - cluster_rank(), 64, 1, 0);
     }},
    {"8 bytes at 12 of 64 of shared memory",
     [] {
       begin_one(1);
       send(1 - cluster_rank(), 12, 1.0, 0);
     }},
    {"it can't count so many bytes",
     [] {
       begin_one(1);
       expect_bytes(0, 1 << 20);
     }},
    {"every thread waits: a deadlock",
     [] {
       begin_one(1);
       wait_for(0);
     }},
    {"every thread waits: a deadlock",
     [] {
       begin_one(2);
       if (is_first()) arrive(0, 1 - cluster_rank());
       while (!__shfl_sync(kAllLanes, phase_is_over(0, 0), 0)) {
       }
     }},
    {"sync_cluster after a thread of the cluster has ended",
     [] {
       if (cluster_rank() == 0) sync_cluster();
     }},
    {"a thread ended while others wait in sync_cluster",
     [] {
       if (cluster_rank() == 0) sync_cluster();
     }},
    {"while others wait in line",
     [] {
       if (cluster_rank() == 0)
         sync_cluster();
       else
         sync_cluster();
     }},
};

void check_errors() {
  for (const Case& c : kCases) {
    bool found = false;
    for (unsigned seed = 0; seed < 100 && !found; seed++) try {
        emulation::set_seed(seed);
        launch(c.kernel, {4, 32, 64, 2});
      } catch (const std::runtime_error& error) {
        found = std::string(error.what()).find(c.error) != std::string::npos;
      }
    require(found, std::string("the emulation says: ") + c.error);
  }
  try {
    launch(kCases[0].kernel, {3, 32, 64, 2});
    require(false, "clusters of two blocks among three");
  } catch (const std::runtime_error&) {
  }
}

void check_faults(unsigned size) {
  emulation::forget();
  outcome(size, Mistake::none, 1);
  const std::vector<emulation::Site> sites = emulation::seen();
  for (const emulation::Site& site : sites) {
    if (size == 1 && site.name == "sync_cluster" && site.line != sites[0].line) continue;  // nobody else's is read
    if (size == 1 && site.name == "expect_bytes") continue;                                // nobody else sends any
    emulation::leave_out(site);
    const std::string found = outcome(size);
    emulation::leave_out({"", 0});
    require(!found.empty(), site.name + " in line " + std::to_string(site.line) + " is needed");
  }
  using enum Mistake;
  for (const Mistake mistake :
       {one_buffer, one_barrier, reads_late, few_bytes, many_bytes, few_arrivals, other_parity}) {
    if (size == 1 && (mistake == one_barrier || mistake == reads_late)) continue;  // right in a block alone
    require(!outcome(size, mistake).empty(), "mistake " + std::to_string(static_cast<int>(mistake)) + " is noticed");
  }
}

}  // namespace

int main() try {
  for (const unsigned size : {1, 2, 4}) {
    const std::string found = outcome(size);
    require(found.empty(), "clusters of " + std::to_string(size) + ": " + found);
  }
  for (const unsigned size : {2, 4}) check_pass_on(size);
  if (!kOnlyRight) {
    for (const unsigned size : {1, 2, 4}) check_faults(size);
    check_errors();
  }
  std::printf("ok\n");
} catch (const std::runtime_error& error) {
  std::printf("FAILED: %s\n", error.what());
  return 1;
}

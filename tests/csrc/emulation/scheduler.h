// Runs CUDA kernels on the host: every thread of a block is a fiber, all fibers take turns on one OS thread, and a
// seeded generator decides whose turn it is wherever a fiber waits. So a run can be repeated exactly, and another
// seed is another schedule. scheduler.cpp must be compiled without sanitizers; kernels may be compiled with them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace emulation {

struct Launch {
  unsigned blocks, threads;  // a few blocks at a time, in any order; those of a cluster all at once
  size_t shared_bytes = 0;
  unsigned cluster = 1;  // blocks in one; it divides their number
};

// One synchronisation can be made to do nothing, to show that its absence is noticed: all calls of `name` in source
// line `line`. `seen` holds the calls that kernels have made, so that a test can leave out each in turn.
struct Site {
  std::string name;
  unsigned line;
};
void leave_out(const Site&);
std::vector<Site> seen();
void forget();  // ... those seen so far
bool left_out(const char* name, unsigned line);

void set_seed(uint64_t seed);
void run_last(unsigned clusters);  // of each launch that follows, only so many at its end, or blocks without clusters
void run(const Launch&, const std::function<void()>& kernel);

// -- called by the running fiber; errors in the kernel's use of them end the run with std::runtime_error

unsigned thread_index();
unsigned block_index();
char* shared_memory();
void sync_block(unsigned line);
void end_thread();
uint32_t time_passed();  // it stands still unless all threads wait

// All lanes of the warp wait for each other; the last to arrive calls act(posts), where posts[lane] is what each lane
// brought. orders_memory: what a lane wrote before is seen by the others afterwards.
void sync_lanes(void* post, void (*act)(void** posts), bool orders_memory);

char* global_memory(uint64_t address);  // of 16 bytes; an address made of what nobody wrote ends the run

// Blocks with one index / launch.cluster are a cluster. `at`: bytes from the start of a block's shared memory. What a
// barrier is, and what the functions do, is in csrc/cuda/kernels/device.h.
constexpr uint64_t kBarrier = 0x6d656574696e6721;  // what its 8 bytes hold, so that it shows if they are overwritten

unsigned cluster_rank();
char* in_cluster(unsigned rank, uint32_t at, unsigned bytes);  // so many bytes there, aligned to as many
void sync_cluster(unsigned line);
void init_barrier(uint32_t at, int arrivals);  // the 8 bytes hold kBarrier already
void expect_bytes(uint32_t at, int bytes);
void arrive(uint32_t at, unsigned rank);
bool phase_is_over(uint32_t at, unsigned parity);  // before the first phase, one of parity 1 is over, as on a GPU
void send(unsigned rank, uint32_t at, uint64_t bits, unsigned bytes, uint32_t barrier);

void copy_async(void* to, const void* from);
void wait_copies();

}  // namespace emulation

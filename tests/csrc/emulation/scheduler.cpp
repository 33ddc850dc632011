#include "scheduler.h"

#include <sys/mman.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#ifdef EMULATION_THREAD_SANITIZER
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
}
#else
static void __tsan_acquire(void*) {}
static void __tsan_release(void*) {}
#endif
#ifdef EMULATION_ADDRESS_SANITIZER
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
}
#endif

// Leaves the present stack, whose pointer goes to *from, for another one. (swapcontext does too, with two calls of the
// operating system, and millions of switches are made.)
extern "C" void emulation_switch(void** from, void* to);
#if defined(__x86_64__)
constexpr int kSaved = 6;  // registers that a function must keep
asm(R"(
.globl emulation_switch
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#else
#error "emulation_switch is written for x86-64: add this processor's version"
#endif

namespace emulation {
namespace {

constexpr size_t kStack = 256 << 10;
constexpr size_t kColours = 1021, kLine = 64;  // stacks end at different lines of the cache, or they would share a few
constexpr unsigned kWarp = 32, kBlocksAtOnce = 3, kClustersAtOnce = 2;
constexpr unsigned kSends = 16;                    // of a thread that can be under way
constexpr unsigned kRounds = 100, kMostTime = 10;  // see Grid::rounds

struct Copy {
  void* to;
  const void* from;
};

struct Block;
struct Mbarrier;

struct Fiber {
  char* stack;
  void* stack_pointer;
  Block* block;
  unsigned index;
  void* post = nullptr;
  std::vector<Copy> copies;           // that are not done yet
  const Mbarrier* awaited = nullptr;  // the last that was not over, and its phase then
  unsigned awaited_phase;
  void *sanitizer_fiber = nullptr, *fake_stack = nullptr;
};

// Where fibers wait until all have come. Two addresses for the sanitizer, used in turn, so that a fiber that is already
// on its way to the next round is not taken for one of this.
struct Barrier {
  unsigned expected = 0;
  std::vector<Fiber*> waiting;
  unsigned round = 0, line = 0;
  char order[2];
};

struct Mbarrier {
  int expected, arrivals;  // those of a phase, and those that this one still lacks
  int bytes = 0;           // expected and not here yet; negative: here and not expected yet
  unsigned phase = 0;
  char order[2] = {};  // for the sanitizer: of phases with this parity
};

// An arrival, or a value and its bytes, on the way to a mbarrier of a block.
struct Sent {
  unsigned block;
  uint32_t mbarrier, at;
  unsigned bytes;  // 0: an arrival
  uint64_t bits;
  bool late;  // comes once nothing else can happen
};

struct Cluster {
  unsigned live;  // threads
  Barrier barrier;
  std::vector<Sent> sent;
};

struct Block {
  unsigned index, live;
  Cluster* cluster;
  std::map<uint32_t, Mbarrier> mbarriers;
  std::unique_ptr<char[]> memory;
  char* shared;
  std::vector<Fiber> fibers;
  Barrier barrier;
  std::vector<Barrier> warps;
};

struct Ready {
  Ready(Fiber* fiber);
  Fiber* fiber;
  uint32_t rank;  // of its block, see take_ready(): kept here, as it is compared more often than anything else happens
};

struct Grid {
  Launch launch;
  const std::function<void()>* kernel;
  std::map<unsigned, std::unique_ptr<Cluster>> clusters;  // those that are running, by index
  std::map<unsigned, std::unique_ptr<Block>> blocks;      // likewise
  std::vector<Ready> ready;
  // Fibers whose mbarrier is not over: about half of them, the others are ready at once. They are ready again when some
  // phase ends, or all others wait: then a round begins. Rounds that change nothing about any mbarrier take time, by
  // which threads may give up: one unit for kRounds of them. After kMostTime units, every thread waits for ever.
  std::vector<Ready> polling;
  unsigned rounds = 0;
  uint32_t time = 0;
  void* stack_pointer;  // the scheduler's
  void *sanitizer_fiber = nullptr, *fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_size = 0;
  char start, end;
  uint32_t favour;  // see take_ready() and come_some_time()
  std::string error;
};

// Fibers wait here, so nothing is allocated and no library function called that the thread sanitizer watches.
constexpr int kSites = 64;
struct {
  char name[24] = {};
  unsigned line;
} sites[kSites];
int n_sites = 0;
Site fault{"", 0};
bool same(const char* a, const char* b) {
  while (*a && *a == *b) a++, b++;
  return *a == *b;
}

Grid* grid;
Fiber* self;
std::mt19937_64 random_bits;
unsigned most_clusters = UINT_MAX;  // of a launch
std::vector<char*> free_stacks;

Ready::Ready(Fiber* fiber) : fiber(fiber), rank((fiber->block->index * 0x9E3779B1u) ^ grid->favour) {}

char* take_stack() {
  if (!free_stacks.empty()) {
    char* stack = free_stacks.back();
    free_stacks.pop_back();
    return stack;
  }
  void* stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED) throw std::bad_alloc();
  return static_cast<char*>(stack);
}

void to_scheduler(Fiber* fiber, bool for_good = false) {
#ifdef EMULATION_THREAD_SANITIZER
  __tsan_switch_to_fiber(grid->sanitizer_fiber, 1);  // 1: the switch itself orders nothing
#endif
#ifdef EMULATION_ADDRESS_SANITIZER
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber->fake_stack, grid->scheduler_stack,
                                 grid->scheduler_stack_size);
#endif
  (void)for_good;
  emulation_switch(&fiber->stack_pointer, grid->stack_pointer);
#ifdef EMULATION_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(fiber->fake_stack, nullptr, nullptr);
#endif
}

void resume(Fiber* fiber) {
  self = fiber;
#ifdef EMULATION_THREAD_SANITIZER
  __tsan_switch_to_fiber(fiber->sanitizer_fiber, 1);
#endif
#ifdef EMULATION_ADDRESS_SANITIZER
  __sanitizer_start_switch_fiber(&grid->fake_stack, fiber->stack, kStack);
#endif
  emulation_switch(&grid->stack_pointer, fiber->stack_pointer);
#ifdef EMULATION_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(grid->fake_stack, nullptr, nullptr);
#endif
  self = nullptr;
}

// The fiber never runs again; the run ends with this error.
void give_up(const std::string& error) {
  if (grid->error.empty()) {
    grid->error =
        "block " + std::to_string(self->block->index) + ", thread " + std::to_string(self->index) + ": " + error;
  }
  to_scheduler(self, true);
}

void entry() {
#ifdef EMULATION_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(nullptr, &grid->scheduler_stack, &grid->scheduler_stack_size);
#endif
  __tsan_acquire(&grid->start);
  (*grid->kernel)();
  end_thread();
}

// orders_memory: as in scheduler.h. act() runs once, when all have come.
template <class Act>
void wait_at(Barrier& barrier, bool orders_memory, const Act& act) {
  char* order = &barrier.order[barrier.round & 1];
  if (orders_memory) __tsan_release(order);
  barrier.waiting.push_back(self);
  Fiber* me = self;
  if (barrier.waiting.size() == barrier.expected) {
    act();
    barrier.round++;
    for (Fiber* fiber : barrier.waiting) grid->ready.push_back(fiber);
    barrier.waiting.clear();
  }
  to_scheduler(me);
  if (orders_memory) __tsan_acquire(order);
}

void start_block(unsigned index) {
  __tsan_release(&grid->start);
  auto block = std::make_unique<Block>();
  block->index = index;
  block->live = grid->launch.threads;
  block->cluster = grid->clusters[index / grid->launch.cluster].get();
  block->memory = std::make_unique<char[]>(grid->launch.shared_bytes + 128);
  block->shared = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(block->memory.get()) + 127) & ~uintptr_t{127});
  std::memset(block->shared, 0xff, grid->launch.shared_bytes);  // NaN to whoever reads what nobody wrote
  block->fibers = std::vector<Fiber>(grid->launch.threads);
  block->barrier.expected = grid->launch.threads;
  block->warps = std::vector<Barrier>((grid->launch.threads + kWarp - 1) / kWarp);
  // Fibers append to these lists and must not allocate: the sanitizer would take one's malloc and another's free for a
  // race.
  block->barrier.waiting.reserve(grid->launch.threads);
  for (Barrier& warp : block->warps) warp.waiting.reserve(kWarp);
  for (unsigned i = 0; i < grid->launch.threads; i++) {
    Fiber& fiber = block->fibers[i];
    block->warps[i / kWarp].expected++;
    fiber.stack = take_stack();
    fiber.block = block.get();
    fiber.index = i;
    char* const end = fiber.stack + kStack - (index * grid->launch.threads + i) * 13 % kColours * kLine;
    void** top = reinterpret_cast<void**>(end) - 2;  // as if entry() had been called
    *top = reinterpret_cast<void*>(entry);
    fiber.stack_pointer = top - kSaved;
#ifdef EMULATION_THREAD_SANITIZER
    fiber.sanitizer_fiber = __tsan_create_fiber(0);
#endif
    grid->ready.push_back(&fiber);
  }
  grid->blocks[index] = std::move(block);
}

void start_cluster(unsigned index) {
  const unsigned size = grid->launch.cluster, threads = size * grid->launch.threads;
  auto cluster = std::make_unique<Cluster>();
  cluster->live = cluster->barrier.expected = threads;
  cluster->barrier.waiting.reserve(threads);
  if (size > 1) cluster->sent.reserve(kSends * threads);
  grid->clusters[index] = std::move(cluster);
  for (unsigned rank = 0; rank < size; rank++) start_block(index * size + rank);
}

// Any ready fiber; in every other launch mostly one of the block that comes first in an order drawn for the launch, so
// that some blocks run far ahead of others.
Fiber* take_ready() {
  const uint64_t count = grid->ready.size();
  const auto below_count = [count](uint32_t bits) { return bits * count >> 32; };  // % would take most of the time
  size_t best = below_count(random_bits() >> 32);
  for (int tries = grid->favour % 2 ? 8 : 0; tries > 0; tries--) {
    const uint64_t bits = random_bits();
    for (const size_t other : {below_count(bits >> 32), below_count(static_cast<uint32_t>(bits))})
      if (grid->ready[other].rank < grid->ready[best].rank) best = other;
  }
  Fiber* fiber = grid->ready[best].fiber;
  grid->ready[best] = grid->ready.back();
  grid->ready.pop_back();
  return fiber;
}

void end_block(Block& block) {
  __tsan_acquire(&grid->end);  // its stacks are used again
  for (Fiber& fiber : block.fibers) {
#ifdef EMULATION_THREAD_SANITIZER
    __tsan_destroy_fiber(fiber.sanitizer_fiber);
#endif
    free_stacks.push_back(fiber.stack);
  }
  Cluster& cluster = *block.cluster;
  const unsigned index = block.index;
  grid->blocks.erase(index);
  if (cluster.live == 0) grid->clusters.erase(index / grid->launch.cluster);
}

// -- clusters

Block& block_of(unsigned rank) {
  const unsigned size = grid->launch.cluster;
  if (rank >= size) give_up("block " + std::to_string(rank) + " of a cluster of " + std::to_string(size));
  const auto found = grid->blocks.find(self->block->index / size * size + rank);
  if (found == grid->blocks.end()) give_up("block " + std::to_string(rank) + " of the cluster has ended");
  return *found->second;
}

[[noreturn]] void give_up_mbarrier(const Block& block, uint32_t at, const std::string& error) {
  give_up("the mbarrier at " + std::to_string(at) + " of block " + std::to_string(block.index) + ": " + error);
  __builtin_unreachable();
}

Mbarrier& find_mbarrier(Block& block, uint32_t at) {
  const auto found = block.mbarriers.find(at);
  if (found == block.mbarriers.end()) give_up_mbarrier(block, at, "it was never begun");
  uint64_t bits;
  std::memcpy(&bits, block.shared + at, 8);
  if (bits != kBarrier) give_up_mbarrier(block, at, "something else was written there");
  return found->second;
}

// What is on the way to a mbarrier comes at the latest when the phase could otherwise end. If it is another phase's, it
// could have come in this one, which is an error then.
void end_phase(Block& block, uint32_t at, Mbarrier& mbarrier) {
  if (mbarrier.arrivals > 0 || mbarrier.bytes > 0) return;
  bool more_bytes = mbarrier.bytes < 0, more_arrivals = false;
  for (const Sent& sent : block.cluster->sent)
    if (sent.block == block.index && sent.mbarrier == at) (sent.bytes ? more_bytes : more_arrivals) = true;
  if (more_bytes) give_up_mbarrier(block, at, "more bytes come than the phase expects");
  if (more_arrivals) give_up_mbarrier(block, at, "more arrivals come than the phase expects");
  mbarrier.phase++;
  mbarrier.arrivals = mbarrier.expected;
  grid->ready.insert(grid->ready.end(), grid->polling.begin(), grid->polling.end());
  grid->polling.clear();
}

void come(const Sent& sent) {
  grid->rounds = 0;
  Block* block = grid->blocks[sent.block].get();
  Mbarrier& mbarrier = find_mbarrier(*block, sent.mbarrier);
  if (sent.bytes == 0) {
    if (mbarrier.arrivals-- == 0) give_up_mbarrier(*block, sent.mbarrier, "more arrivals come than the phase expects");
  } else {
    if (sent.bytes == 4)
      std::memcpy(block->shared + sent.at, &sent.bits, 4);
    else
      std::memcpy(block->shared + sent.at, &sent.bits, 8);
    mbarrier.bytes -= static_cast<int>(sent.bytes);
  }
  end_phase(*block, sent.mbarrier, mbarrier);
}

template <class Chosen>
void let_come(Cluster& cluster, const Chosen& chosen) {
  for (size_t i = cluster.sent.size(); i-- > 0;) {
    if (!chosen(cluster.sent[i])) continue;
    const Sent sent = cluster.sent[i];
    cluster.sent[i] = cluster.sent.back();
    cluster.sent.pop_back();
    come(sent);
  }
}

// At once, or later, at random: when somebody in the cluster polls, or as late as can be. So both a missing wait and
// what is overwritten too early show. A phase that waits for what is late ends when all others wait, so that nobody
// overtakes a thread that still reads: therefore nothing is late in every other launch, and all comes at once in half
// of those.
void come_some_time(Sent sent) {
  std::vector<Sent>& under_way = self->block->cluster->sent;
  const bool some_are_late = grid->favour & 4, all_at_once = !some_are_late && grid->favour & 8;
  const uint64_t bits = random_bits();
  sent.late = some_are_late && bits & 2;
  if (all_at_once || bits & 1 || under_way.size() == under_way.capacity())  // it must not grow: see start_block()
    come(sent);
  else
    under_way.push_back(sent);
}

// What all lanes of the running fiber's warp have done so far.
void release_warp(char* order) {
#ifdef EMULATION_THREAD_SANITIZER
  Block& block = *self->block;
  for (unsigned i = self->index / kWarp * kWarp; i < block.fibers.size() && i / kWarp == self->index / kWarp; i++) {
    __tsan_switch_to_fiber(block.fibers[i].sanitizer_fiber, 1);
    __tsan_release(order);
  }
  __tsan_switch_to_fiber(self->sanitizer_fiber, 1);
#endif
  (void)order;
}

}  // namespace

void leave_out(const Site& site) { fault = site; }

std::vector<Site> seen() {
  std::vector<Site> result;
  for (int i = 0; i < n_sites; i++) result.push_back({sites[i].name, sites[i].line});
  return result;
}

void forget() { n_sites = 0; }

bool left_out(const char* name, unsigned line) {
  bool known = false;
  for (int i = 0; i < n_sites; i++) known |= sites[i].line == line && same(sites[i].name, name);
  if (!known && n_sites < kSites) {
    sites[n_sites].line = line;
    for (int c = 0; c == 0 || name[c - 1]; c++) sites[n_sites].name[c] = name[c];
    n_sites++;
  }
  return fault.line == line && same(fault.name.c_str(), name);
}

void set_seed(uint64_t seed) { random_bits.seed(seed); }

void run_last(unsigned clusters) { most_clusters = clusters; }

void run(const Launch& launch, const std::function<void()>& kernel) {
  const unsigned count = launch.blocks;
  if (count == 0 || launch.threads == 0 || launch.threads > 1024)
    throw std::runtime_error("a launch of " + std::to_string(count) + " blocks of " + std::to_string(launch.threads) +
                             " threads");
  if (launch.cluster == 0 || count % launch.cluster)
    throw std::runtime_error("a launch of " + std::to_string(count) + " blocks in clusters of " +
                             std::to_string(launch.cluster));
  Grid g;
  grid = &g;
  g.launch = launch, g.kernel = &kernel, g.favour = static_cast<uint32_t>(random_bits());
#ifdef EMULATION_THREAD_SANITIZER
  g.sanitizer_fiber = __tsan_get_current_fiber();
#endif
  const unsigned clusters = count / launch.cluster;
  std::vector<unsigned> waiting(std::min(clusters, most_clusters));
  for (unsigned i = 0; i < waiting.size(); i++) waiting[i] = clusters - waiting.size() + i;
  const unsigned at_once = launch.cluster == 1 ? kBlocksAtOnce : kClustersAtOnce * launch.cluster;
  g.ready.reserve(size_t{at_once} * launch.threads);
  g.polling.reserve(size_t{at_once} * launch.threads);
  unsigned running = 0;
  while (running || !waiting.empty()) {
    for (; running + launch.cluster <= at_once && !waiting.empty(); running += launch.cluster) {
      std::swap(waiting[random_bits() % waiting.size()], waiting.back());
      start_cluster(waiting.back());
      waiting.pop_back();
    }
    if (g.ready.empty() && g.error.empty()) {
      if (g.polling.empty() || ++g.rounds > kMostTime * kRounds) g.error = "every thread waits: a deadlock";
      if (g.rounds % kRounds == 0) g.time++;
      g.ready.swap(g.polling);
    }
    if (!g.error.empty()) break;  // the fibers' stacks are given up
    Fiber* fiber = take_ready();
    resume(fiber);
    if (fiber->block->live == 0) {
      end_block(*fiber->block);
      running--;
    }
  }
  grid = nullptr;
  if (!g.error.empty()) throw std::runtime_error("emulated kernel: " + g.error);
}

void end_thread() {
  if (!self->copies.empty()) give_up("a thread ended while it still copies");
  __tsan_release(&grid->end);
  Block& block = *self->block;
  if (--block.live && !block.barrier.waiting.empty()) give_up("a thread ended while others wait in sync_block");
  Cluster& cluster = *block.cluster;
  if (--cluster.live && !cluster.barrier.waiting.empty()) give_up("a thread ended while others wait in sync_cluster");
  if (block.live == 0)
    for (const Sent& sent : cluster.sent)
      if (sent.block == block.index) give_up("a block ended before all that was sent to it had come");
  to_scheduler(self, true);
}

unsigned thread_index() { return self->index; }
uint32_t time_passed() { return grid->time; }
unsigned block_index() { return self->block->index; }
char* shared_memory() { return self->block->shared; }
char* global_memory(uint64_t address) {
  if (address % 16 != 0) give_up("an address made of what nobody wrote");
  return reinterpret_cast<char*>(address);
}

void sync_block(unsigned line) {
  Barrier& barrier = self->block->barrier;
  if (barrier.waiting.empty()) barrier.line = line;
  if (barrier.line != line)
    give_up("sync_block in line " + std::to_string(line) + " while others wait in line " +
            std::to_string(barrier.line));
  if (self->block->live < grid->launch.threads) give_up("sync_block after a thread of the block has ended");
  wait_at(barrier, true, [] {});
}

unsigned cluster_rank() { return self->block->index % grid->launch.cluster; }

char* in_cluster(unsigned rank, uint32_t at, unsigned bytes) {
  Block& block = block_of(rank);
  if (at % bytes || at + uint64_t{bytes} > grid->launch.shared_bytes)
    give_up(std::to_string(bytes) + " bytes at " + std::to_string(at) + " of " +
            std::to_string(grid->launch.shared_bytes) + " of shared memory");
  return block.shared + at;
}

void sync_cluster(unsigned line) {
  Cluster& cluster = *self->block->cluster;
  if (cluster.barrier.waiting.empty()) cluster.barrier.line = line;
  if (cluster.barrier.line != line)
    give_up("sync_cluster in line " + std::to_string(line) + " while others wait in line " +
            std::to_string(cluster.barrier.line));
  if (cluster.live < cluster.barrier.expected) give_up("sync_cluster after a thread of the cluster has ended");
  // Arrivals come before those who have arrived leave; for values, only a mbarrier is waited at.
  wait_at(cluster.barrier, true, [&] { let_come(cluster, [](const Sent& sent) { return sent.bytes == 0; }); });
}

void init_barrier(uint32_t at, int arrivals) {
  Block& block = *self->block;
  if (arrivals < 1) give_up_mbarrier(block, at, "it needs an arrival at least");
  if (!block.mbarriers.try_emplace(at, Mbarrier{arrivals, arrivals}).second)
    give_up_mbarrier(block, at, "it was begun already");
}

void expect_bytes(uint32_t at, int bytes) {
  grid->rounds = 0;
  Block& block = *self->block;
  Mbarrier& mbarrier = find_mbarrier(block, at);
  if (bytes < 0) give_up_mbarrier(block, at, std::to_string(bytes) + " bytes");
  if (mbarrier.arrivals == 0) give_up_mbarrier(block, at, "bytes are expected after all have arrived");
  mbarrier.bytes += bytes;
  if (mbarrier.bytes >= 1 << 20) give_up_mbarrier(block, at, "it can't count so many bytes");
}

void arrive(uint32_t at, unsigned rank) {
  Block& block = block_of(rank);
  Mbarrier& mbarrier = find_mbarrier(block, at);
  release_warp(&mbarrier.order[mbarrier.phase & 1]);
  const Sent arrival{block.index, at, 0, 0, 0, false};
  if (&block == self->block)
    come(arrival);
  else
    come_some_time(arrival);
}

// What was sent in a phase came in it, or end_phase() would have found it.
void send(unsigned rank, uint32_t at, uint64_t bits, unsigned bytes, uint32_t mbarrier) {
  Block& block = block_of(rank);
  Mbarrier& counts = find_mbarrier(block, mbarrier);
  __tsan_release(&counts.order[counts.phase & 1]);
  come_some_time({block.index, mbarrier, at, bytes, bits, false});
}

bool phase_is_over(uint32_t at, unsigned parity) {
  Block& block = *self->block;
  Mbarrier& mbarrier = find_mbarrier(block, at);
  if (parity > 1) give_up_mbarrier(block, at, "a parity of " + std::to_string(parity));
  if (self->awaited == &mbarrier && (self->awaited_phase & 1) == parity && mbarrier.phase > self->awaited_phase + 1)
    give_up_mbarrier(block, at, "two phases ended while this thread waited for the first");
  if ((mbarrier.phase & 1) != parity) {
    self->awaited = nullptr;
    __tsan_acquire(&mbarrier.order[parity]);
    return true;
  }
  Fiber* me = self;
  me->awaited = &mbarrier;
  me->awaited_phase = mbarrier.phase;
  const uint64_t bits = random_bits();
  (bits & 1 ? grid->ready : grid->polling).push_back(me);
  const bool nothing_else = grid->rounds > 0;
  let_come(*block.cluster, [&](const Sent& sent) { return (nothing_else || !sent.late) && random_bits() & 1; });
  to_scheduler(me);
  return false;
}

void sync_lanes(void* post, void (*act)(void**), bool orders_memory) {
  Barrier& warp = self->block->warps[self->index / kWarp];
  self->post = post;
  wait_at(warp, orders_memory, [&] {
    void* posts[kWarp] = {};
    for (Fiber* fiber : warp.waiting) posts[fiber->index % kWarp] = fiber->post;
    if (act) act(posts);
  });
}

// A copy is done either at once or as late as its wait allows, at random: so both a missing wait and a source or a
// target that is overwritten too early show.
void copy_async(void* to, const void* from) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16) give_up("copy_async is misaligned");
  if (random_bits() & 1)
    std::memcpy(to, from, 16);
  else
    self->copies.push_back({to, from});
}

void wait_copies() {
  for (const Copy& copy : self->copies) std::memcpy(copy.to, copy.from, 16);
  self->copies.clear();
}

}  // namespace emulation

#include "scheduler.h"

#include <sys/mman.h>

#include <cstring>
#include <deque>
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
constexpr unsigned kWarp = 32, kBlocksAtOnce = 3;

struct Copy {
  void* to;
  const void* from;
};

struct Block;

struct Fiber {
  char* stack;
  void* stack_pointer;
  Block* block;
  unsigned index;
  void* post = nullptr;
  std::deque<std::vector<Copy>> groups;  // committed copies that are not done yet
  std::vector<Copy> open;
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

struct Block {
  unsigned index, live;
  std::unique_ptr<char[]> memory;
  char* shared;
  std::vector<Fiber> fibers;
  Barrier barrier;
  std::vector<Barrier> warps;
};

struct Grid {
  Launch launch;
  const std::function<void()>* kernel;
  std::vector<std::unique_ptr<Block>> blocks;  // those that are running, by index
  std::vector<Fiber*> ready;
  void* stack_pointer;  // the scheduler's
  void *sanitizer_fiber = nullptr, *fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_size = 0;
  char start, end;
  uint32_t favour;  // see take_ready()
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
std::vector<char*> free_stacks;

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
  if (!self->open.empty()) give_up("a thread ended with copies that were never committed");
  for (const auto& group : self->groups)
    if (!group.empty()) give_up("a thread ended while it still copies");
  __tsan_release(&grid->end);
  Block& block = *self->block;
  if (--block.live && !block.barrier.waiting.empty()) give_up("a thread ended while others wait in sync_block");
  to_scheduler(self, true);
}

// orders_memory: as in scheduler.h. act runs once, when all have come.
void wait_at(Barrier& barrier, bool orders_memory, const std::function<void()>& act = {}) {
  char* order = &barrier.order[barrier.round & 1];
  if (orders_memory) __tsan_release(order);
  barrier.waiting.push_back(self);
  Fiber* me = self;
  if (barrier.waiting.size() == barrier.expected) {
    if (act) act();
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
    void** top = reinterpret_cast<void**>(fiber.stack + kStack) - 2;  // as if entry() had been called
    *top = reinterpret_cast<void*>(entry);
    fiber.stack_pointer = top - kSaved;
#ifdef EMULATION_THREAD_SANITIZER
    fiber.sanitizer_fiber = __tsan_create_fiber(0);
#endif
    grid->ready.push_back(&fiber);
  }
  grid->blocks[index] = std::move(block);
}

// Any ready fiber; in every other launch mostly one of the block that comes first in an order drawn for the launch, so
// that some blocks run far ahead of others.
Fiber* take_ready() {
  const auto rank = [](size_t at) { return (grid->ready[at]->block->index * 0x9E3779B1u) ^ grid->favour; };
  size_t best = random_bits() % grid->ready.size();
  for (int tries = grid->favour % 2 ? 16 : 0; tries > 0; tries--) {
    const size_t other = random_bits() % grid->ready.size();
    if (rank(other) < rank(best)) best = other;
  }
  std::swap(grid->ready[best], grid->ready.back());
  Fiber* fiber = grid->ready.back();
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
  grid->blocks[block.index].reset();
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

void run(const Launch& launch, const std::function<void()>& kernel) {
  const unsigned count = launch.blocks;
  if (count == 0 || launch.threads == 0 || launch.threads > 1024)
    throw std::runtime_error("a launch of " + std::to_string(count) + " blocks of " + std::to_string(launch.threads) +
                             " threads");
  Grid g;
  grid = &g;
  g.launch = launch, g.kernel = &kernel, g.favour = static_cast<uint32_t>(random_bits());
  g.blocks.resize(count);
  g.ready.reserve(size_t{count} * launch.threads);
#ifdef EMULATION_THREAD_SANITIZER
  g.sanitizer_fiber = __tsan_get_current_fiber();
#endif
  std::vector<unsigned> waiting(count);
  for (unsigned i = 0; i < count; i++) waiting[i] = i;
  unsigned running = 0;
  while (running || !waiting.empty()) {
    for (; running < kBlocksAtOnce && !waiting.empty(); running++) {
      std::swap(waiting[random_bits() % waiting.size()], waiting.back());
      start_block(waiting.back());
      waiting.pop_back();
    }
    if (g.ready.empty() && g.error.empty()) g.error = "every thread waits: a deadlock";
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

unsigned thread_index() { return self->index; }
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
  wait_at(barrier, true);
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
    self->open.push_back({to, from});
}

void commit_copies() {
  self->groups.push_back(std::move(self->open));
  self->open.clear();
}

void wait_copies(unsigned groups_left) {
  for (; self->groups.size() > groups_left; self->groups.pop_front())
    for (const Copy& copy : self->groups.front()) std::memcpy(copy.to, copy.from, 16);
}

}  // namespace emulation

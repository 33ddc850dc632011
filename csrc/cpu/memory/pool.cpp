#include "cpu/memory/pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <list>
#include <mutex>
#include <new>
#include <set>

#include "cpu/threads/over_forks.h"

namespace pcf::cpu {
namespace {

constexpr int64_t kHugePage = 1 << 21;  // takes the system less time than 512 small ones
constexpr int64_t kSmallest = 1 << 16;
constexpr int64_t kSpare = 8 << 20;   // may be kept beyond what was in use at once and a quarter of it
constexpr int64_t kWarm = 128 << 20;  // of what was freed last, the system takes nothing: offering it takes time

struct Free {
  char* data;
  int64_t bytes;
  bool offered = false;  // to the system, which takes it when memory becomes short
};

class Pool {
 public:
  std::mutex mutex;

  Free take(int64_t bytes) {
    const std::lock_guard lock(mutex);
    auto best = free_.end();  // the smallest that is large enough, and hardly too large; of these the latest
    for (auto b = free_.begin(); b != free_.end(); ++b)
      if (b->bytes >= bytes && b->bytes <= bytes + bytes / 8 && (best == free_.end() || b->bytes <= best->bytes))
        best = b;
    if (best != free_.end()) {
      const Free found = *best;
      kept_ -= found.bytes;
      use(found.bytes);
      free_.erase(best);
      return found;
    }
    char* const begin = map(bytes);
    use(bytes);
    if (bytes >= kHugePage && in_use_ + kept_ > limit()) fill(begin, bytes);
    while (kept_ && in_use_ + kept_ > limit()) drop_oldest();
    return {begin, bytes};
  }

  void give_back(void* data, int64_t bytes, bool is_kept) {
    const std::lock_guard lock(mutex);
    in_use_ -= bytes;
    const Free block{static_cast<char*>(data), bytes};
    if (!is_kept) return drop(block);
    kept_ += bytes;
    free_.push_back(block);
    offer_all_but_warm();
  }

  int64_t kept() {
    const std::lock_guard lock(mutex);
    return kept_;
  }

 private:
  // Less would take apart what the next call of the same model asks for again.
  int64_t limit() const { return most_ + most_ / 4 + kSpare; }

  void use(int64_t bytes) {
    in_use_ += bytes;
    most_ = std::max(most_, in_use_);
  }

  static char* map(int64_t bytes) {
    const int64_t more = bytes < kHugePage ? 0 : kHugePage;  // so that a huge page starts in it
    char* begin =
        static_cast<char*>(mmap(nullptr, bytes + more, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (begin == MAP_FAILED) throw std::bad_alloc();
    if (!more) return begin;
    const int64_t skipped = -reinterpret_cast<intptr_t>(begin) & (kHugePage - 1);
    if (skipped) munmap(begin, skipped);
    munmap(begin + skipped + bytes, kHugePage - skipped);
#if defined(MADV_HUGEPAGE)
    madvise(begin + skipped, bytes, MADV_HUGEPAGE);
#endif
    return begin + skipped;
  }

  // Moves what large blocks are kept, the oldest first, to where `bytes` are mapped: the system does that without
  // copying or clearing. Where it fails, it may have unmapped the target before.
  void fill(char* const begin, const int64_t bytes) {
#if defined(__linux__)
    int64_t done = 0;
    for (auto b = free_.begin(); b != free_.end() && done < bytes;) {
      const bool can_move = b->bytes >= kHugePage && !joined_.count(b->data);
      const int64_t part = can_move ? std::min(b->bytes, bytes - done) : 0;
      char* const to = begin + done;
      if (part && mremap(b->data, part, part, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to) {
        if (part < bytes) joined_.insert(begin);
        done += part, kept_ -= part;
        b->data += part, b->bytes -= part;
        b = b->bytes ? b : free_.erase(b);
        continue;
      }
      if (part && mmap(to, part, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != to) {
        munmap(begin, bytes);
        joined_.erase(begin);
        in_use_ -= bytes;
        throw std::bad_alloc();
      }
      ++b;
    }
#endif
  }

  void offer_all_but_warm() {
#if defined(MADV_FREE)
    int64_t newer = 0;
    for (auto b = free_.rbegin(); b != free_.rend(); ++b) {
      newer += b->bytes;
      if (newer <= kWarm || b->offered || b->bytes < kHugePage) continue;  // small blocks are filled in less time
      madvise(b->data, b->bytes, MADV_FREE);
      b->offered = true;
    }
#endif
  }

  void drop(const Free& block) {
    munmap(block.data, block.bytes);
    joined_.erase(block.data);
  }

  void drop_oldest() {
    drop(free_.front());
    kept_ -= free_.front().bytes;
    free_.pop_front();
  }

  std::list<Free> free_;    // oldest first
  std::set<char*> joined_;  // blocks of several mappings, which systems before Linux 6.17 can't move at once
  int64_t in_use_ = 0, kept_ = 0, most_ = 0;
};

// Results may outlive everything else.
Pool& pool() { return over_forks<Pool>(); }

}  // namespace

Block::Block(int64_t bytes, bool is_kept) : is_kept_(is_kept) {
  const int64_t unit = bytes < kHugePage ? kSmallest : kHugePage;
  const Free taken = pool().take(std::max<int64_t>((bytes + unit - 1) / unit, 1) * unit);
  bytes_ = taken.bytes, data_ = taken.data;
}
Block::~Block() {
  if (data_) pool().give_back(data_, bytes_, is_kept_);
}
int64_t Block::kept() { return pool().kept(); }

}  // namespace pcf::cpu

#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace pcf::cpu {

// Memory, aligned to pairs of cache lines. Processors fetch a pair together, so two threads must not write to
// the lines of one pair. Pages that are never touched cost nothing.
class Buffer {
 public:
  static constexpr int64_t kBoundary = 128;

  static constexpr int64_t aligned(int64_t bytes) { return (bytes + kBoundary - 1) / kBoundary * kBoundary; }

  Buffer() = default;
  // Zeroed.
  explicit Buffer(int64_t bytes) : Buffer(bytes, std::calloc(bytes + kBoundary, 1)) {}
  // What it holds is undefined.
  static Buffer uncleared(int64_t bytes) { return Buffer(bytes, std::malloc(bytes + kBoundary)); }
  char* get() const { return reinterpret_cast<char*>(aligned(reinterpret_cast<int64_t>(memory_.get()))); }
  int64_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  Buffer(int64_t bytes, void* memory) : bytes_(bytes), memory_(memory) {
    if (!memory_) throw std::bad_alloc();
  }

  int64_t bytes_ = 0;
  std::unique_ptr<void, Free> memory_;
};

}  // namespace pcf::cpu

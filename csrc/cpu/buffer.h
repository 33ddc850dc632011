#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace pcf {

// Zeroed memory on boundaries of pairs of cache lines, which processors fetch together: lines that two threads write
// must not be one pair. Pages that are never touched cost nothing.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t bytes) : bytes_(bytes), memory_(std::calloc(bytes + 128, 1)) {
    if (!memory_) throw std::bad_alloc();
  }
  char* get() const {
    return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory_.get()) + 127) & ~uintptr_t{127});
  }
  int64_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  int64_t bytes_ = 0;
  std::unique_ptr<void, Free> memory_;
};

}  // namespace pcf

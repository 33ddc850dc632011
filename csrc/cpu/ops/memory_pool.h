// Memory for large results and for what ops work in, kept when it is freed and handed out again. The system takes 10 ms
// to clear 32 MB of new memory, as long as a layer takes to fill it, and malloc gives back much of what is freed.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

namespace pcf::cpu {

// At least so many bytes, from a page's start on; what they hold is undefined. All blocks together take at most a
// quarter and 8 MB more than what was in use at once. When memory becomes short, the system takes large ones that are
// kept, but for the last 128 MB. Throws std::bad_alloc.
class Block {
 public:
  explicit Block(int64_t bytes);
  ~Block();
  Block(Block&& other) noexcept : bytes_(other.bytes_), data_(std::exchange(other.data_, nullptr)) {}

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

  // Bytes in all blocks that are kept for later.
  static int64_t kept();

 private:
  int64_t bytes_;
  void* data_;
};

// Zeroed memory to work in.
class ZeroedBlock {
 public:
  explicit ZeroedBlock(int64_t bytes) : block_(bytes) { std::memset(block_.data(), 0, bytes); }
  char* get() const { return static_cast<char*>(block_.data()); }

 private:
  Block block_;
};

}  // namespace pcf::cpu

// Memory for large results and for what ops work in, kept when it is freed and handed out again. The system takes 10 ms
// to clear 32 MB of new memory, as long as a layer takes to fill it, and malloc gives back much of what is freed.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace pcf::cpu {

// Up to whole pairs of cache lines: processors fetch a pair together, so no two threads should write to the lines of
// one.
constexpr int64_t aligned(int64_t bytes) { return (bytes + 127) / 128 * 128; }

// At least so many bytes, from a page's start on; what they hold is undefined. All blocks together take at most a
// quarter and 8 MB more than what was in use at once. When memory becomes short, the system takes large ones that are
// kept, but for the last 128 MB. is_kept: whether it is kept when it is freed. Throws std::bad_alloc.
class Block {
 public:
  explicit Block(int64_t bytes, bool is_kept = true);
  ~Block();
  Block(Block&& other) noexcept
      : bytes_(other.bytes_), data_(std::exchange(other.data_, nullptr)), is_kept_(other.is_kept_) {}

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

  // Bytes in all blocks that are kept for later.
  static int64_t kept();

 private:
  int64_t bytes_;
  void* data_;
  bool is_kept_;
};

// Zeroed memory to work in.
class ZeroedBlock : public Block {
 public:
  explicit ZeroedBlock(int64_t bytes, bool is_kept = true) : Block(bytes, is_kept) { std::memset(data(), 0, bytes); }
  char* get() const { return static_cast<char*>(data()); }
};

// Where n rows begin that are `pitch` apart.
template <class T>
std::vector<T*> rows_from(T* begin, int64_t n, int64_t pitch) {
  std::vector<T*> rows(n);
  for (T*& row : rows) row = std::exchange(begin, begin + pitch);
  return rows;
}

// Arrays of T side by side in one block, each given by its pointer, which is set, and its size.
template <class T, class Memory>
Memory arrays(const std::vector<std::pair<T**, int64_t>>& parts) {
  int64_t size = 0;
  for (const auto& [pointer, n] : parts) size += n;
  Memory block(size * static_cast<int64_t>(sizeof(T)));
  T* next = static_cast<T*>(block.data());
  for (const auto& [pointer, n] : parts) *pointer = std::exchange(next, next + n);
  return block;
}

}  // namespace pcf::cpu

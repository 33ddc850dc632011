// Memory for what is needed for some windows of a cycle, again in each of its turns.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace pcf::cuda {

// Buffers whose windows are apart may lie in the same place. The largest are placed first, each as low as it can be.
class CyclicMemory {
 public:
  explicit CyclicMemory(int windows) : windows_(windows) {}

  // Needed from window `first` to window `last`, at most a whole turn. -> its number
  int add(int64_t bytes, int first, int last) {
    buffers_.push_back({(bytes + 127) / 128 * 128, first, last, 0});
    return static_cast<int>(buffers_.size()) - 1;
  }

  void place() {
    std::vector<Buffer*> order, placed;
    for (Buffer& b : buffers_) order.push_back(&b);
    std::stable_sort(order.begin(), order.end(), [](const Buffer* a, const Buffer* b) { return a->bytes > b->bytes; });
    for (Buffer* b : order) {
      for (bool moved = true; moved;) {
        moved = false;
        for (const Buffer* other : placed)
          if (at_once(*b, *other) && b->at < other->at + other->bytes && other->at < b->at + b->bytes)
            b->at = other->at + other->bytes, moved = true;
      }
      placed.push_back(b);
      bytes_ = std::max(bytes_, b->at + b->bytes);
    }
  }

  int64_t at(int buffer) const { return buffers_[buffer].at; }
  int64_t bytes() const { return bytes_; }

 private:
  struct Buffer {
    int64_t bytes;
    int first, last;
    int64_t at;
  };

  bool at_once(const Buffer& a, const Buffer& b) const {
    const auto begins_within = [&](const Buffer& inner, const Buffer& outer) {
      return ((inner.first - outer.first) % windows_ + windows_) % windows_ <= outer.last - outer.first;
    };
    return begins_within(a, b) || begins_within(b, a);
  }

  int windows_;
  std::vector<Buffer> buffers_;
  int64_t bytes_ = 0;
};

}  // namespace pcf::cuda

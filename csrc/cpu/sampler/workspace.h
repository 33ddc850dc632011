// The memory of a group of images: the rows of each value that are still read, the sums over rows above that wait for
// their pixel, and the parameters of the present draw.
#pragma once

#include <vector>

#include "cpu/sampler/prepared.h"
#include "cpu/sampler/schedule.h"
#include "cpu/simd/buffer.h"

namespace pcf::cpu {

template <class T>
class Workspace {
 public:
  Workspace(const Program& program, const PreparedProgram<T>& p, const Schedule& schedule, int images)
      : depth_(p.depth), chunk_(schedule.chunk), rows_in_flight_(schedule.rows_in_flight),
        buffers_(schedule.partials()), images_(images) {
    int64_t size = 0;
    const auto allocate = [&](int64_t elements) {
      const int64_t at = size;
      size += Buffer::aligned(elements * sizeof(T));
      return at;
    };
    std::vector<int64_t> value_at, rounded_at, partial_at;
    for (const auto& s : program.storage) {
      const int64_t stride = int64_t{s.pad_left + program.width + s.pad_right} * s.channels;
      const int64_t elements = stride * rows_kept(s) * images;
      value_at.push_back(allocate(elements));
      rounded_at.push_back(allocate(p.rounded[values_.size()] ? elements / 2 : 0));
      values_.push_back({stride, rows_kept(s), s.channels, s.pad_left * s.channels});
    }
    for (const auto& i : p.instructions)
      for (int k = 0; k < buffers_; k++)
        partial_at.push_back(allocate(i.keeps_partial() ? int64_t{i.padded} * chunk_ * rows_in_flight_ * images : 0));
    int widest = 0;
    for (const auto* output : p.outputs) widest = std::max(widest, output->padded);
    const int64_t parameters_at = allocate(int64_t{widest} * rows_in_flight_ * images);

    memory_ = Buffer(size);
    for (size_t v = 0; v < values_.size(); v++) {
      values_[v].first = at(value_at[v]);
      values_[v].rounded = reinterpret_cast<Bfloat16*>(at(rounded_at[v]));
    }
    for (int64_t offset : partial_at) partials_.push_back(at(offset));
    parameters_ = at(parameters_at);
  }

  int64_t bytes() const { return memory_.bytes(); }

  int channels(int value) const { return values_[value].channels; }
  // Elements from a row of one image to that row of the next image.
  int64_t image_stride(int value) const { return values_[value].image_stride; }
  // A value's pixel in image 0. Rows above the first hold zeros, since nothing has been written there yet.
  T* pixel(int value, int y, int x) const {
    const Value& v = values_[value];
    return v.first + (y + depth_) % v.rows * images_ * v.image_stride + v.margin + int64_t{x} * v.channels;
  }

  // Where what lies at `element` of a value is kept in bf16.
  Bfloat16* rounded(int value, const T* element) const {
    return values_[value].rounded + (element - values_[value].first);
  }

  // An instruction's sum over rows above, [images][chunk][padded]: image 0, at row y and the column that is worked on
  // in column step t.
  T* partial(int instruction, int padded, int y, int t) const {
    T* data = partials_[instruction * buffers_ + floor_mod(floor_div(t, chunk_), buffers_)];
    return data + (y % rows_in_flight_ * int64_t{images_} * chunk_ + floor_mod(t, chunk_)) * padded;
  }

  T* parameters() const { return parameters_; }  // of one draw's distributions: [pixels][padded]

 private:
  struct Value {
    int64_t image_stride;
    int rows, channels, margin;  // rows that are kept; elements before a row's first pixel
    T* first = nullptr;
    Bfloat16* rounded = nullptr;
  };

  // Rows in flight, and those above that are still read.
  int rows_kept(const Storage& s) const { return s.rows + rows_in_flight_ - 1; }
  T* at(int64_t offset) const { return reinterpret_cast<T*>(memory_.get() + offset); }

  const int depth_, chunk_, rows_in_flight_, buffers_, images_;
  std::vector<Value> values_;
  std::vector<T*> partials_;  // by instruction, then buffer
  T* parameters_ = nullptr;
  Buffer memory_;
};

}  // namespace pcf::cpu

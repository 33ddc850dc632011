// The memory of a group of images: the rows of each value that are still read, the sums over row runs that wait for
// their pixel, and the parameters of the present draw.
#pragma once

#include <cstring>
#include <map>
#include <optional>
#include <vector>

#include "cpu/memory/pool.h"
#include "cpu/sampler/packed_program.h"
#include "cpu/sampler/schedule.h"

namespace pcf::cpu {

template <class T>
class Workspace {
 public:
  // is_counted: no memory is taken, and nothing but the bytes may be asked for.
  Workspace(const Program& program, const PackedProgram<T>& p, const Schedule& schedule, int images,
            bool is_counted = false)
      : depth_(p.depth), chunk_(schedule.chunk), rows_in_flight_(schedule.rows_in_flight),
        buffers_(schedule.partials()), images_(images) {
    for (const auto& s : program.storage) {
      const int64_t stride = int64_t{s.pad_left + program.width + s.pad_right} * s.channels;
      values_.push_back({stride, s.channels, s.pad_left * s.channels, &places(rows_kept(s), program.height)});
    }
    in_flight_ = &places(rows_in_flight_, program.height);
    partials_.resize(p.instructions.size() * buffers_);
    int widest = 0;
    for (const auto* output : p.outputs) widest = std::max(widest, output->padded);
    const int64_t sites = int64_t{rows_in_flight_} * images;
    // Calls place(pointer, elements) for each array.
    const auto each_array = [&](const auto& place) {
      for (size_t v = 0; v < values_.size(); v++) {
        const int64_t elements = values_[v].image_stride * rows_kept(program.storage[v]) * images;
        place(values_[v].first, elements), place(values_[v].rounded, p.rounded[v] ? elements : 0);
      }
      for (size_t k = 0; k < partials_.size(); k++) {
        const auto& i = p.instructions[k / buffers_];
        place(partials_[k], i.keeps_partial() ? i.padded * chunk_ * sites : 0);
      }
      place(parameters_, widest * sites);
    };
    each_array([&](auto* pointer, int64_t elements) { bytes_ += aligned(elements * sizeof *pointer); });
    if (is_counted) return;
    char* next = static_cast<char*>(memory_.emplace(bytes_).data());
    each_array([&](auto*& pointer, int64_t elements) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(next);
      next += aligned(elements * sizeof *pointer);
    });
  }

  int64_t bytes() const { return bytes_; }

  // Zeroes one of so many parts; all must be, before anything is read or written.
  void clear(int part, int parts) const {
    const int64_t first = bytes_ * part / parts, last = bytes_ * (part + 1) / parts;
    std::memset(static_cast<char*>(memory_->data()) + first, 0, last - first);
  }

  int channels(int value) const { return values_[value].channels; }
  // Elements from a row of one image to that row of the next image.
  int64_t image_stride(int value) const { return values_[value].image_stride; }
  // A value's pixel in image 0. Rows above the first hold zeros, since nothing has been written there yet.
  T* pixel(int value, int y, int x) const {
    const Value& v = values_[value];
    return v.first + (*v.places)[y + depth_] * images_ * v.image_stride + v.margin + int64_t{x} * v.channels;
  }

  // Where what lies at `element` of a value is kept in bf16.
  Bfloat16* rounded(int value, const T* element) const {
    return values_[value].rounded + (element - values_[value].first);
  }

  // An instruction's sums over row runs, [rows][images][chunk][padded]: row 0 of image 0, at the column that is
  // worked on in column step t; and elements from there to row y.
  T* partials(int instruction, int padded, int t) const {
    T* data = partials_[instruction * buffers_ + floor_mod(floor_div(t, chunk_), buffers_)];
    return data + int64_t{floor_mod(t, chunk_)} * padded;
  }
  int64_t to_partial(int padded, int y) const { return int64_t{(*in_flight_)[y + depth_]} * images_ * chunk_ * padded; }

  T* parameters() const { return parameters_; }  // of one draw's distributions: [pixels * images][padded]

 private:
  struct Value {
    int64_t image_stride;
    int channels, margin;            // elements before a row's first pixel
    const std::vector<int>* places;  // of rows, from -depth on, among those that are kept
    T* first = nullptr;
    Bfloat16* rounded = nullptr;
  };

  // Rows in flight, and those above that are still read.
  int rows_kept(const Storage& s) const { return s.rows + rows_in_flight_ - 1; }
  // Row numbers modulo `rows`, from -depth on. They are looked up, since dividing takes longer.
  const std::vector<int>& places(int rows, int height) {
    std::vector<int>& found = places_[rows];
    for (int k = found.size(); k < height + depth_; k++) found.push_back(k % rows);
    return found;
  }

  const int depth_, chunk_, rows_in_flight_, buffers_, images_;
  std::map<int, std::vector<int>> places_;  // by the number of rows
  const std::vector<int>* in_flight_ = nullptr;
  std::vector<Value> values_;
  std::vector<T*> partials_;  // by instruction, then buffer
  T* parameters_ = nullptr;
  int64_t bytes_ = 0;
  std::optional<Block> memory_;
};

}  // namespace pcf::cpu

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
    const int64_t pixels = int64_t{program.height} * program.width;
    padded_pixels_ = divided_up(pixels, int64_t{kKeysTogether}) * kKeysTogether, pixels_ = pixels,
    width_ = program.width;
    for (const auto& s : program.storage) {
      const int columns = s.pad_left + divided_up(program.width, s.every_x) + s.pad_right;
      values_.push_back({int64_t{columns} * s.channels, s.channels, s.every_y, s.every_x, s.pad_left * s.channels,
                         &places(rows_kept(s), program.height)});
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
        const int64_t channels = int64_t{images} * values_[v].channels;
        const int64_t keys = program.storage[v].keys ? channels * padded_pixels_ : 0;
        const int64_t attended = program.storage[v].values ? channels * pixels_ : 0;
        place(values_[v].same.keys, p.narrow ? 0 : keys), place(values_[v].same.values, p.narrow ? 0 : attended);
        place(values_[v].bf16.keys, p.narrow ? keys : 0), place(values_[v].bf16.values, p.narrow ? attended : 0);
      }
      for (size_t k = 0; k < partials_.size(); k++) {
        const auto& i = p.instructions[k / buffers_];
        place(partials_[k], i.keeps_partial() ? i.padded * columns(i.grid) * sites : 0);
      }
      place(parameters_, widest * sites);
      place(zeros_, p.widest_absent);
    };
    each_array([&](auto* pointer, int64_t elements) { bytes_ += aligned(elements * sizeof *pointer); });
    if (is_counted) return;
    char* next = static_cast<char*>(memory_.emplace(bytes_).data());
    each_array([&](auto*& pointer, int64_t elements) {
      pointer = elements ? reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(next) : nullptr;
      next += aligned(elements * sizeof *pointer);
    });
  }

  int64_t bytes() const { return bytes_; }

  // Zeroes one of so many parts; all must be, before anything is read or written.
  void clear(int part, int parts) const {
    const int64_t first = bytes_ * part / parts, last = bytes_ * (part + 1) / parts;
    std::memset(static_cast<char*>(memory_->data()) + first, 0, last - first);
  }

  // Copies a row of all values from one image to another.
  void copy_row(int y, int from, int to) const {
    for (const Value& v : values_) {
      const int64_t row = int64_t{(*v.places)[of_grid(y, v.every_y) + depth_]} * images_ * v.image_stride;
      std::copy_n(v.first + row + from * v.image_stride, v.image_stride, v.first + row + to * v.image_stride);
      if (v.rounded)
        std::copy_n(v.rounded + row + from * v.image_stride, v.image_stride, v.rounded + row + to * v.image_stride);
      copy_attended(v, v.same, y, from, to), copy_attended(v, v.bf16, y, from, to);
    }
  }

  // What attention reads of all pixels, of element type T or Bfloat16: keys lie [pixels / kKeysTogether][channels]
  // [kKeysTogether], values [pixels][channels].
  bool is_attended(int value) const {
    const Value& v = values_[value];
    return v.same.keys || v.same.values || v.bf16.keys || v.bf16.values;
  }
  template <class E>
  const E* keys(int value, int image, int channel) const {
    const Value& v = values_[value];
    return v.template kept<E>().keys + key(v, image, channel, 0);
  }
  template <class E>
  const E* attended(int value, int image) const {
    const Value& v = values_[value];
    return v.template kept<E>().values + image * pixels_ * v.channels;
  }
  // Keeps the channels first...last-1 of a value at a pixel, y * width + x, if an attention reads them.
  void keep(int value, int image, int64_t pixel, const T* from, int first, int last) const {
    const auto keep_as = [&, &v = values_[value]]<class E>(const Kept<E>& kept) {
      for (int c = first; kept.keys && c < last; c++) kept.keys[key(v, image, c, pixel)] = convert<E>(from[c]);
      E* const to = kept.values + (image * pixels_ + pixel) * v.channels;
      for (int c = first; kept.values && c < last; c++) to[c] = convert<E>(from[c]);
    };
    keep_as(values_[value].same), keep_as(values_[value].bf16);
  }

  int channels(int value) const { return values_[value].channels; }
  // Elements from one pixel to another one of its row, both on the value's grid.
  int64_t distance(int value, int columns) const {
    const Value& v = values_[value];
    return int64_t{of_grid(columns, v.every_x)} * v.channels;
  }
  // Elements from a row of one image to that row of the next image.
  int64_t image_stride(int value) const { return values_[value].image_stride; }
  // A value's pixel in image 0. Rows above the first hold zeros, since nothing has been written there yet.
  T* pixel(int value, int y, int x) const {
    const Value& v = values_[value];
    const int row = of_grid(y, v.every_y), column = of_grid(x, v.every_x);
    return v.first + (*v.places)[row + depth_] * images_ * v.image_stride + v.margin + int64_t{column} * v.channels;
  }
  // What is read of values where they do not exist.
  T* zeros() const { return zeros_; }

  // Where what lies at `element` of a value is kept in bf16.
  Bfloat16* rounded(int value, const T* element) const {
    return values_[value].rounded + (element - values_[value].first);
  }

  // An instruction's sums over row runs, [rows][images][columns of its grid in a chunk][padded]: row 0 of image 0, at
  // the column that is worked on in column step t; and elements from there to row y.
  T* partials(int instruction, const PackedInstruction<T>& i, int t) const {
    T* data = partials_[instruction * buffers_ + floor_mod(floor_div(t, chunk_), buffers_)];
    return data + int64_t{of_grid(floor_mod(t, chunk_), i.grid.every_x)} * i.padded;
  }
  int64_t to_partial(const PackedInstruction<T>& i, int y) const {
    return (*in_flight_)[y + depth_] * images_ * partial_stride(i);
  }
  // Elements from one image's to the next one's.
  int64_t partial_stride(const PackedInstruction<T>& i) const { return int64_t{columns(i.grid)} * i.padded; }

  T* parameters() const { return parameters_; }  // of one draw's distributions: [pixels * images][padded]

 private:
  template <class E>
  struct Kept {
    E *keys = nullptr, *values = nullptr;  // of all pixels
  };
  struct Value {
    int64_t image_stride;
    int channels, every_y, every_x, margin;  // margin: elements before a row's first pixel
    const std::vector<int>* places;          // of rows, from -depth on, among those that are kept
    T* first = nullptr;
    Bfloat16* rounded = nullptr;
    Kept<T> same;
    Kept<Bfloat16> bf16;
    template <class E>
    const Kept<E>& kept() const {
      if constexpr (std::is_same_v<E, T>)
        return same;
      else
        return bf16;
    }
  };

  // Which element of a value's keys that is.
  int64_t key(const Value& v, int image, int channel, int64_t pixel) const {
    const int64_t block = pixel / kKeysTogether, within = pixel % kKeysTogether;
    return int64_t{image} * v.channels * padded_pixels_ + (block * v.channels + channel) * kKeysTogether + within;
  }
  template <class E>
  void copy_attended(const Value& v, const Kept<E>& kept, int y, int from, int to) const {
    const int64_t first = int64_t{y} * width_;
    for (int64_t pixel = first; kept.keys && pixel < first + width_; pixel++)
      for (int c = 0; c < v.channels; c++) kept.keys[key(v, to, c, pixel)] = kept.keys[key(v, from, c, pixel)];
    if (kept.values)
      std::copy_n(kept.values + (from * pixels_ + first) * v.channels, width_ * v.channels,
                  kept.values + (to * pixels_ + first) * v.channels);
  }
  static int of_grid(int pixels, int every) { return every == 1 ? pixels : floor_div(pixels, every); }
  int columns(const Lattice& grid) const { return divided_up(chunk_, grid.every_x); }
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
  T *parameters_ = nullptr, *zeros_ = nullptr;
  int64_t bytes_ = 0, padded_pixels_ = 0, pixels_ = 0, width_ = 0;
  std::optional<Block> memory_;
};

}  // namespace pcf::cpu

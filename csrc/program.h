// The phased causal program that the compiled runtimes execute, and a job for it. The structs and enumerations are
// declared in pixelcnn_fast/program/schema.py, from which CMake writes tables.h (headers.cmake).
#pragma once

#include "tables.h"

namespace pcf {

inline bool reads_value(const Step& s) { return traits(s.kind).operand == Operand::value; }
inline bool reads_image(const Instruction& i) { return traits(i.kind).reads_image; }
inline bool in_scan(const Instruction& i) { return i.scan >= 0; }

// Calls f(value, reach) for the values that an attention reads, from so many rows above on.
template <class F>
void for_each_attended(const Attention& a, const F& f) {
  if (a.query >= 0) f(a.query, 0);
  for (int value : {a.key, a.value})
    if (value >= 0 && !a.of_condition) f(value, a.reach);
}

// How many elements of an operand an image has.
inline int64_t elements(const Program& p, const ConditionOperand& of) {
  return of.channels * (of.varies_over_pixels ? int64_t{p.height} * p.width : 1);
}

// How far apart those of two images lie: 0 where they have the same.
inline int64_t image_stride(const Program& p, const ConditionOperand& of) { return of.per_image ? elements(p, of) : 0; }

// Channels of all heads' values.
inline int values_channels(const Program& p, const Attention& a) {
  return a.of_condition ? p.conditions[a.value].channels / a.keys : p.storage[a.value].channels;
}

// Calls f(value, dy, dx) for everything that an instruction, or what has the same fields, reads of other values.
template <class I, class F>
void for_each_read(const I& i, const F& f) {
  for (const auto* runs : {&i.row_runs, &i.pixel_runs})
    for (const auto& run : *runs)
      for (int d = 0; d < run.width; d++) f(run.source, run.dy, run.dx + d);
  if (i.value >= 0) f(i.value, i.dy, i.dx);
  for_each_attended(i.attention, [&](int value, int reach) { f(value, 0, 0), f(value, -reach, 0); });
  for (const auto& s : i.steps)
    if (reads_value(s)) f(s.operand, s.dy, s.dx);
}

}  // namespace pcf

// Programs with values on several grids: at which pixels they exist, and what an instruction finds at which of its own.
#pragma once

#include <numeric>
#include <vector>

#include "program.h"

namespace pcf::cpu {

inline int floor_div(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
inline int divided_up(int a, int b) { return a / b + (a % b > 0); }
inline int floor_mod(int a, int b) { return a - b * floor_div(a, b); }

// The pixels with y % every_y == y0 and x % every_x == x0.
struct Lattice {
  int every_y = 1, every_x = 1, y0 = 0, x0 = 0;

  bool has_row(int y) const { return every_y == 1 || y % every_y == y0; }
  bool has(int y, int x) const { return has_row(y) && (every_x == 1 || x % every_x == x0); }
  // Its first column from x on.
  int first_column(int x) const { return every_x == 1 ? x : x + floor_mod(x0 - x, every_x); }
  bool operator==(const Lattice&) const = default;
};

inline Lattice grid(const Storage& s) { return {s.every_y, s.every_x}; }

// The least lattice, through pixel (0, 0), of which each pixel of both sees the same.
inline Lattice common(const Lattice& a, const Lattice& b) {
  return {std::lcm(a.every_y, b.every_y), std::lcm(a.every_x, b.every_x)};
}

// The lattice through (0, 0) that tells which pixels exist in all values of the program.
inline Lattice cell(const Program& program) {
  Lattice all;
  for (const auto& s : program.storage) all = common(all, grid(s));
  return all;
}

// Calls f(place) for each of the lattices with so many rows and columns whose pixels are in a grid.
template <class F>
void for_each_place(const Lattice& cell, const Lattice& grid, const F& f) {
  for (int y = 0; y < cell.every_y; y += grid.every_y)
    for (int x = 0; x < cell.every_x; x += grid.every_x) f(Lattice{cell.every_y, cell.every_x, y, x});
}

// Whether the pixels of a lattice, which is at least as wide as the grid, find the grid at (dy, dx).
inline bool finds(const Lattice& where, const Lattice& grid, int dy, int dx) {
  return floor_mod(where.y0 + dy, grid.every_y) == 0 && floor_mod(where.x0 + dx, grid.every_x) == 0;
}

}  // namespace pcf::cpu

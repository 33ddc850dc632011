// The recurrences of PixelRNN: an LSTM that goes from row to row, or from diagonal to diagonal. Gates i, f, g and o.
// Results do not depend on the number of threads, except for the gradients of the initial states.
#pragma once

#include <optional>

#include "cpu/ops/feature_map.h"

namespace pcf::cpu {

// diagonal: the state at (y, x) depends on those at (y - 1, x), tap 0, and (y, x - 1), tap 1, and the cell before is
// the latter's; `reverse` walks rows from the right. Otherwise on `taps` of row y - 1, centred on x, and the cell
// before is that of (y - 1, x).
struct StateToState {
  bool diagonal, reverse;
  int taps;
  const void* weight;   // [4 hidden, hidden, taps], dense
  const void *h0, *c0;  // [hidden] of what lies before the first row or column, or null for zeros
};

// sums [N, 4 hidden, H, W] -> h [N, hidden, H, W] and, where they are given, what the gates were, of sums' sizes.
void recurrence(const StateToState&, const FeatureMap& sums, const FeatureMap& h,
                const std::optional<FeatureMap>& gates, int threads);

// The gradient of h and the gates -> the gradients of sums, and of h0 and c0 [hidden].
void recurrence_gradient(const StateToState&, const FeatureMap& grad, const FeatureMap& gates,
                         const FeatureMap& grad_sums, void* grad_h0, void* grad_c0, int threads);

}  // namespace pcf::cpu

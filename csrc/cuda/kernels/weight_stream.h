// How weights come to a warp.
#pragma once

#include "cuda/kernels/device.h"
#include "cuda/layout.h"

namespace pcf::cuda {

// A number that the code knows, as an argument.
template <int kNumber>
struct Constant {
  constexpr operator int() const { return kNumber; }
};

// A warp's weights, which it reads over and over, a batch at a time. Two batches are in registers, or on their way
// to them, across records and column steps; so behind the last ones of a column step lie the first two of the next.
// Registers have no index: the code says whose turn it is.
struct WeightStream {
  using Batch = uint4[kBatch][2];
  Batch ahead[kBatchesAhead];
  const char* next;

  PCF_DEVICE void begin(const char* at, int lane) {
    next = at + lane * 16;
#pragma unroll
    for (int n = 0; n < kBatchesAhead; n++) fetch(ahead[n]);
  }
  PCF_DEVICE void fetch(Batch& batch) {
#pragma unroll
    for (int f = 0; f < kBatch; f++)
#pragma unroll
      for (int half = 0; half < 2; half++) batch[f][half] = stream(next + f * kWeightBytes + half * (kWeightBytes / 2));
    next += kBatch * kWeightBytes;
  }
};

}  // namespace pcf::cuda

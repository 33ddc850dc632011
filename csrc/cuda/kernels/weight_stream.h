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
class WeightStream {
 public:
  using Batch = uint4[kBatch][2];

  PCF_DEVICE void begin(const char* at, int lane) {
    next_ = at + lane * 16;
#pragma unroll
    for (int n = 0; n < kBatchesAhead; n++) fetch(ahead_[n]);
  }

  // use(weights) multiplies by the next batch.
  template <int kTurn, class Use>
  PCF_DEVICE void next(Constant<kTurn>, const Use& use) {
    use(ahead_[kTurn]);
    fetch(ahead_[kTurn]);
  }

  // After a column step of so many bytes.
  PCF_DEVICE void begin_again(int bytes) { next_ -= bytes; }

 private:
  PCF_DEVICE void fetch(Batch& batch) {
#pragma unroll
    for (int f = 0; f < kBatch; f++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        batch[f][half] = stream(next_ + f * kWeightBytes + half * (kWeightBytes / 2));
    next_ += kBatch * kWeightBytes;
  }

  Batch ahead_[kBatchesAhead];
  const char* next_;
};

}  // namespace pcf::cuda

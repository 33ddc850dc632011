// Weights as the kernels read them: 16 output channels x 32 (16) input channels in 1024 bytes.
#pragma once

#include "cuda/narrow.h"
#include "cuda/plan.h"

namespace pcf::cuda {

// Which of 16 channels is row `row` of a matrix instruction. A lane's two rows, g and g + 8, are neighbouring channels.
inline int channel_of_row(int row) { return row % 8 * 2 + row / 8; }

// Packs at(input channel, row) into `fragment`:
//   tensor cores  [half of the depth][lane][register], where a lane's input channels are the neighbouring ones that it
//                 also holds of the input fragment
//   fp32          [half of a lane's input channels][lane][4 of them]: lane 2 r + h has row r and channels 8 h ... 8 h +
//   7
template <class At>
void pack_weights(Math math, const At& at, char* fragment) {
  if (math == Math::fp32) {
    float* to = reinterpret_cast<float*>(fragment);
    for (int half = 0; half < 2; half++)
      for (int lane = 0; lane < 32; lane++)
        for (int q = 0; q < 4; q++) *to++ = at(lane % 2 * 8 + half * 4 + q, lane / 2);
    return;
  }
  for (int half = 0; half < 2; half++)
    for (int lane = 0; lane < 32; lane++)
      for (int r = 0; r < 4; r++) {
        const int row = channel_of_row(lane / 4 + r % 2 * 8), index = (half * 32 + lane) * 4 + r;
        const auto narrow = [&](float x) { return uint32_t{math == Math::bf16 ? to_bf16(x) : to_fp16(x)}; };
        const int k = lane % 4 * 8 + half * 4 + r / 2 * 2;
        const uint32_t bits = narrow(at(k, row)) | narrow(at(k + 1, row)) << 16;
        std::memcpy(fragment + index * 4, &bits, 4);
      }
}

}  // namespace pcf::cuda

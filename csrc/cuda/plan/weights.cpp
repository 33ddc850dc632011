// Weights as the kernels read them: 16 output channels x 32 (16) input channels in 1024 bytes.
#include "cuda/narrow.h"
#include "cuda/plan/planner.h"

namespace pcf::cuda {
namespace {

// Which of 16 channels is row `row` of a matrix instruction. A lane's two rows, g and g + 8, are neighbouring channels.
int channel_of_row(int row) { return row % 8 * 2 + row / 8; }

// Packs at(input channel, row) into `fragment`:
//   tensor cores  [half of the depth][lane][register], where a lane's input channels are the neighbouring ones that it
//                 also holds of the input fragment
//   fp32          [half of a lane's input channels][lane][4 of them]: lane 2 r + h has row r and channels 8 h ... 8 h +
//   7
void pack(Math math, const auto& at, char* fragment) {
  for (int half = 0; half < 2; half++)
    for (int lane = 0; lane < 32; lane++)
      for (int r = 0; r < 4; r++, fragment += 4) {
        const int row = channel_of_row(lane / 4 + r % 2 * 8), k = lane % 4 * 4 + half * 2 + r / 2;
        const auto narrow = [&](float x) { return uint32_t{math == Math::bf16 ? to_bf16(x) : to_fp16(x)}; };
        const uint32_t bits = math == Math::fp32 ? bits_of(at(lane % 2 * 8 + half * 4 + r, lane / 2))
                                                 : narrow(at(2 * k, row)) | narrow(at(2 * k + 1, row)) << 16;
        std::memcpy(fragment, &bits, 4);
      }
}

// A member's weights by which a fragment is multiplied, from this channel on.
void add_fragment(const Planner& p, std::vector<char>& stream, const Multiplied& m, const Member& member, int channel) {
  const int in_turn = size_of(member), outputs = member[0].instruction->channels, in_chunk = p.depth / kChunks;
  const auto at = [&](int k, int row) {
    const size_t c = k / in_chunk;
    if (c >= m.chunks.size()) return 0.f;
    const Chunk& chunk = m.chunks[c];
    const int in = chunk.first + k % in_chunk, of_all = channel + row, out = of_all / in_turn;
    const bool is_there = in < p.timeline.channels(chunk.read.value) && out < outputs;
    return is_there ? member[of_all % in_turn].taps[chunk.tap].weight[int64_t{in} * outputs + out] : 0.f;
  };
  stream.resize(stream.size() + kWeightBytes);
  if (!m.filling) pack(p.math, at, &stream[stream.size() - kWeightBytes]);
}

}  // namespace

std::vector<char> weight_stream(const Planner& p, const SweepDraft& sweep, int rank, int warp) {
  std::vector<char> stream;
  for (int k = sweep.first; k < sweep.end; k++)
    for (const Part& part : p.drafts[k].parts) {
      const auto mine = p.share_of(part.tiles, rank);
      for (int t = warp - part.first_warp; t >= 0 && t < mine.count; t += kWarps)
        for (const Multiplied& m : part.multiplied)
          for (int k = 0; k < part.product.members; k++) {
            const int channel = part.first_channel + ((mine.first + t) * part.wide + k % part.wide) * kTileChannels;
            add_fragment(p, stream, m, part.members[k % part.members.size()], channel);
          }
    }
  return stream;
}

}  // namespace pcf::cuda

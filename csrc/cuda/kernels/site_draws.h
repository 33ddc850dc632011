// The draw of a column step's levels, and what the network reads of them.
#pragma once

#include "cuda/kernels/draw.h"
#include "cuda/kernels/stores.h"

namespace pcf::cuda {

// Grows in the order of drawing: a site's draw from channel `first` on comes before the next one's in all images.
__device__ inline unsigned long long error_code(int site, int first, int image, int lane) {
  const auto channel = static_cast<unsigned long long>(site) << kChannelBits | first;
  return (channel << (kImageBits + kLaneBits) | image << kLaneBits | lane) + 1;
}

PCF_DEVICE float level_value(const Block& b, const InputPlan& input, int index) {
  return input.near == kNowhere ? b.constant(input.table + index) : in_shared<const float>(input.near + index * 4);
}

// Turns a site's levels, of which lane c has the c-th from channel `first` on, into a value that the network reads.
__device__ inline void read_levels(const Block& b, const InputPlan& input, char* ring, int level, int first, int site) {
  if (input.width == 1) {  // each lane has a channel
    const int c = b.lane < input.count ? b.lane : 0, mine = __shfl_sync(kAllLanes, level, input.first - first + c);
    const int pads = input.pad_to - input.pad_from;
    for (int k = b.lane; k < input.count + pads; k += 32) {
      const bool is_pad = k >= input.count;
      const float x = is_pad ? 0.f : level_value(b, input, c * input.floats + mine);
      store_one(input.to, ring, x, is_pad ? input.pad_from + k - input.count : input.before + k, site);
    }
    return;
  }
  for (int c = 0; c < input.count; c++) {
    const int mine = __shfl_sync(kAllLanes, level, input.first - first + c);
    for (int k = b.lane; k < input.width; k += 32)
      store_one(input.to, ring, level_value(b, input, c * input.floats + mine * input.width + k),
                input.before + c * input.width + k, site);
  }
  for (int channel = input.pad_from + b.lane; channel < input.pad_to; channel += 32)
    store_one(input.to, ring, 0, channel, site);
}

// Draws all distributions of a site, kMany at once, from registers. -> lane d's: the d-th's level, or -1
template <int kMany, class Of, class Noise>
PCF_DEVICE int draw_in_registers(const Block& b, int distributions, const Of& logits, const Noise& noise) {
  int drawn = 0;
  for (int d = 0; d < distributions; d += kMany) {
    Logits all[kMany];
#pragma unroll
    for (int m = 0; m < kMany; m++) all[m] = logits(min(d + m, distributions - 1));
    const DrawInRegisters<kMany> found(
        all, b.layout.levels, b.params.options.inverse_temperature, [&](int m) { return noise(d + m); }, b.lane);
#pragma unroll
    for (int m = 0; m < kMany; m++)
      if (b.lane == d + m) drawn = found.drawn[m];
  }
  return drawn;
}

// Each warp draws at some sites; lane d looks after the d-th distribution.
__device__ inline void draw_sites(const Block& b, const Record::Draw& draws, uint32_t view) {
  const KernelParams& p = b.params;
  const Layout& l = b.layout;
  const int levels = l.levels, count = draws.distributions, lane = min(b.lane, count - 1);
  const bool in_registers = draws_in_registers(levels, p.options);
#pragma unroll 1
  for (int index = b.warp; index < kSites; index += kWarps) {
    const Site s = b.site(view, index);
    if (!b.in_grid(s.row, s.column)) continue;
    const int64_t channel = int64_t{s.image} * l.image_channels + draws.first + lane;
    const int64_t at = (channel * l.height + s.row) * l.width + s.column;  // of the lane's distribution
    const double noise_there = p.noise[at];
    const auto noise = [&](int d) { return __shfl_sync(kAllLanes, arrived(noise_there), d); };
    const auto logits = [&](int d) { return Logits{draws.logits + (index * draws.logits_stride + d * levels) * 4}; };
    if (p.logits && b.rank == 0)
      for (int d = 0; d < count; d++) {
        float* const wanted = p.logits + __shfl_sync(kAllLanes, at, d) * levels;
        for (int k = b.lane; k < levels; k += 32) wanted[k] = logits(d)[k];
      }
    int drawn = 0;
    if (!in_registers)
      for (int d = 0; d < count; d++) {
        const int found = draw(logits(d), levels, p.options, noise(d), b.lane);
        if (b.lane == d) drawn = found;
      }
    else if (!kReadsEarly || count == 1)
      drawn = draw_in_registers<1>(b, count, logits, noise);
    else
      drawn = draw_in_registers<3>(b, count, logits, noise);
    if (arrived(noise_there) < 0) drawn = -1;  // there is no such noise; but on any way here it has arrived
    const bool known = p.known && p.known[at];
    int level = max(drawn, 0);
    if (known) {
      level = max(p.levels[at], 0);
    } else if (lane == b.lane && b.rank == 0) {
      p.levels[at] = level;
      if (drawn < 0) atomicMin(p.error, error_code(s.row * l.width + s.column, draws.first, s.image, lane));
    }
    if (p.log_probability && b.rank == 0)
      for (int d = 0; d < count; d++) {
        const double found = log_probability_of(__shfl_sync(kAllLanes, level, d), logits(d), levels, b.lane);
        if (b.lane == d && !known && drawn >= 0) p.log_probability[at] = found;
      }
    for (int i = 0; i < draws.n_inputs; i++) {
      const InputPlan input = in_shared<const InputPlan>(draws.inputs + i * sizeof(InputPlan));
      read_levels(b, input, b.ring_of(view, input.to), level, draws.first, index);
    }
  }
}

}  // namespace pcf::cuda

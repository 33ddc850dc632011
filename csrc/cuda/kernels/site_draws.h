// The draw of a column step's levels, and what the network reads of them.
#pragma once

#include "cuda/kernels/results.h"

namespace pcf::cuda {

template <Math kMath, int kTiles, int kBlocks>
class SiteDraws : public Results<kMath, kTiles, kBlocks> {
  using Base = Results<kMath, kTiles, kBlocks>;

 public:
  using Base::Base;

 protected:
  using Base::constant, Base::in_grid, Base::kReadsEarly, Base::kSites, Base::lane_, Base::layout_, Base::params_,
      Base::rank_, Base::ring_of, Base::site, Base::store_one, Base::warp_;

  // Where a warp draws; lane d looks after the d-th distribution.
  struct Pixel {
    Site site;
    bool inside;
    int64_t at;

    __device__ Pixel(const SiteDraws& walk, const Record::Draw& draws, int index, uint32_t view)
        : site(walk.site(view, index)), inside(walk.in_grid(site.row, site.column)) {
      const Layout& l = walk.layout_;
      const int channel = draws.first + min(walk.lane_, draws.distributions - 1);
      at = ((int64_t{site.image} * l.image_channels + channel) * l.height + site.row) * l.width + site.column;
    }
  };

  // Each warp draws at some sites.
  __device__ void draw_sites(const Record::Draw& draws, const Pixel& first, uint32_t view) {
    const int levels = layout_.levels, lane = min(lane_, draws.distributions - 1);
    const bool in_registers = draws_in_registers(levels, params_.options);
#pragma unroll 1
    for (int index = warp_; index < kSites; index += kWarps) {
      const Pixel pixel = index == warp_ ? first : Pixel(*this, draws, index, view);
      if (!pixel.inside) continue;
      const Site& s = pixel.site;
      const int64_t at = pixel.at;
      const double noise_there = params_.noise[at];
      const auto noise = [&](int d) { return shuffle(arrived(noise_there), d); };
      const auto logits = [&](int d) { return Logits{draws.logits + (index * draws.logits_stride + d * levels) * 4}; };
      if (params_.logits && rank_ == 0)
        for (int d = 0; d < draws.distributions; d++) {
          float* const wanted = params_.logits + shuffle(at, d) * levels;
          for (int k = lane_; k < levels; k += 32) wanted[k] = logits(d)[k];
        }
      int drawn = 0;
      if (!in_registers)
        for (int d = 0; d < draws.distributions; d++) {
          const int found = draw(logits(d), levels, params_.options, noise(d), lane_);
          if (lane_ == d) drawn = found;
        }
      else if (!kReadsEarly || draws.distributions == 1)
        for (int d = 0; d < draws.distributions; d++) {
          const DrawInRegisters<1, 8> found(
              {logits(d)}, levels, params_.options.inverse_temperature, [&](int) { return noise(d); }, lane_);
          if (lane_ == d) drawn = found.drawn[0];
        }
      else
        for (int d = 0; d < draws.distributions; d += 3) {
          const int last = draws.distributions - 1, e = min(d + 1, last), f = min(d + 2, last);
          const DrawInRegisters<3, 8> found(
              {logits(d), logits(e), logits(f)}, levels, params_.options.inverse_temperature,
              [&](int m) { return noise(d + m); }, lane_);
          if (lane_ == d) drawn = found.drawn[0];
          if (lane_ == d + 1) drawn = found.drawn[1];
          if (lane_ == d + 2) drawn = found.drawn[2];
        }
      if (arrived(noise_there) < 0) drawn = -1;  // there is no such noise; but on any way here it has arrived
      const bool known = params_.known && params_.known[at];
      int level = max(drawn, 0);
      if (known) {
        level = max(params_.levels[at], 0);
      } else if (lane == lane_ && rank_ == 0) {
        params_.levels[at] = level;
        if (drawn < 0)
          atomic_min(params_.error, error_code(s.row * layout_.width + s.column, s.image, draws.first + lane));
      }
      if (params_.log_probability && rank_ == 0)
        for (int d = 0; d < draws.distributions; d++) {
          const double log_probability = log_probability_of(shuffle(level, d), logits(d), levels, lane_);
          if (lane_ == d && !known && drawn >= 0) params_.log_probability[at] = log_probability;
        }
      for (int i = 0; i < draws.n_inputs; i++) {
        const InputPlan input = in_shared<const InputPlan>(draws.inputs + i * sizeof(InputPlan));
        read_levels(input, ring_of(view, input.to), level, draws.first, index);
      }
    }
  }

  // Turns a site's levels, of which lane c has the c-th from channel `first` on, into a value that the network reads.
  __device__ void read_levels(const InputPlan& input, char* ring, int level, int first, int site) {
    if (input.width == 1) {  // each lane has a channel
      const int c = lane_ < input.count ? lane_ : 0, mine = shuffle(level, input.first - first + c);
      const int pads = input.pad_to - input.pad_from;
      for (int k = lane_; k < input.count + pads; k += 32) {
        const bool is_pad = k >= input.count;
        const float x = is_pad ? 0.f : level_value(input, c * input.floats + mine);
        store_one(input.to, ring, x, is_pad ? input.pad_from + k - input.count : input.before + k, site);
      }
      return;
    }
    for (int c = 0; c < input.count; c++) {
      const int mine = shuffle(level, input.first - first + c);
      for (int k = lane_; k < input.width; k += 32)
        store_one(input.to, ring, level_value(input, c * input.floats + mine * input.width + k),
                  input.before + c * input.width + k, site);
    }
    for (int channel = input.pad_from + lane_; channel < input.pad_to; channel += 32)
      store_one(input.to, ring, 0, channel, site);
  }

  __device__ __forceinline__ float level_value(const InputPlan& input, int index) const {
    return input.near == kNowhere ? constant(input.table + index) : in_shared<const float>(input.near + index * 4);
  }
};

}  // namespace pcf::cuda

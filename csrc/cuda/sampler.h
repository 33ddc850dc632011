// The CUDA runtime of phased causal programs.
#pragma once

#include <functional>
#include <string>

#include "cuda/plan.h"
#include "program.h"

namespace pcf::cuda {

// What Python passes on. Everything but images, options and stream is device memory, owned by the caller.
struct DeviceJob {
  int images;
  void* constants;         // Plan::constants on the device
  void* workspace;         // workspace_bytes(images), 128-byte aligned, with any contents
  void* values;            // int32 [images, C, H, W]: known levels in, all levels out
  const void* known;       // uint8 [images, C, H, W], or null
  const void* noise;       // double [images, C, H, W]
  const void* conditions;  // float, one operand after the other: [images, channels] or [images, H, W, channels]
  SamplingOptions options;
  void* parameters;       // float [images, C, H, W, levels], or null
  void* log_probability;  // double [images, C, H, W], or null
  void* error;            // one uint64, all ones; becomes the location of the first logits that are not finite
  void* stream;
};

class Sampler {
 public:
  Sampler(const Program& program, Math math, Variant variant, const Limits& limits)
      : plan_(make_plan(program, math, variant, limits)), limits_(limits) {}

  const Plan& plan() const { return plan_; }
  int pipelines(int images) const;  // side by side; block: 1
  bool uses_clusters() const { return plan_.layout.stages > 1 && plan_.layout.stages <= limits_.largest_cluster; }
  int row_launches() const;  // before the single one of the pixel phase
  int64_t workspace_bytes(int images) const;

  // Enqueues everything on the stream, row by row. on_row(y) is called before row y is enqueued, and can stop the run
  // by throwing. Nothing waits for the device. Every launch is the same for the same arguments, so a CUDA graph can
  // capture it.
  void run(const DeviceJob&, const std::function<void(int)>& on_row) const;

 private:
  Plan plan_;
  Limits limits_;
};

}  // namespace pcf::cuda

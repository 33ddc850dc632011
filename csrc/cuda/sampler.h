// The host's side of the CUDA runtime: a plan, and what the kernel is given. Python compiles and launches the kernel.
#pragma once

#include "cuda/plan.h"
#include "program.h"

namespace pcf::cuda {

// What Python passes on. Everything but images and options is device memory, owned by the caller.
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
};

// Some column steps of a sweep, for simulations. first_step: as in SweepPlan.
struct PartOfSweep {
  int sweep, row, first_step, steps;
};

// images: of a cluster of so many blocks of threads.
class Sampler {
 public:
  Sampler(const Program& program, Math math, int images, int cluster, const Limits& limits)
      : plan_(make_plan(program, math, images, cluster, limits)) {}

  const Plan& plan() const { return plan_; }
  int blocks(int images) const {
    return (images + plan_.layout.images - 1) / plan_.layout.images * plan_.layout.cluster;
  }
  int64_t workspace_bytes(int images) const { return blocks(images) * plan_.layout.workspace_bytes; }

  KernelParams parameters(const DeviceJob&) const;
  KernelParams parameters(const DeviceJob&, const PartOfSweep&) const;

 private:
  Plan plan_;
};

}  // namespace pcf::cuda

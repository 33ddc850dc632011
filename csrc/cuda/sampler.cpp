#include "cuda/sampler.h"

namespace pcf::cuda {

KernelParams Sampler::parameters(const DeviceJob& job) const {
  const SamplingOptions& options = job.options;
  KernelParams params{};
  params.layout = plan_.layout;
  params.constants = static_cast<const char*>(job.constants);
  params.workspace = static_cast<char*>(job.workspace);
  params.images = job.images;
  params.levels = static_cast<int32_t*>(job.values);
  params.known = static_cast<const uint8_t*>(job.known);
  params.noise = static_cast<const double*>(job.noise);
  params.conditions = static_cast<const float*>(job.conditions);
  params.options = {options.temperature == 0 ? 0 : static_cast<float>(1 / options.temperature), options.top_k,
                    options.top_p, options.exclude_levels()};
  params.logits = static_cast<float*>(job.parameters);
  params.log_probability = static_cast<double*>(job.log_probability);
  params.error = static_cast<unsigned long long*>(job.error);
  return params;
}

KernelParams Sampler::parameters(const DeviceJob& job, const PartOfSweep& part) const {
  KernelParams params = parameters(job);
  SweepPlan& sweep = params.layout.sweeps[0] = plan_.layout.sweeps[part.sweep];
  sweep.first_step = part.first_step, sweep.steps = part.steps;
  params.layout.n_sweeps = 1;
  if (plan_.layout.by_rows) params.layout.first_row = part.row, params.layout.end_row = part.row + 1;
  return params;
}

}  // namespace pcf::cuda

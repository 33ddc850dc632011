#include "cuda/sampler.h"

#include <cstring>

#include "cuda/kernels/kernels.h"

namespace pcf::cuda {
namespace {

KernelParams parameters_of(const Plan& plan, const DeviceJob& job) {
  KernelParams params{};
  params.layout = plan.layout;
  params.constants = static_cast<const char*>(job.constants);
  params.workspace = static_cast<char*>(job.workspace);
  params.images = job.images;
  params.levels = static_cast<int32_t*>(job.values);
  params.known = static_cast<const uint8_t*>(job.known);
  params.noise = static_cast<const double*>(job.noise);
  params.conditions = static_cast<const float*>(job.conditions);
  params.options = DrawOptions(job.options);
  params.logits = static_cast<float*>(job.parameters);
  params.log_probability = static_cast<double*>(job.log_probability);
  params.error = static_cast<unsigned long long*>(job.error);
  return params;
}

template <Math kMath, int kTiles = 1>
void launch_tiles(const KernelParams& params, int shared_bytes, Stream stream) {
  if constexpr (kTiles < most_tiles(kMath))
    if (params.layout.tiles > kTiles) return launch_tiles<kMath, kTiles + 1>(params, shared_bytes, stream);
  launch_walk<kMath, kTiles>(params, shared_bytes, stream);
}

}  // namespace

std::vector<char> Sampler::parameters(const DeviceJob& job, int number, int row, int first_step, int steps) const {
  KernelParams params = parameters_of(plan_, job);
  SweepPlan& sweep = params.layout.sweeps[0] = plan_.layout.sweeps[number];
  sweep.first_step = first_step, sweep.steps = steps;
  params.layout.n_sweeps = 1;
  if (plan_.layout.by_rows) params.layout.first_row = row, params.layout.end_row = row + 1;
  std::vector<char> bytes(sizeof params);
  std::memcpy(bytes.data(), &params, sizeof params);
  return bytes;
}

int Sampler::clusters_at_once() const {
  const unsigned blocks = plan_.layout.cluster;
  if (blocks == 1) return 0;
  switch (plan_.math) {
    case Math::fp32: return cuda::clusters_at_once<Math::fp32>(blocks, plan_.shared_bytes);
    case Math::tf32: return cuda::clusters_at_once<Math::tf32>(blocks, plan_.shared_bytes);
    case Math::bf16: return cuda::clusters_at_once<Math::bf16>(blocks, plan_.shared_bytes);
    case Math::fp16: return cuda::clusters_at_once<Math::fp16>(blocks, plan_.shared_bytes);
  }
  return 0;
}

void Sampler::run(const DeviceJob& job) const {
  if (job.images == 0) return;
  const KernelParams params = parameters_of(plan_, job);
  const Stream stream = static_cast<Stream>(job.stream);
  switch (plan_.math) {
    case Math::fp32: return launch_tiles<Math::fp32>(params, plan_.shared_bytes, stream);
    case Math::tf32: return launch_tiles<Math::tf32>(params, plan_.shared_bytes, stream);
    case Math::bf16: return launch_tiles<Math::bf16>(params, plan_.shared_bytes, stream);
    case Math::fp16: return launch_tiles<Math::fp16>(params, plan_.shared_bytes, stream);
  }
}

}  // namespace pcf::cuda

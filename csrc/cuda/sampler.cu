#include "cuda/sampler.h"

#include <algorithm>

#include "cuda/kernels.h"

namespace pcf::cuda {
namespace {

void run_row_as(Math math, const Plan& plan, const KernelParams& params, const RowSplit& rows, bool clusters,
                Stream stream) {
  switch (math) {
    case Math::fp32: return run_row<Math::fp32>(plan, params, rows, clusters, stream);
    case Math::tf32: return run_row<Math::tf32>(plan, params, rows, clusters, stream);
    case Math::bf16: return run_row<Math::bf16>(plan, params, rows, clusters, stream);
    case Math::fp16: return run_row<Math::fp16>(plan, params, rows, clusters, stream);
  }
}

int pipelines_at_once_as(Math math, const Plan& plan, int wanted) {
  switch (math) {
    case Math::fp32: return pipelines_at_once<Math::fp32>(plan, wanted);
    case Math::tf32: return pipelines_at_once<Math::tf32>(plan, wanted);
    case Math::bf16: return pipelines_at_once<Math::bf16>(plan, wanted);
    case Math::fp16: return pipelines_at_once<Math::fp16>(plan, wanted);
  }
  return 0;
}

int tiles_of(int images) { return (images + kTile - 1) / kTile; }

// As many teams as there are tiles, but only as many as run at once; then as many workers as find work.
RowSplit row_split(const Plan& plan, const Limits& limits, int tiles) {
  const int columns = plan.layout.row_column_parts, at_once = kRowBlocks * limits.multiprocessors;
  if (plan.row_depths.size() < 2 || columns > at_once) return {0, 0};
  int most = 1;
  for (const RowDepth& depth : plan.row_depths) most = std::max(most, depth.count);
  const int teams = std::min(tiles, at_once / columns);
  return {teams, std::min(most, at_once / (columns * teams))};
}

}  // namespace

int Sampler::pipelines(int images) const {
  if (plan_.variant == Variant::block) return 1;
  const int fitting = limits_.multiprocessors / plan_.layout.stages;
  const int at_once = uses_clusters() ? pipelines_at_once_as(plan_.math, plan_, fitting) : fitting;
  return std::min(tiles_of(images), std::max(1, at_once));
}

int Sampler::row_launches() const {
  return row_split(plan_, limits_, 1).teams ? 1 : static_cast<int>(plan_.row_depths.size());
}

int64_t Sampler::workspace_bytes(int images) const {
  const int64_t barriers = row_split(plan_, limits_, tiles_of(images)).teams * kBarrierWords * sizeof(uint32_t);
  return tiles_of(images) * plan_.layout.tile_bytes + pipelines(images) * plan_.layout.pipeline_bytes + barriers;
}

void Sampler::run(const DeviceJob& job, const std::function<void(int)>& on_row) const {
  const Layout& layout = plan_.layout;
  const Stream stream = static_cast<Stream>(job.stream);
  KernelParams params{};
  params.layout = layout;
  params.constants = static_cast<const char*>(job.constants);
  params.workspace = static_cast<char*>(job.workspace);
  params.images = job.images, params.tiles = tiles_of(job.images), params.n_pipelines = pipelines(job.images);
  params.pipelines = params.workspace + params.tiles * layout.tile_bytes;
  params.row_barriers = reinterpret_cast<uint32_t*>(params.pipelines + params.n_pipelines * layout.pipeline_bytes);
  params.levels = static_cast<int32_t*>(job.values);
  params.known = static_cast<const uint8_t*>(job.known);
  params.noise = static_cast<const double*>(job.noise);
  params.conditions = static_cast<const float*>(job.conditions);
  params.options = DrawOptions(job.options);
  params.logits = static_cast<float*>(job.parameters);
  params.log_probability = static_cast<double*>(job.log_probability);
  params.error = static_cast<unsigned long long*>(job.error);
  if (job.images == 0) return;
  const RowSplit rows = row_split(plan_, limits_, params.tiles);
  zero(params.workspace, workspace_bytes(job.images), stream);
  for (params.y = 0; params.y < layout.height; params.y++) {
    on_row(params.y);
    run_row_as(plan_.math, plan_, params, rows, uses_clusters(), stream);
  }
}

}  // namespace pcf::cuda

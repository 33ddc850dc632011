#include "cuda/sampler.h"

#include <algorithm>

#include "cuda/kernels.h"

namespace pcf::cuda {
namespace {

void run_row_as(Math math, const Plan& plan, const Batch& batch, const RowSplit& rows, bool clusters, Stream stream) {
  switch (math) {
    case Math::fp32: return run_row<Math::fp32>(plan, batch, rows, clusters, stream);
    case Math::tf32: return run_row<Math::tf32>(plan, batch, rows, clusters, stream);
    case Math::bf16: return run_row<Math::bf16>(plan, batch, rows, clusters, stream);
    case Math::fp16: return run_row<Math::fp16>(plan, batch, rows, clusters, stream);
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

// As many groups as there are tiles, as far as all their blocks run at once, then as many workers as find work.
RowSplit row_split(const Plan& plan, const Limits& limits, int tiles) {
  const int columns = plan.layout.row_column_groups, at_once = kRowBlocks * limits.multiprocessors;
  if (plan.row_levels.size() < 2 || columns > at_once) return {0, 0};
  int most = 1;
  for (const RowLevel& level : plan.row_levels) most = std::max(most, level.count);
  const int groups = std::min(tiles, at_once / columns);
  return {groups, std::min(most, at_once / (columns * groups))};
}

}  // namespace

int Sampler::groups(int images) const {
  if (plan_.variant == Variant::block) return 1;
  const int fitting = limits_.multiprocessors / plan_.layout.stages;
  const int at_once = uses_clusters() ? pipelines_at_once_as(plan_.math, plan_, fitting) : fitting;
  return std::min(tiles_of(images), std::max(1, at_once));
}

int Sampler::row_launches() const {
  return row_split(plan_, limits_, 1).groups ? 1 : static_cast<int>(plan_.row_levels.size());
}

int64_t Sampler::workspace_bytes(int images) const {
  const int64_t meetings = row_split(plan_, limits_, tiles_of(images)).groups * kMeetingWords * sizeof(uint32_t);
  return tiles_of(images) * plan_.layout.tile_bytes + groups(images) * plan_.layout.group_bytes + meetings;
}

void Sampler::run(const DeviceJob& job, const std::function<void(int)>& on_row) const {
  const Layout& layout = plan_.layout;
  const Stream stream = static_cast<Stream>(job.stream);
  Batch batch{};
  batch.layout = layout;
  batch.constants = static_cast<const char*>(job.constants);
  batch.workspace = static_cast<char*>(job.workspace);
  batch.images = job.images, batch.tiles = tiles_of(job.images), batch.n_groups = groups(job.images);
  batch.groups = batch.workspace + batch.tiles * layout.tile_bytes;
  batch.row_meetings = reinterpret_cast<uint32_t*>(batch.groups + batch.n_groups * layout.group_bytes);
  batch.levels = static_cast<int32_t*>(job.values);
  batch.known = static_cast<const uint8_t*>(job.known);
  batch.noise = static_cast<const double*>(job.noise);
  batch.conditions = static_cast<const float*>(job.conditions);
  batch.options = DrawOptions(job.options);
  batch.logits = static_cast<float*>(job.parameters);
  batch.log_probability = static_cast<double*>(job.log_probability);
  batch.error = static_cast<unsigned long long*>(job.error);
  if (job.images == 0) return;
  const RowSplit rows = row_split(plan_, limits_, batch.tiles);
  zero(batch.workspace, workspace_bytes(job.images), stream);
  for (batch.y = 0; batch.y < layout.height; batch.y++) {
    on_row(batch.y);
    run_row_as(plan_.math, plan_, batch, rows, uses_clusters(), stream);
  }
}

}  // namespace pcf::cuda

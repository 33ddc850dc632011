// The kernels of one kind of numbers, PCF_MATH; compiled once for each.
#include "cuda/kernels.h"

#include "cuda/block.h"
#include "cuda/pipeline.h"
#include "cuda/row_phase.h"

namespace pcf {
namespace {

Launch of_pipelines(const Plan& plan, int count, bool clusters) {
  const unsigned stages = static_cast<unsigned>(plan.layout.stages);
  return {stages * count, 1, kThreads, static_cast<size_t>(plan.shared_bytes), clusters ? stages : 1, !clusters};
}

}  // namespace

template <Math kMath>
void run_row(const Plan& plan, const Batch& batch, const RowSplit& rows, bool clusters, Stream stream) {
  const int levels = static_cast<int>(plan.row_levels.size());
  const auto launch_levels = [&](const RowWork& work) {
    const unsigned blocks = work.groups * row_column_groups(kMath, plan.layout.width);
    launch(run_row_phase<kMath>, {blocks, static_cast<unsigned>(work.workers), 32 * kRowWarps, 0, 1, work.levels > 1},
           stream, batch, work);
  };
  if (rows.groups > 0)
    launch_levels({0, levels, rows.groups, rows.workers});
  else
    for (int level = 0; level < levels; level++) launch_levels({level, 1, batch.tiles, plan.row_levels[level].count});
  if (plan.variant == Variant::block)
    launch(sample_row_in_blocks<kMath>,
           {static_cast<unsigned>(batch.tiles), 1, kThreads, static_cast<size_t>(plan.shared_bytes)}, stream, batch);
  else
    launch(clusters ? sample_row_in_pipelines<kMath, true> : sample_row_in_pipelines<kMath, false>,
           of_pipelines(plan, batch.n_groups, clusters), stream, batch);
}

template <Math kMath>
int pipelines_at_once(const Plan& plan, int wanted) {
  return clusters_at_once(sample_row_in_pipelines<kMath, true>, of_pipelines(plan, wanted, true));
}

template int pipelines_at_once<Math::PCF_MATH>(const Plan&, int);
template void run_row<Math::PCF_MATH>(const Plan&, const Batch&, const RowSplit&, bool, Stream);

}  // namespace pcf

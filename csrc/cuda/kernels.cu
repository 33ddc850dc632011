// The kernels of one kind of numbers, PCF_MATH; compiled once for each.
#include "cuda/kernels.h"

#include "cuda/block.h"
#include "cuda/pipeline.h"
#include "cuda/row_phase.h"

namespace pcf::cuda {
namespace {

Launch of_pipelines(const Plan& plan, int count, bool clusters) {
  const unsigned stages = static_cast<unsigned>(plan.layout.stages);
  return {stages * count, 1, kThreads, static_cast<size_t>(plan.shared_bytes), clusters ? stages : 1, !clusters};
}

}  // namespace

template <Math kMath>
void run_row(const Plan& plan, const Batch& batch, const RowSplit& rows, bool clusters, Stream stream) {
  const auto of_row = [&](int groups, int workers) {
    const int blocks = groups * plan.layout.row_column_groups;
    return Launch{static_cast<unsigned>(blocks), static_cast<unsigned>(workers), 32 * kRowWarps};
  };
  if (rows.groups > 0) {
    Launch together = of_row(rows.groups, rows.workers);
    together.cooperative = true;
    launch(run_row_levels<kMath>, together, stream, batch, static_cast<int>(plan.row_levels.size()), rows);
  } else {
    for (const RowLevel& level : plan.row_levels)
      launch(run_row_level<kMath>, of_row(batch.tiles, level.count), stream, batch, level);
  }
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

}  // namespace pcf::cuda

// The kernels for one kind of numbers, PCF_MATH; compiled once for each kind.
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
void run_row(const Plan& plan, const KernelParams& params, const RowSplit& rows, bool clusters, Stream stream) {
  const auto of_row = [&](int teams, int workers) {
    const int blocks = teams * plan.layout.row_column_parts;
    return Launch{static_cast<unsigned>(blocks), static_cast<unsigned>(workers), 32 * kRowWarps};
  };
  if (rows.teams > 0) {
    Launch together = of_row(rows.teams, rows.workers);
    together.cooperative = true;
    launch(run_row_depths<kMath>, together, stream, params, static_cast<int>(plan.row_depths.size()), rows);
  } else {
    for (const RowDepth& depth : plan.row_depths)
      launch(run_row_depth<kMath>, of_row(params.tiles, depth.count), stream, params, depth);
  }
  if (plan.variant == Variant::block)
    launch(sample_row_in_blocks<kMath>,
           {static_cast<unsigned>(params.tiles), 1, kThreads, static_cast<size_t>(plan.shared_bytes)}, stream, params);
  else
    launch(clusters ? sample_row_in_pipelines<kMath, true> : sample_row_in_pipelines<kMath, false>,
           of_pipelines(plan, params.n_pipelines, clusters), stream, params);
}

template <Math kMath>
int pipelines_at_once(const Plan& plan, int wanted) {
  return clusters_at_once(sample_row_in_pipelines<kMath, true>, of_pipelines(plan, wanted, true));
}

template int pipelines_at_once<Math::PCF_MATH>(const Plan&, int);
template void run_row<Math::PCF_MATH>(const Plan&, const KernelParams&, const RowSplit&, bool, Stream);

}  // namespace pcf::cuda

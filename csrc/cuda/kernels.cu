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
void run_row(const Plan& plan, const Batch& batch, bool clusters, Stream stream) {
  const unsigned column_groups = (plan.layout.width + kRowColumns<kMath> - 1) / kRowColumns<kMath>;
  for (const auto& [list, count] : plan.row_launches)
    launch(run_row_phase<kMath>, {batch.tiles * column_groups, static_cast<unsigned>(count), 32 * kRowWarps}, stream,
           batch, list);
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
template void run_row<Math::PCF_MATH>(const Plan&, const Batch&, bool, Stream);

}  // namespace pcf

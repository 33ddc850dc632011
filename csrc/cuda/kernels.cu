// The kernels of one kind of numbers, PCF_MATH; compiled once for each.
#include "cuda/kernels.h"

#include "cuda/block.h"
#include "cuda/pipeline.h"
#include "cuda/row_phase.h"

namespace pcf {

template <Math kMath>
void run_row(const Plan& plan, const Batch& batch, bool clusters, Stream stream) {
  const unsigned column_groups = (plan.layout.width + kRowColumns<kMath> - 1) / kRowColumns<kMath>;
  for (const auto& [list, count] : plan.row_launches)
    launch(run_row_phase<kMath>, {batch.tiles * column_groups, static_cast<unsigned>(count), 32 * kRowWarps}, stream,
           batch, list);
  Launch how{static_cast<unsigned>(batch.tiles), 1, kThreads, static_cast<size_t>(plan.shared_bytes)};
  if (plan.variant == Variant::block) {
    launch(sample_row_in_blocks<kMath>, how, stream, batch);
    return;
  }
  how.blocks = static_cast<unsigned>(plan.layout.stages * batch.n_groups);
  how.cluster = clusters ? static_cast<unsigned>(plan.layout.stages) : 1;
  how.cooperative = !clusters;
  launch(clusters ? sample_row_in_pipelines<kMath, true> : sample_row_in_pipelines<kMath, false>, how, stream, batch);
}

template void run_row<Math::PCF_MATH>(const Plan&, const Batch&, bool, Stream);

}  // namespace pcf

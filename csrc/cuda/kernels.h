// The launches of one row. One object file for each kind of numbers (kernels.cu).
#pragma once

#include "cuda/worker.h"

namespace pcf::cuda {

// Launches row params.y of all tiles: the row phase, then the row's column steps. clusters: whether each pipeline is a
// cluster.
template <Math kMath>
void run_row(const Plan&, const KernelParams&, const RowSplit&, bool clusters, Stream);

// How many of `wanted` pipelines, each a cluster, the device runs at once.
template <Math kMath>
int pipelines_at_once(const Plan&, int wanted);

}  // namespace pcf::cuda

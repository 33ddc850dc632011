#include "cuda/plan.h"

#include "cuda/constants.h"

namespace pcf::cuda {

namespace {

// The kernels draw levels (worker.h). Another kind of head must be refused here until they can draw from it.
void check_drawable(const Head& head) {
  switch (head.kind) {
    case HeadKind::categorical: return;
  }
}

}  // namespace

Plan make_plan(const Program& program, Math math, Variant variant, const Limits& limits) {
  Plan plan{};
  plan.math = math, plan.variant = variant;
  Layout& layout = plan.layout;
  layout.image_channels = program.image_channels, layout.height = program.height;
  layout.width = program.width, layout.head = program.head;
  check_drawable(program.head);
  layout.row_column_parts = (program.width + row_columns(math) - 1) / row_columns(math);
  ColumnSteps steps(program, math);
  std::vector<Range> stages = {{0, steps.count}};
  if (variant == Variant::pipeline) stages = split_into_stages(steps, limits);
  for (size_t s = 0; s < stages.size(); s++)
    for (int i = stages[s].first; i < stages[s].last; i++) steps.instructions[i].stage = static_cast<int>(s);
  MemoryPlan memory = plan_memory(steps, stages, limits, plan);
  write_constants(steps, stages, memory, plan);
  return plan;
}

}  // namespace pcf::cuda

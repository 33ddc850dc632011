#include "cuda/plan/planner.h"

#include <stdexcept>
#include <string>

#include "wavefront.h"

namespace pcf::cuda {
namespace {

Layout geometry(const Program& program, Math math, int images, int cluster) {
  Layout l{};
  l.image_channels = program.image_channels, l.height = program.height, l.width = program.width;
  l.levels = program.head.parameters, l.images = images, l.cluster = cluster;
  l.by_rows = program.lag == 0;
  const int most_tiles_of_block = l.by_rows ? std::min(kMostRowTiles, most_tiles(math)) : most_tiles(math);
  const int most_sites = kTileSites * (cluster > 1 ? 1 : most_tiles_of_block);
  const Wavefront wave = Wavefront::closest(program, 1, kTileSites * most_tiles_of_block);
  l.lag = l.by_rows ? program.width : wave.lag;
  l.rows = l.by_rows ? 1 : wave.rows_in_flight(0);
  l.period = l.by_rows ? 1 << 30 : std::max(l.rows * l.lag, program.width);
  l.end_row = l.by_rows ? program.height : 1;
  l.sites = l.rows * images, l.most_images = most_sites / l.rows;
  l.tiles = parts(l.sites, kTileSites);
  l.view_of_slots = offset<Site>(0, l.tiles * kTileSites);
  if (cluster < 1 || cluster > kMostBlocks || (cluster & (cluster - 1)))
    throw std::invalid_argument("a cluster has 1, 2, 4 or 8 blocks");
  if (images < 1) throw std::invalid_argument("a block has at least one image");
  if (images > l.most_images) throw std::invalid_argument("a block has fewer sites than these images");
  return l;
}

// The kernels have no other kinds of instruction and draw from no other heads.
void check_kinds(const Program& program) {
  const auto check = [](const auto& kind, const char* what) {
    if (!kind.on_cuda) throw std::invalid_argument(std::string(what) + kind.name + ": use runtime 'eager'");
  };
  check(traits(program.head.kind), "the CUDA sampler draws from no head ");
  for (const Instruction& i : program.instructions) check(traits(i.kind), "the CUDA sampler has no instruction ");
}

}  // namespace

Plan make_plan(const Program& program, Math math, int images, int cluster, int shared_bytes) {
  check_kinds(program);
  const Layout layout = geometry(program, math, images, cluster);
  const Timeline timeline(program, layout.lag);
  std::string why;
  for (const int early : {1 << 20, 28, 20, 12, 8, 4})  // so that pieces fill their batches
    for (const int copies_ahead : {2, 1})
      for (const bool by_distribution : {false, true})
        for (const bool near_biases : {true, false}) try {
            Planner p{timeline, math, early, copies_ahead, by_distribution, near_biases, layout};
            for (const Sweep& sweep : timeline.sweeps) draft_sweep(p, sweep);
            place_all(p);
            return assembled(p, shared_bytes);
          } catch (const std::invalid_argument& error) {
            why = error.what();
          }
  throw std::invalid_argument(why);
}

}  // namespace pcf::cuda

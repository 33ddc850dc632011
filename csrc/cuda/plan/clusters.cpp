// What the blocks of a cluster send each other. Each of them computes some of a record's channels, and sends them to
// the others' shared memory, where the next record multiplies them. What is read later is read from a ring, which each
// block has of its own: it writes there what it has been sent, since nothing that another block writes to global memory
// is seen without a wait as long as a record.
#include "cuda/plan/planner.h"

namespace pcf::cuda {

Planner::Share Planner::share_of(int tiles, int rank) const {
  const int each = parts(tiles, layout_.cluster), first = std::min(rank * each, tiles);
  return {first, std::min(each, tiles - first)};
}

void Planner::draft_exchanges() {
  for (int v = 0; v < timeline_.values(); v++) {
    ValueMemory& value = values_[v];
    if (!value.in_ring() || !is_sent(v)) continue;
    const int receives = value.last_written + 1;
    value.shared_reads.push_back({receives, 0});
    drafts_[receives].written_back.push_back(v);
  }
}

// What is sent of so many tiles of a record's channels, to each of the other blocks.
int64_t Planner::sent_bytes(const Part& part, int tiles) const {
  const int64_t channels = int64_t{tiles} * part.wide * kTileChannels, sites = layout_.tiles * kTileSites;
  const int64_t of_value = channels * sites * kSiteBytes / depth_, of_logits = channels * sites * 4;
  int64_t bytes = 0;
  const auto add = [&](const Target& to, int64_t of_target) { bytes += to.shared == kNowhere ? 0 : of_target; };
  const Record::Product& product = part.product;
  for (uint32_t n = product.results; n < product.results + product.n_results; n++) {
    const Result& r = results_[n];
    const bool of_all = r.ending == Ending::sum || r.ending == Ending::logits;  // members, if they are of one layer
    const int64_t members = of_all ? 1 : part.wide;
    if (r.logits != kNowhere)
      bytes += of_logits / members;
    else if (r.ending == Ending::gate) {
      add(r.to, of_value / 2);
      if (r.gate.keeps_sums) add(r.gate.sums[0], of_value / 2), add(r.gate.sums[1], of_value / 2);
    } else {
      add(r.to, of_value / members);
      if (r.ending == Ending::lstm) add(r.lstm.cell, of_value);
    }
  }
  return bytes;
}

}  // namespace pcf::cuda
